"""Reductions of one attention call in plain torch: query, key, log-sum-exp in; masses, entropies, maps out.

`reduce_keys`, `attention_maps` and `round_mantissa` are the contract that the kernels in kernels.py keep too.

With the log-sum-exp of each row, A[q, k] = exp(q·k/√d − LSE[q]) needs no softmax pass. The probabilities
live in tiles of queries and are never whole; one tile's exponentials serve the mass, the groups, the
entropy, the maps and the self check.
Logits are in bits, not nats, inside a tile: torch's exp2 takes half the time of its exp on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sd35h5.store.schema import MANTISSA_BITS

IMAGE, TEXT = 0, 1  # positions along the query axis, as schema.QUERIES
_TILE_ELEMENTS = {"cpu": 1 << 21}
_TILE_ELEMENTS_ELSEWHERE = 1 << 25
_SMALLEST_ROW = 1e-30  # below this share float32 has too few digits left for an entropy


@dataclass(frozen=True)
class KeyReduction:
    """What a set of K keys receives from the queries of both streams; float32.

    Args:
        mass: (batch, heads, query stream, K), mean over the stream's queries of A[q, key].
        row_sum: (batch, heads, queries), sum over these keys of A[q, key]; None if not asked for.
        entropy: (batch, heads, query stream), mean over queries of the entropy of A over these keys,
            renormalised, in nats; None unless asked for. A query whose whole share of these keys is below
            1e-30 counts as 0.
        row_entropy: (batch, heads, queries), the same of each query; None unless asked for.
    """

    mass: Tensor
    row_sum: Tensor | None
    entropy: Tensor | None
    row_entropy: Tensor | None

    def of_row(self, row: int) -> KeyReduction:
        """The reduction of one batch row alone, which keeps its axis."""
        rows = slice(row % len(self.mass), row % len(self.mass) + 1)
        return KeyReduction(*(None if each is None else each[rows] for each in vars(self).values()))


@dataclass(frozen=True)
class TopKeys:
    """The heaviest keys of each head and query stream; all (…, query stream, rank), heaviest first."""

    stream: Tensor  # 0 image, 1 text
    index: Tensor  # patch (row-major), or token
    mass: Tensor
    value_norm: Tensor


class Workspace:
    """Two float32 buffers that every call reuses: allocating them anew costs as much as filling them."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return an uninitialised tensor of this shape, valid until the name is taken again."""
        size = 1
        for length in shape:
            size *= length
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.device != device:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.float32, device=device)
        return buffer[:size].view(shape)


