"""Looks at the bits of many tensors at once: exact sums of all of them, and bytes from all over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sd35h5.devices import takes_triton
from sd35h5.weights.in_memory.copying import sent

SIDE = 4096  # words of 32 bits in a row, and rows in a piece: 64 MiB, whose sums are a thousandth of it
ROW_BYTES = 4 * SIDE
_STRIP = 64  # rows that a processor's cache holds, widened


class Looks(NamedTuple):
    """How tensors on one device are looked at."""

    piece_numbers: Callable[..., Tensor]
    gathered: Callable[..., Tensor]
    together: bool  # whether many tensors take one launch


@torch.no_grad()
def bit_sums(tensors: Iterable[Tensor]) -> Callable[[], list[int]]:
    """Numbers that change with any bit of any tensor, and with their order: one a piece of 64 MiB.

    A piece's words are summed along its rows and its columns, exactly, in one look at each; these sums are weighted by
    odd numbers of 64 bits and added, wrapping. The numbers of all pieces come over in one go.

    Returns: what waits for them; a GPU has them on its list once this returns, and nothing waited for it.
    """
    numbers: list[Tensor] = []
    rests: list[
        tuple[Tensor, int]
    ] = []  # what fills no row: joined, so that thousands of small tensors take few calls
    for (device, together), group in groupby(_laid_out(tensors), key=lambda each: (each[0].device, each[1])):
        looks, weights = looks_on(device), sent(odd_numbers(2 * SIDE), device)
        batch = []
        for data, _ in group:
            whole = data.nbytes // ROW_BYTES * ROW_BYTES
            if whole < data.nbytes:
                rests.append((data, whole) if together else (_bytes(data)[whole:].clone(), 0))
            if whole and together:
                batch.append(data)
            elif whole:  # neither copies nor what an offload reads from a disk gathers
                numbers.append(looks.piece_numbers([data], weights, SIDE))
        numbers += [looks.piece_numbers(batch, weights, SIDE)] if batch else []
    if rests:
        ends = _joined(rests)
        ends = nn.functional.pad(ends, (0, -len(ends) % ROW_BYTES))
        weights = sent(odd_numbers(2 * SIDE), ends.device)
        numbers.append(looks_on(ends.device).piece_numbers([ends], weights, SIDE))

    def awaited() -> list[int]:
        devices = {each.device for each in numbers}
        told = {
            device: iter(torch.cat([n for n in numbers if n.device == device]).tolist()) for device in devices
        }
        return [next(told[each.device]) for each in numbers for _ in range(len(each))]

    return awaited


@torch.no_grad()
def bytes_all_over(tensors: Iterable[Tensor], count: int) -> dict[torch.device, Tensor]:
    """About so many bytes of each tensor, at equal distances: device -> uint8 (bytes of all tensors there)."""
    there: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            there.setdefault(tensor.device, []).append(tensor.contiguous())
    found = {}
    for device, held in there.items():
        strides = [
            each.nbytes // count | 1 for each in held
        ]  # odd, so that every byte of a number has its turn
        found[device] = looks_on(device).gathered(held, [0] * len(held), strides)
    return found


def _laid_out(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each tensor as words of 32 bits can be read from it in order, and whether it may be kept for one launch."""
    together: dict[torch.device, bool] = {}
    for tensor in tensors:
        data = tensor.contiguous()
        if data.data_ptr() % 4:
            data = data.clone()
        if data.device not in together:
            together[data.device] = looks_on(data.device).together
        yield data, together[data.device] and data is tensor


def _joined(rests: Sequence[tuple[Tensor, int]]) -> Tensor:
    """The bytes of tensors from places on, on the first one's device."""
    joined = []
    for device, group in groupby(rests, key=lambda rest: rest[0].device):
        held, firsts = zip(*group, strict=True)
        joined.append(looks_on(device).gathered(held, firsts, [1] * len(held)))
    return torch.cat([each.to(joined[0].device) for each in joined])


def looks_on(device: torch.device) -> Looks:
    """The kernels where they run, else plain torch."""
    if not takes_triton(device):
        return Looks(piece_numbers, gathered, together=False)
    from sd35h5.weights.in_memory import bit_kernels

    return Looks(bit_kernels.piece_numbers, bit_kernels.gathered, together=True)


def piece_numbers(tensors: Sequence[Tensor], weights: Tensor, side: int) -> Tensor:
    """Numbers of the whole rows of contiguous tensors, int64 (pieces of all tensors).

    Args:
        weights: int64, of each column of a row, then of each row of a piece.
        side: words in a row, and rows in a piece.
    """
    numbers = []
    for tensor in tensors:
        for piece in _rows(tensor, side).split(side):
            columns, rows = _along_both(piece)
            numbers.append((columns * weights[:side]).sum() + (rows * weights[side:][: len(rows)]).sum())
    return torch.stack(numbers)


def gathered(tensors: Sequence[Tensor], firsts: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Bytes of contiguous tensors on one device, one after the other: each tensor's from its first on by its stride."""
    pairs = zip(tensors, firsts, strides, strict=True)
    return torch.cat([_bytes(tensor)[first::stride] for tensor, first, stride in pairs])


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _rows(tensor: Tensor, side: int) -> Tensor:
    """The whole rows of a tensor's words."""
    data = _bytes(tensor)
    return data[: len(data) // (4 * side) * (4 * side)].view(torch.int32).view(-1, side)


def _along_both(words: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of int32 (row, column) over the rows and over the columns, in int64, where they cannot overflow."""
    if words.device.type != "cpu":
        return words.sum(0, dtype=torch.int64), words.sum(1, dtype=torch.int64)
    wide = (strip.long() for strip in words.split(_STRIP))
    sums = [(strip.sum(0), strip.sum(1)) for strip in wide]
    return torch.stack([columns for columns, _ in sums]).sum(0), torch.cat([rows for _, rows in sums])


def odd_numbers(count: int) -> Tensor:
    """Odd numbers of 64 bits that look like chance and are the same everywhere (splitmix64)."""
    mixed = torch.arange(1, count + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return (mixed ^ _shifted(mixed, 31)) | 1


def _shifted(values: Tensor, bits: int) -> Tensor:
    """int64 shifted to the right, with zeros from the left."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
