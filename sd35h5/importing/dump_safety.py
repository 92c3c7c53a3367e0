"""Whether a file of torch.save holds tensors and nothing else: asked before anything of it is read. Torch-free."""

from __future__ import annotations

import hashlib
import io
import os
import pickletools
import zipfile
import zlib
from pathlib import Path

from sd35h5.errors import ForeignFileError
from sd35h5.store.opening import reason
from sd35h5.store.showable import showable

MAX_LIST_BYTES = 16 << 20  # of the zip's list, and of the pickle that says where tensors lie: 0.2 kB a tensor
_PICKLE = "data.pkl"
#: what a dict of tensors asks for; torch's own list for `weights_only` is longer, and holds what takes any memory
_TENSORS = frozenset({
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char",
                                          "Byte", "Bool")),
})  # fmt: skip


class _Capped(io.FileIO):
    """A file of which nobody reads much at once, whatever its lists claim."""

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes. Raises: BadZipFile: more than any list of a dump has."""
        size = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
        if size > MAX_LIST_BYTES:
            raise zipfile.BadZipFile("its list is too long")
        return super().read(max(0, size))


def check_dump(path: Path, where: str) -> str:
    """Refuse what is no plain file of tensors, without unpickling anything.

    Args:
        where: how the file is told.
    Returns: a hash of the names, sizes and checksums that the file lists: equal for equal contents.
    Raises: ForeignFileError.
    """
    try:
        with _Capped(path) as file, zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            _check_sizes(records, path.stat().st_size, where)
            pickles = [each for each in records if each.filename.rpartition("/")[2] == _PICKLE]
            if len(pickles) != 1:
                raise ForeignFileError(
                    f"{where} is a zip archive, but no file of torch.save: it lacks {_PICKLE}"
                )
            _check_pickle(archive.read(pickles[0]), where)
    except zipfile.BadZipFile as error:
        raise ForeignFileError(
            f"{where} is not the zip archive that torch.save writes (since torch 1.6), or it is damaged or cut off"
        ) from error
    except (OSError, RuntimeError, zlib.error) as error:
        told = reason(error) if isinstance(error, OSError) else "it is damaged"
        raise ForeignFileError(f"{where} cannot be read: {told}") from error
    lines = sorted(f"{each.filename.partition('/')[2]} {each.file_size} {each.CRC}" for each in records)
    return hashlib.sha256("\n".join(lines).encode(errors="replace")).hexdigest()


def _check_sizes(records: list[zipfile.ZipInfo], size: int, where: str) -> None:
    """torch.save compresses nothing, so that tensors can be mapped: more than the file has is not in it."""
    if any(
        each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size for each in records
    ):
        raise ForeignFileError(
            f"{where} is a compressed zip archive, which torch.save does not write: unpack it first"
        )
    if sum(each.file_size for each in records) > size:
        raise ForeignFileError(
            f"{where} claims more than its {size} bytes: it is damaged or made to exhaust readers"
        )
    if any(each.file_size > MAX_LIST_BYTES for each in records if each.filename.endswith(_PICKLE)):
        raise ForeignFileError(f"{where} lists more than any dump of attention: it is damaged")


def _check_pickle(pickled: bytes, where: str) -> None:
    try:
        asked = {
            str(told) for opcode, told, _ in pickletools.genops(pickled) if opcode.name in ("GLOBAL", "INST")
        }
        built = {opcode.name for opcode, _, _ in pickletools.genops(pickled)} & {
            "STACK_GLOBAL",
            "EXT1",
            "EXT2",
            "EXT4",
        }
    except (ValueError, UnicodeError, IndexError) as error:
        raise ForeignFileError(f"{where} does not say where its tensors lie: it is damaged") from error
    if others := sorted(asked - _TENSORS) or sorted(built):
        raise ForeignFileError(
            f"{where} asks for {showable(others[0].replace(' ', '.'), 80)}, which no dict of probabilities needs: "
            "nothing of it is unpickled, as a pickle can run code"
        )
