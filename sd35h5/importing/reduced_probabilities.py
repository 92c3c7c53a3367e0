"""From the probabilities of one layer to what a store keeps of them: masses, entropies, maps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sd35h5.errors import ForeignFileError
from sd35h5.measuring.reductions import pool_columns

MOST_OF_A_ROW = 1.01  # bfloat16 rounds each of some hundred probabilities by up to 0.2 %
_SMALLEST_ROW = 1e-30  # as in measuring.reductions


@dataclass(frozen=True)
class Reduced:
    """What the text keys receive from the image's queries of one batch row in one layer; float32.

    Args:
        mass: (head, token), mean over queries.
        entropy: (head), mean over queries of the entropy over the text keys, renormalised, in nats.
        maps: (map, head, y, x) of chosen tokens, averaged over pool × pool patches; None if there are none.
        least: the smallest sum of a row.
    """

    mass: Tensor
    entropy: Tensor
    maps: Tensor | None
    least: float


def reduce_blocks(
    blocks: Iterable[tuple[slice, slice, Tensor]], heads: int, patches: tuple[int, int], tokens: int, at: str,
    mapped: Tensor | None = None, pool: int = 1,
) -> Reduced:  # fmt: skip
    """Reduce a layer, block by block.

    Args:
        blocks: see `AttentionFile.blocks`. at: how the place is told.
        mapped: int64, tokens with maps.
    Raises: ForeignFileError: values that are no shares of attention.
    """
    mass, entropy = torch.zeros(heads, tokens), torch.zeros(heads)
    columns = None if mapped is None else torch.empty(heads, *patches, len(mapped))
    queries, least = patches[0] * patches[1], float("inf")
    for head, rows, share in blocks:
        flat = share.flatten(1, 2)  # (head, query, token)
        row_sum = flat.sum(-1)
        _check(flat, row_sum, at)
        least = min(least, float(row_sum.min()))
        mass[head] += flat.sum(1) / queries
        nats = row_sum.log() - torch.xlogy(flat, flat).sum(-1) / row_sum
        entropy[head] += torch.where(row_sum > _SMALLEST_ROW, nats, 0.0).sum(-1) / queries
        if columns is not None:
            columns[head, rows] = share[..., mapped]
    maps = None
    if columns is not None:
        maps = pool_columns(columns.flatten(1, 2), *patches, pool).transpose(0, 1)
    return Reduced(mass, entropy, maps, least)


def _check(share: Tensor, row_sum: Tensor, at: str) -> None:
    low, high = float(share.amin()), float(row_sum.amax())
    if not torch.isfinite(row_sum).all() or not low == low:
        raise ForeignFileError(
            f"{at} has values that are not finite (NaN or infinite): the older tool's softmax overflowed"
        )
    if low < 0 or high > MOST_OF_A_ROW:
        told = f"a value of {low:.3g}" if low < 0 else f"a patch that gives {high:.3g} to the text"
        raise ForeignFileError(
            f"{at} has {told}: these are no shares of attention, which lie in 0..1 and sum to 1 at most"
        )
