"""Which samples of a capture are missing, why, and how to draw them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sd35h5.errors import StoreNotFoundError
from sd35h5.store.runs import RUN_FILE, out_of, parts_of, read_run, sealed_indices
from sd35h5.store.sharing.failures import failures_in
from sd35h5.store.sharing.shares import batches_of, ranges, share_of_missing
from sd35h5.store.showable import showable


def missing_samples(path: Path) -> dict[str, Any]:
    """Compare a capture with its plan.

    Args:
        path: the folder `run.h5.parts`, or `run.h5`.
    Returns: name, planned, sealed (counts), missing (indices), failed (index -> prompt_id, seed, why, utc) and shard,
        what `--shard` takes to draw the rest ("" if there is none), and imported, whether it is another tool's.
    Raises: StoreError: there is no such capture.
    """
    out = out_of(path) or path
    parts = path if path.is_dir() else parts_of(path)
    if (parts / RUN_FILE).is_file():
        run = read_run(parts)
    elif out.is_file():
        run = {"config": {}, "planned": len(sealed_indices(parts))}
    else:
        raise StoreNotFoundError(
            f"{path.name}: there is no capture of that name, neither under way nor packed"
        )
    sealed, planned = sealed_indices(parts), run["planned"]
    missing = [index for index in range(planned) if index not in sealed]
    batches = batches_of(planned, _count(run["config"].get("batch_size")), _counts(run.get("cuts")))
    shares = _count(run.get("shares"), len(batches))
    return {
        "name": out.name,
        "planned": planned,
        "sealed": planned - len(missing),
        "missing": missing,
        "failed": {index: told for index, told in failures_in(parts).items() if index < planned},
        "shard": str(share_of_missing(batches, missing, shares)) if missing else "",
        "imported": bool(run["config"].get("imported")),
    }


def as_text(told: dict[str, Any]) -> Iterator[str]:
    """Lines of `missing` for people."""
    missing, failed = told["missing"], told["failed"]
    yield (
        f"{showable(told['name'])}: {told['sealed']} of {told['planned']} samples are sealed, "
        f"{len(missing) or 'none'} missing"
    )
    for index, why in failed.items():
        which = f"{showable(why['prompt_id'], 40)}, seed {why['seed']}, {why['utc']}"
        yield f"  failed: sample {index} ({which}): {showable(why['why'], 400)}"
    if undrawn := [index for index in missing if index not in failed]:
        yield f"  not drawn yet: {ranges(undrawn)}"
    if missing and told["imported"]:
        yield "to bring in the rest: the same command, python -m sd35h5 import, goes on from there"
    elif missing:
        numbers, _, count = told["shard"].partition("/")
        yield f"to draw the rest: the same command without --shard, or in one process with --shard {told['shard']}"
        yield f"as a Slurm array: --array={numbers} and --shard $SLURM_ARRAY_TASK_ID/{count}"


def _count(value: object, otherwise: int = 1) -> int:
    """A number of a file that anybody may have written."""
    return value if isinstance(value, int) and value > 0 else otherwise


def _counts(value: object) -> list[int]:
    return [each for each in value if isinstance(each, int)] if isinstance(value, list) else []
