"""`fingerprint.piece_numbers` in Triton: each word is read once, and a whole tensor takes one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 8  # of a program: a divisor of a piece's rows


def piece_numbers(words: Tensor, weights: Tensor) -> Tensor:
    """Numbers of int32 (row, column), one a piece of as many rows as there are columns: see
    `fingerprint.piece_numbers`."""
    rows, side = words.shape
    numbers = torch.zeros(triton.cdiv(rows, side), dtype=torch.int64, device=words.device)
    _add_rows[(triton.cdiv(rows, _ROWS),)](
        words, weights, numbers, words.numel(), SIDE=side, ROWS=_ROWS, num_warps=8
    )
    return numbers


@triton.jit
def _add_rows(words, weights, numbers, count, SIDE: tl.constexpr, ROWS: tl.constexpr):
    """Add some rows' words, each times the sum of its column's and its row's weight, to their piece's number.

    That is the sum of weighted sums over rows and over columns; wrapping makes the order of additions indifferent.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, SIDE)
    of_column = tl.load(weights + column)
    total = tl.zeros((SIDE,), tl.int64)
    for number in tl.static_range(ROWS):
        row = first + number
        of_row = tl.load(weights + SIDE + row % SIDE)
        at = row * SIDE + column
        word = tl.load(words + at, mask=at < count, other=0)
        total += word.to(tl.int64) * (of_column + of_row)
    tl.atomic_add(numbers + first // SIDE, tl.sum(total))
