"""What becomes of the samples that are sealed: one file, made by who comes last."""

from __future__ import annotations

from pathlib import Path

from sd35h5.capturing.encoding import forget_texts
from sd35h5.capturing.identity import differing_models
from sd35h5.capturing.progress import say
from sd35h5.errors import CaptureError, RunHeldError, StoreError
from sd35h5.store.packing import pack
from sd35h5.store.runs import (
    empty,
    packed_indices,
    part_files,
    parts_of,
    running,
    sealed_indices,
    sealed_texts,
)
from sd35h5.store.sharing.claims import claimed

PACK_LIMIT = 20 << 30  # above this, a capture stays a folder until it is packed by hand


def finish(parts: Path, out: Path) -> Path:
    """Pack the sealed samples into `out`, unless they are many bytes. Returns: what can be opened."""
    files = part_files(parts)
    forget_texts(parts)
    if sum(file.stat().st_size for file in files) > PACK_LIMIT:
        say(
            f"{parts} is large and stays a folder, which opens like a file; "
            f"to pack it: python -m sd35h5 pack {parts}"
        )
        return parts
    if files:  # else nothing was captured, or nothing that is not packed already
        pack(parts, out)
        if lost := {int(file.stem) for file in files}.difference(packed_indices(out)):
            raise StoreError(
                f"{out.name} lacks samples {sorted(lost)} of {parts.name}, which is kept: pack it again"
            )
    empty(parts)
    return out


def finish_shares(out: Path, planned: int) -> Path:
    """Pack what many processes have drawn, if this is the last of them: after it has let go of the run.

    File locks tell the processes of one host, and of most file systems, apart; where they do not hold across hosts, the
    claim does. Nobody removes anything before the packed file holds every sample, and who comes too late finds that.

    Returns: what can be opened.
    Raises:
        CaptureError: the samples are of several models.
        StoreError: they cannot be packed.
    """
    parts = parts_of(out)
    if missing := planned - len(sealed_indices(parts)):
        say(
            f"{planned - missing} of {planned} samples are sealed in {parts}; the share that ends last packs them"
        )
        return parts
    try:
        with running(out) as parts:
            if not part_files(parts):  # packed by another one
                return finish(parts, out)
            with claimed(parts):
                check_one_model(parts)
                return finish(parts, out)
    except RunHeldError as others:
        say(f"all {planned} samples are sealed, and another process packs them: {others}")
        return out if out.is_file() else parts


def check_one_model(parts: Path) -> None:
    """Raise: CaptureError where the sealed samples tell of several models."""
    first, *others = sealed_texts(parts, "components") or [{}]
    for other in others:
        if told := differing_models(first, other):
            raise CaptureError(
                f"{parts} holds samples of several models ({'; '.join(told)}), drawn by processes that began at the "
                "same time: it is not packed; remove the samples of the wrong one, and draw them again"
            )
