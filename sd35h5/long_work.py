"""A bar over long work, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def counted(things: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Go through things under a bar with an estimate, which shows if it takes more than two seconds.

    Args:
        total: how many there are, where things cannot tell.
    """
    yield from tqdm(things, desc=what, total=total, file=sys.stderr, dynamic_ncols=True, delay=2, leave=False)
