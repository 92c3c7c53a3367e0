"""What stands out of many numbers: the few that lie apart from all others, and where a map is concentrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 3  # that can stand out together
APART = 2.0  # times the largest of the others, from which on they do
TENTH = 0.1


@dataclass(frozen=True)
class Leading:
    """The largest of some numbers.

    places: positions of those that stand out, the largest first; of the largest alone where none does. values: theirs.
    rest: the largest of the others, NaN without any. stands_out: whether they lie apart from the others. count: how
    many numbers were measured.
    """

    places: tuple[int, ...]
    values: tuple[float, ...]
    rest: float
    stands_out: bool
    count: int


def leading(values: Sequence[float] | np.ndarray) -> Leading | None:
    """Return the at most MOST largest numbers that are at least APART times every other, NaN left out.

    Of several such cuts that with the largest ratio. None where nothing was measured.
    """
    every = np.asarray(values, np.float64).ravel()
    there = np.flatnonzero(np.isfinite(every))
    if not there.size:
        return None
    order = there[np.argsort(-every[there], kind="stable")]
    ranked = every[order]
    ratios = [_ratio(ranked[cut - 1], ranked[cut]) for cut in range(1, min(MOST, len(ranked) - 1) + 1)]
    best = int(np.argmax(ratios)) + 1 if ratios else 1
    stands_out = bool(ratios) and ratios[best - 1] >= APART
    count = best if stands_out else 1
    rest = float(ranked[count]) if len(ranked) > count else float("nan")
    return Leading(
        tuple(order[:count].tolist()), tuple(ranked[:count].tolist()), rest, stands_out, len(there)
    )


def held_by_a_tenth(cells: np.ndarray) -> tuple[float, float] | None:
    """Return which part of a map's sum its heaviest tenth of cells holds, and which part of the cells that is.

    Formula: Σ of the ⌈n ÷ 10⌉ largest of n cells ÷ Σ of all.  Units: 1 (0..1).  None for a map without mass.
    """
    every = np.asarray(cells, np.float64).ravel()
    every = np.sort(every[np.isfinite(every)])[::-1]
    if not every.size or every.sum() <= 0:
        return None
    count = int(np.ceil(TENTH * every.size))
    return float(every[:count].sum() / every.sum()), count / every.size


def _ratio(larger: float, smaller: float) -> float:
    if larger <= 0:
        return 1.0  # nothing stands out of zeros
    return float(larger / smaller) if smaller > 0 else float("inf")
