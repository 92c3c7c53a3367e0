"""Which samples are drawn together, and which part of them one process of many draws: arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Share:
    """One part of several of a capture, or a few of them; every count-th batch belongs to a number.

    Args:
        numbers: 1..count, in order.
    """

    numbers: tuple[int, ...]
    count: int

    def __str__(self) -> str:
        return f"{ranges(self.numbers)}/{self.count}"

    def of(self, batches: Sequence[range]) -> list[range]:
        """The batches of this share, of all that there are: whatever is sealed, a share stays the same."""
        return [batch for place, batch in enumerate(batches) if place % self.count + 1 in self.numbers]


def batches_of(planned: int, batch_size: int, cuts: Iterable[int] = ()) -> list[range]:
    """Indices of the samples of each call of the pipeline, cut from the whole list, so that a sample keeps its
    companions whoever draws it and when.

    Args:
        cuts: how many samples there were to be before the list became longer: batches begin there anew.
    """
    ends = sorted({0, planned, *(cut for cut in cuts if 0 < cut < planned)})
    return [
        range(first, min(first + batch_size, end))
        for begin, end in pairwise(ends)
        for first in range(begin, end, batch_size)
    ]


def share_of_missing(batches: Sequence[range], missing: Iterable[int], count: int) -> Share:
    """The shares of `count` to which missing samples belong."""
    lacking = set(missing)
    numbers = {place % count + 1 for place, batch in enumerate(batches) if not lacking.isdisjoint(batch)}
    return Share(tuple(sorted(numbers)), count)


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short: `1,4-7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
