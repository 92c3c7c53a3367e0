"""A run's findings as JSON beside it, `run.h5` -> `run.findings.json`, read with suspicion and written whole.

The file may come from strangers: its sizes and types are checked before anything of it is used, and nothing of it is
ever run. Whoever adds holds the file under which the next version is written, so that two at once lose nothing.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from sd35h5.errors import StoreError
from sd35h5.store.opening import reason
from sd35h5.store.schema import PARTS_SUFFIX
from sd35h5.store.showable import well_formed
from sd35h5.store.skeleton import publish

ENDING = ".findings.json"
FORMAT = "sd35h5 findings 1"
MOST = 500  # findings of a run
MAX_BYTES = 16 << 20  # of the file
MAX_PICTURE = 256 << 10  # of a figure
MAX_SIDE = 4096  # pixels of a figure
#: characters of each text
LONGEST = {"id": 32, "made_utc": 40, "note": 2000, "address": 4000, "about": 1000, "page": 60, "figure": 300,
           "code": 20_000, "run": 300, "content": 64, "sample_content": 64}  # fmt: skip
#: of an address: a page's name, empty for the first, and its query
ADDRESS = re.compile(r"[a-z]{0,20}(\?[!-~]*)?")
_PNG = b"\x89PNG\r\n\x1a\n"
_PATIENCE, _PAUSE = 10.0, 0.02  # seconds


@dataclass(frozen=True)
class Finding:
    """A view that was kept.

    address: relative to the dashboard, `sinks?run=demo&cell=3.4`. about: what it selects, in a line. figure, picture:
    the name of its figure and the figure as PNG, empty where the view has none. code: Python that reads its numbers.
    run: the file's name. content, sample_content: what `content_identity` said of the run and of the shown sample.
    """

    id: str
    made_utc: str
    note: str
    page: str
    address: str
    about: str
    figure: str
    picture: bytes
    code: str
    run: str
    content: str
    sample_content: str


def beside(run: str | Path) -> Path:
    """Return where the findings of a run are: of a file, of a folder, or of a capture under way."""
    path = Path(os.path.abspath(run))
    name = path.name.removesuffix(PARTS_SUFFIX)
    stem, ending = os.path.splitext(name)
    return path.with_name((stem if ending in (".h5", ".hdf5") else name) + ENDING)


def read(path: Path) -> tuple[Finding, ...]:
    """Return the findings in a file, oldest first; none where there is no such file.

    Raises: StoreError, one sentence, for what is no such file, or is too large.
    """
    try:
        with _opened(path, os.O_RDONLY) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {reason(error)}: put a readable file there") from error
    if len(data) > MAX_BYTES:
        raise _broken(path, f"it is larger than {MAX_BYTES >> 20} MB")
    try:
        told = json.loads(data)
        if told["format"] != FORMAT or not isinstance(told["findings"], list):
            raise ValueError(f"it is not of the format {FORMAT!r}")
        found = tuple(_finding(one) for one in told["findings"][: MOST + 1])
        if len(found) > MOST or len({one.id for one in found}) < len(found):
            raise ValueError(f"it holds more than {MOST} findings, or two of one id")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _broken(path, _why(error)) from error
    return found


def add(path: Path, finding: Finding) -> None:
    """Add a finding to a file, which is made where there is none."""
    _change(path, lambda found: (*found, finding))


def annotate(path: Path, id: str, note: str) -> None:
    """Give a finding another note."""
    _change(path, lambda found: tuple(replace(one, note=note) if one.id == id else one for one in found), id)


def remove(path: Path, id: str) -> None:
    """Remove a finding; with the last one the file."""
    _change(path, lambda found: tuple(one for one in found if one.id != id), id)


def _change(
    path: Path, change: Callable[[tuple[Finding, ...]], tuple[Finding, ...]], id: str | None = None
) -> None:
    """Write what `change` makes of the findings that are there now. Args: id: of one that has to be among them."""
    try:
        with _next_version(path) as (temporary, file):
            found = read(path)
            if id is not None and id not in {one.id for one in found}:
                raise StoreError(f"{path.name} has not that finding any more: it was deleted meanwhile")
            left = change(found)
            file.write(_written(path, left))
            file.flush()
            if left:
                publish(temporary, path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"{path.name} cannot be written beside the run: {reason(error)}: give that folder room and the right to "
            "write, or copy the run to one that has them"
        ) from error


def _written(path: Path, found: tuple[Finding, ...]) -> bytes:
    """Return the file's content; what could not be read again is refused."""
    rows = [asdict(one) | {"picture": base64.b64encode(one.picture).decode()} for one in found]
    try:
        if len(found) > MOST:
            raise ValueError(f"it would hold more than {MOST} findings")
        for row in rows:
            _finding(row)
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path.name} cannot take that finding: {_why(error)}: delete some, or shorten"
        ) from error
    data = json.dumps({"format": FORMAT, "findings": rows}, indent=1).encode()
    if len(data) > MAX_BYTES:
        raise StoreError(f"{path.name} is full: it may take {MAX_BYTES >> 20} MB: delete a finding first")
    return data


