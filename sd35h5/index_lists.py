"""Lists of indices as options spell them: `all`, `every:4` or `0,5,9-12`. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sd35h5.errors import ConfigError

_LIST = r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*"


def choose(option: str, text: str, count: int, what: str) -> list[int]:
    """Read `all`, `every:N` or `0,5,9-12` as indices below `count`, ascending.

    Raises:
        ConfigError: another text, or an index that is not among `count`.
    """
    return choose_among(option, text, range(count), what)


def choose_among(option: str, text: str, known: Sequence[int], what: str) -> list[int]:
    """Read a list of indices of which some may be absent, as in a slice: `every:N` is every Nth of those that are
    there, `9-12` those between. Returns: indices, ascending.

    Args:
        known: those that are there, ascending.
    Raises:
        ConfigError: another text, or an index that is not there.
    """
    if text == "all":
        return list(known)
    if match := re.fullmatch(r"every:([1-9]\d*)", text):
        return list(known[:: int(match[1])])
    if not re.fullmatch(_LIST, text):
        raise ConfigError(
            f"--{option} {text!r} is not understood: write all, every:4, or a list such as 0,5,9-12"
        )
    chosen: set[int] = set()
    counts_up = False
    for part in text.split(","):
        first, _, last = part.partition("-")
        for end in (first, last or first):
            if int(end) > known[-1] or (not last and int(end) not in known):
                raise ConfigError(f"--{option} names {what} {end}, but {_told(known, what)}")
        counts_up |= int(first) <= int(last or first)
        chosen |= {index for index in known if int(first) <= index <= int(last or first)}
    if not counts_up:
        raise ConfigError(f"--{option} {text!r} counts backwards: write the smaller number first")
    if not chosen:
        raise ConfigError(f"--{option} {text!r} names no {what} that is there: {_told(known, what)}")
    return sorted(chosen)


def _told(known: Sequence[int], what: str) -> str:
    if list(known) == list(range(len(known))):
        return f"{len(known)} {what}s are numbered 0..{len(known) - 1}"
    shown = ", ".join(map(str, known[:12])) + (", …" if len(known) > 12 else "")
    return f"the {what}s there are {shown}"
