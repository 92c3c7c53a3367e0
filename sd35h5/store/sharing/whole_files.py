"""A new file of the format, there whole or not at all: made under another name, which is its own at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.store import schema
from sd35h5.store.opening import reason
from sd35h5.store.sharing.room import MARGIN, Room, file_with_room
from sd35h5.store.sharing.temporaries import own_temporary
from sd35h5.store.skeleton import publish


@contextmanager
def whole_file(out: Path, cannot: str) -> Iterator[tuple[h5py.File, Room]]:
    """Yield a file that becomes `out` once it is filled, written through to the disk; after an error nothing is left.
    With it comes its room, which is taken before anything large is written.

    Args: cannot: how the sentence begins that tells what the system refused.
    Raises: StoreError, one sentence.
    """
    try:
        temporary, held = own_temporary(out)
    except OSError as error:
        raise StoreError(f"{cannot}: {reason(error)}") from error
    try:
        block = schema.METADATA_BLOCK_BYTES
        target, room = file_with_room(
            temporary, 2 * MARGIN, meta_block_size=block
        )  # lists come before values
        with target:
            yield target, room
        room.close(target)
        publish(temporary, out)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError) and not isinstance(error, Sd35h5Error):
            raise StoreError(f"{cannot}: {reason(error)}") from error
        raise
    finally:
        held.close()
