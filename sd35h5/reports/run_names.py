"""What runs are called in pages and their URLs: by their file, no two alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd35h5.store.schema import PARTS_SUFFIX, SUFFIX
from sd35h5.store.showable import showable


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return a name a path: its stem, with the folder's name before it where two stems are equal, then a
    number."""
    stems = [showable(path.name.removesuffix(PARTS_SUFFIX).removesuffix(SUFFIX)) for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{showable(path.parent.name)}/{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
