"""What runs are called in pages and their URLs: by their file and the folders above that tell it, no two alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sd35h5.store.runs import stem_of
from sd35h5.store.showable import showable

ROOM = 36  # letters of a name in a list


def run_names(paths: Sequence[Path], folders: Sequence[Path] | None = None) -> list[str]:
    """Return a name a path: what lies below its folder, without the ending, so that it stays when others come; where
    two are equal, with as many folders above as tell them apart, then with a number.

    Args: folders: in which each was found; by default the one that it lies in.
    """
    folders = [path.parent for path in paths] if folders is None else folders
    depths = [
        len(path.relative_to(folder).parts) if path != folder else 1
        for path, folder in zip(paths, folders, strict=True)
    ]
    names = [_named(path, depth) for path, depth in zip(paths, depths, strict=True)]
    while alike := [place for name in _repeated(names) for place in _that_differ_above(name, names, paths)]:
        for place in alike:
            depths[place] += 1
            names[place] = _named(paths[place], depths[place])
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def short_names(names: Sequence[str], room: int = ROOM) -> dict[str, str]:
    """Return for each name what a narrow list shows: its last folders, as many as fit, and as tell it apart."""
    return {name: _shortened(name, names, room) for name in names}


def _shortened(name: str, names: Sequence[str], room: int) -> str:
    if len(name) <= room:
        return name
    parts = name.split("/")
    ends = ["/".join(parts[-count:]) for count in range(len(parts) - 1, 0, -1)]  # the longest first
    clear = [end for end in ends if sum(other.endswith(f"/{end}") or other == end for other in names) == 1]
    fitting = [end for end in clear if len(end) + 2 <= room] or clear[-1:]
    return f"…/{fitting[0]}" if fitting else name


def _named(path: Path, depth: int) -> str:
    above = path.parts[-depth:-1] if depth > 1 else ()
    return "/".join(map(showable, (*above, stem_of(path.name))))


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _that_differ_above(name: str, names: Sequence[str], paths: Sequence[Path]) -> list[int]:
    """The places of a repeated name, where folders can tell them apart: one folder holds run.h5 and run.hdf5."""
    places = [place for place, other in enumerate(names) if other == name]
    return places if len({paths[place].parent for place in places}) > 1 else []