def reduce_keys(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    image_tokens: int,
    *,
    workspace: Workspace,
    entropy: bool = False,
    row_sums: bool = True,
    tile: int | None = None,
) -> KeyReduction:
    """Measure how both streams' queries attend to the given keys, in one pass over their exponentials.

    Args:
        query: (batch, heads, S, d), image queries first.
        key: (batch, heads, K, d), any part of the joint key axis.
        lse: (batch, heads, S) float32, log-sum-exp of q·kᵀ/√d over the **whole** joint key axis.
        image_tokens: number of image queries; the others are text queries.
        tile: queries a tile; chosen by memory if None. The result does not depend on it.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    flat = batch * heads
    scaled_key = key.float() * (width**-0.5 / math.log(2))
    scaled_key = scaled_key.reshape(flat, keys, width).transpose(1, 2)  # (BH, d, K)
    flat_query, bits = query.reshape(flat, queries, width), (lse / math.log(2)).reshape(flat, queries, 1)
    mass = query.new_zeros((flat, 2, keys), dtype=torch.float32)
    row_sum = query.new_empty((flat, queries), dtype=torch.float32) if entropy or row_sums else None
    row_entropy = torch.empty_like(row_sum) if entropy else None
    for stream, start, end in _tiles(queries, image_tokens, tile or _tile_rows(flat, keys, query.device)):
        shape = (flat, end - start, keys)
        logits = workspace.take("logits", shape, query.device)
        torch.baddbmm(bits[:, start:end], flat_query[:, start:end].float(), scaled_key, beta=-1, out=logits)
        share = torch.exp2(logits, out=workspace.take("share", shape, query.device))
        mass[:, stream] += share.sum(1)
        if row_sum is not None:
            torch.sum(share, 2, out=row_sum[:, start:end])
        if row_entropy is not None:
            row_entropy[:, start:end] = _row_entropy(logits, share, row_sum[:, start:end])
    counts = torch.tensor([image_tokens, queries - image_tokens], device=query.device).clamp(min=1)
    return KeyReduction(
        mass=(mass / counts[:, None]).view(batch, heads, 2, keys),
        row_sum=None if row_sum is None else row_sum.view(batch, heads, queries),
        entropy=None if row_entropy is None else _stream_means(row_entropy, batch, image_tokens),
        row_entropy=None if row_entropy is None else row_entropy.view(batch, heads, queries),
    )


def _row_entropy(logits: Tensor, share: Tensor, row_sum: Tensor) -> Tensor:
    """Entropy in nats of each row, renormalised: log Z − (Σ p log p)/Z with Z = Σ p.

    Args:
        logits: log2 p; they are spoilt.
        share: p.
    """
    nats = row_sum.log() - math.log(2) * logits.mul_(share).sum(2) / row_sum
    return torch.where(row_sum > _SMALLEST_ROW, nats, 0.0)


def _stream_means(values: Tensor, batch: int, image_tokens: int) -> Tensor:
    """(batch * heads, queries) -> (batch, heads, query stream)."""
    values = values.unflatten(0, (batch, -1))
    return torch.stack([values[..., :image_tokens].mean(-1), values[..., image_tokens:].mean(-1)], dim=-1)


def _tile_rows(flat: int, keys: int, device: torch.device) -> int:
    return max(1, _TILE_ELEMENTS.get(device.type, _TILE_ELEMENTS_ELSEWHERE) // (flat * keys))


def _tiles(queries: int, image_tokens: int, rows: int) -> list[tuple[int, int, int]]:
    """(query stream, start, end) of tiles of about equal height that do not straddle the streams."""
    tiles = []
    for stream, first, last in ((IMAGE, 0, image_tokens), (TEXT, image_tokens, queries)):
        count = -(-(last - first) // rows)
        edges = [first + (last - first) * i // count for i in range(count + 1)] if count else [first]
        tiles += [(stream, start, end) for start, end in pairwise(edges)]
    return tiles


def group_mass(text_mass: Tensor, membership: Tensor) -> Tensor:
    """Sum the mass of text keys over token groups; what is left of 1 is the mass of the image keys.

    Args:
        text_mass: (batch, heads, query stream, text tokens).
        membership: float32 (batch, text tokens, text groups), 1 where a token belongs to a group.

    Returns: float32 (batch, heads, query stream, text groups + 1), the image last.
    """
    groups = (text_mass.flatten(1, 2) @ membership).unflatten(1, text_mass.shape[1:3])
    return torch.cat([groups, (1 - groups.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)


def joint_entropy(parts: Sequence[KeyReduction], image_tokens: int) -> Tensor:
    """Mean entropy in nats of whole rows of A, from parts that hold every key once: Σ Z (H − log Z).

    Args:
        parts: reductions of the same batch rows, with `row_entropy` H and `row_sum` Z.

    Returns: float32 (batch, heads, query stream).
    """
    whole = sum(part.row_sum * part.row_entropy - torch.xlogy(part.row_sum, part.row_sum) for part in parts)
    return _stream_means(whole.flatten(0, 1), whole.shape[0], image_tokens)


def attention_rows(query: Tensor, key: Tensor, lse: Tensor) -> Tensor:
    """A[q, k] of chosen queries and keys.

    Args:
        query, lse: (heads, R, d) and float32 (heads, R) of the chosen queries.
        key: (heads, K, d), any part of the joint key axis.

    Returns: float32 (heads, R, K); over all keys each row sums to 1.
    """
    logits = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
    return (logits - lse.unsqueeze(-1)).exp()


def attention_maps(query: Tensor, key: Tensor, lse: Tensor, patches: tuple[int, int], pool: int) -> Tensor:
    """Maps of A[patch, key] of chosen keys, averaged over pool × pool patches.

    Args:
        query, lse: (heads, patches, d) and float32 (heads, patches) of the image's queries, row-major.
        key: (heads, M, d).
        patches: (y, x) of the image.

    Returns: float32 (heads, M, y, x); cells at the edge average the patches that they have.
    """
    return pool_columns(attention_rows(query, key, lse), *patches, pool)


def value_norms(value: Tensor) -> Tensor:
    """Euclidean norm of each value vector in float32: (…, S, d) -> (…, S)."""
    return torch.linalg.vector_norm(value, dim=-1, dtype=torch.float32)


def top_keys(image_mass: Tensor, text_mass: Tensor, norms: Tensor, count: int) -> TopKeys:
    """Pick the heaviest keys of the whole joint axis.

    Args:
        image_mass, text_mass: (…, query stream, image patches), (…, query stream, text tokens).
        norms: (…, S), image first: see `value_norms`; that of each picked key goes with it.
    """
    patches = image_mass.shape[-1]
    mass, joint_index = torch.cat([image_mass, text_mass], dim=-1).topk(count, dim=-1)
    is_text = joint_index >= patches
    return TopKeys(
        stream=is_text.to(torch.uint8),
        index=torch.where(is_text, joint_index - patches, joint_index).to(torch.int32),
        mass=mass,
        value_norm=norms.unsqueeze(-2).expand(*mass.shape[:-1], -1).gather(-1, joint_index),
    )


def pool_columns(columns: Tensor, height: int, width: int, pool: int) -> Tensor:
    """Columns (…, patches, M) as maps (…, M, y, x), averaged over pool × pool patches.

    Cells at the edge average the patches that they have.
    """
    maps = columns.transpose(-1, -2).unflatten(-1, (height, width))
    if pool == 1:
        return maps
    flat = maps.reshape(-1, 1, height, width)
    pooled = F.avg_pool2d(flat, pool, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*maps.shape[:-2], *pooled.shape[-2:])


def pooled_centres(length: int, pool: int) -> list[float]:
    """Centre of each pooled cell in patch units: patches 0 and 1 pooled lie at 0.5."""
    starts = range(0, length, pool)
    return [(start + min(start + pool, length) - 1) / 2 for start in starts]


def gate_statistics(gate: Tensor, heads: int) -> Tensor:
    """Statistics of a stream's gate over its tokens (and channels), in the order of `GATE_STATISTICS`.

    Args:
        gate: (batch, tokens, heads) or (batch, tokens, heads * d).

    Returns: float32 (statistic, batch, heads).
    """
    values = gate.float().unflatten(-1, (heads, -1))
    values = values.permute(0, 2, 1, 3).flatten(2)  # (B, H, tokens * channels)
    low, high = values.aminmax(dim=-1)
    return torch.stack(
        [
            values.mean(-1),
            values.std(-1, correction=0),
            low,
            high,
            (values < 0.1).float().mean(-1),
            (values < 0.5).float().mean(-1),
        ]
    )


def round_mantissa(values: Tensor, bits: int = MANTISSA_BITS) -> Tensor:
    """Round float32 on its device as `store.blocks.round_mantissa` does on the host, to the bit."""
    raw = values.contiguous().view(torch.int32)
    drop = 23 - bits
    half = (1 << (drop - 1)) - 1
    rounded = (raw + half + ((raw >> drop) & 1)) & -(1 << drop)
    return torch.where(values.isfinite(), rounded.view(torch.float32), values)
