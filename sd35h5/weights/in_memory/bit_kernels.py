"""`bits.piece_numbers` and `bits.gathered` in Triton: one launch for all tensors, each byte read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35h5.weights.in_memory.copying import sent

_ROWS, _COLUMNS = 64, 1024  # of a program: few enough for many of them to wait for memory at once
_BLOCK = 4096  # bytes of a program


def piece_numbers(tensors: Sequence[Tensor], weights: Tensor, side: int) -> Tensor:
    """Numbers of the whole rows of contiguous tensors: see `bits.piece_numbers`."""
    pieces = []  # address and rows
    for tensor in tensors:
        rows, address = tensor.nbytes // (4 * side), tensor.data_ptr()
        pieces += [(address + 4 * side * first, min(rows - first, side)) for first in range(0, rows, side)]
    table = sent(torch.tensor(pieces), weights.device)
    numbers = torch.zeros(len(pieces), dtype=torch.int64, device=weights.device)
    with _device_of(weights):
        _add_rows[(len(pieces), triton.cdiv(side, _ROWS), side // min(side, _COLUMNS))](
            table, weights, numbers, SIDE=side, ROWS=_ROWS, COLUMNS=min(side, _COLUMNS)
        )
    return numbers


def gathered(tensors: Sequence[Tensor], firsts: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Bytes of contiguous tensors, each tensor's from its first on by its stride: see `bits.gathered`."""
    sizes = np.array([tensor.nbytes for tensor in tensors])
    counts = -(-(sizes - firsts) // strides)
    addresses = np.array([tensor.data_ptr() for tensor in tensors]) + firsts
    ends = np.cumsum(counts)
    table = sent(
        torch.from_numpy(np.stack([addresses, strides, counts, ends - counts], 1)), tensors[0].device
    )
    found = torch.empty(int(ends[-1]), dtype=torch.uint8, device=table.device)
    with _device_of(table):
        _gather[(len(tensors), triton.cdiv(int(counts.max()), _BLOCK))](table, found, BLOCK=_BLOCK)
    return found


def _device_of(tensor: Tensor) -> torch.cuda.device:
    """Launch where the tensor is; nothing changes for the CPU of Triton's interpreter."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


@triton.jit
def _add_rows(table, weights, numbers, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add some rows' words of some columns of a piece, each times the sum of its column's and its row's weight, to its
    number.

    That is the sum of weighted sums over rows and over columns; wrapping makes the order of additions indifferent.
    """
    piece, first = tl.program_id(0), tl.program_id(1) * ROWS
    words = tl.load(table + 2 * piece).to(tl.pointer_type(tl.int32))
    rows = tl.load(table + 2 * piece + 1).to(tl.int32)
    if first < rows:
        column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
        of_column = tl.load(weights + column)
        total = tl.zeros((COLUMNS,), tl.int64)
        for row in range(first, min(first + ROWS, rows)):
            of_row = tl.load(weights + SIDE + row)
            word = tl.load(words + row * SIDE + column)
            total += word.to(tl.int64) * (of_column + of_row)
        tl.atomic_add(numbers + piece, tl.sum(total))


@triton.jit
def _gather(table, found, BLOCK: tl.constexpr):
    """Copy some of the bytes that a line of the table (address, stride, count, place) tells of."""
    line = table + 4 * tl.program_id(0)
    source = tl.load(line).to(tl.pointer_type(tl.uint8))
    stride, count, place = tl.load(line + 1), tl.load(line + 2), tl.load(line + 3)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(source + number * stride, mask=number < count, other=0)
    tl.store(found + place + number, byte, mask=number < count)
