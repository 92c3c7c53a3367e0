"""Pieces of work that are under way at the same time, and their answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
AHEAD = 2  # pieces of work for each thread that are under way before the first is taken: what bounds memory


def in_order(submit: Callable[[T], Any], pieces: Sequence[T], ahead: int) -> Iterator[Any]:
    """Yield what the pieces give, in their order, with so many under way at a time."""
    waiting: deque[Any] = deque()
    rest = iter(pieces)
    try:
        for piece in rest:
            waiting.append(submit(piece))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