def _finding(told: Any) -> Finding:
    """Return a finding whose parts are what they should be; ValueError, TypeError or KeyError otherwise."""
    values = {one.name: told[one.name] for one in fields(Finding)}
    for name, text in values.items():
        longest = LONGEST.get(name, MAX_PICTURE * 4 // 3 + 4)
        if not isinstance(text, str):
            raise TypeError(f"{name} of a finding is no text")
        if len(text) > longest:
            raise ValueError(f"{name} of a finding has more than {longest:,} characters")
        values[name] = well_formed(text)
    if not ADDRESS.fullmatch(values["address"]) or not re.fullmatch("[0-9a-f]+", values["id"]):
        raise ValueError("a finding's address or id is none")
    values["picture"] = base64.b64decode(values["picture"], validate=True)
    if values["picture"] and not _is_small_png(values["picture"]):
        raise ValueError(f"a finding's figure is no PNG of at most {MAX_SIDE} pixels")
    return Finding(**values)


def _is_small_png(data: bytes) -> bool:
    sides = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    return data.startswith(_PNG) and data[12:16] == b"IHDR" and all(0 < side <= MAX_SIDE for side in sides)


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "it is not JSON"
    return "a part of it is missing" if isinstance(error, KeyError) else str(error)


def _broken(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path.name} is not a file of findings: {why}: move it away, and the next finding begins a new one"
    )


@contextmanager
def _next_version(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Hold the empty file in which the next version is made, and remove it if it did not become that.

    Others wait for it. It is unlocked when its process dies, and then taken over. Where there are no locks (Windows),
    two that add in the same moment are not told apart.
    """
    temporary, end = path.with_name(f"{path.name}.tmp"), time.monotonic() + _PATIENCE
    while (file := _held(temporary)) is None:
        if time.monotonic() > end:
            raise StoreError(f"{path.name} is being written by another: try again in a moment")
        time.sleep(_PAUSE)
    with file:
        file.truncate(0)
        try:
            yield temporary, file
        finally:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), temporary.lstat()):
                    temporary.unlink()


def _held(temporary: Path) -> BinaryIO | None:
    """Return the file, locked and still of that name; None while another holds it."""
    file = _opened(temporary, os.O_RDWR | os.O_CREAT)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(file.fileno()), temporary.lstat())
    except (BlockingIOError, FileNotFoundError):  # another holds it, or has just given it its name
        is_ours = False
    except (ImportError, OSError):  # Windows, or a file system without locks
        is_ours = True
    if not is_ours:
        file.close()
    return file if is_ours else None


def _opened(path: Path, how: int) -> BinaryIO:
    """Open a plain file: what a link leads to is not ours, and a pipe would never end."""
    flags = how | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.fdopen(os.open(path, flags, 0o666), "rb" if how == os.O_RDONLY else "r+b")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is no plain file")
    return file
