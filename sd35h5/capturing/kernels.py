"""The reductions of `reductions.py` in Triton: the same contract, with the probabilities in registers only.

A tile of logits is one `tl.dot` of keys and queries in their own dtype with float32 sums, and its exponentials
never leave the registers. `_reduce_tiles` keeps a block of queries and walks over the keys, so that a query
is read once, and the keys of a head, which all its programs read, come from the L2 cache. The tile is keys ×
queries: what is summed over queries (the mass) is then summed within a warp, and what is summed over keys
(row sums, entropies) adds up element by element until the last key. Each program writes the sums of its own
queries, which `_add_blocks` adds in a fixed order: no atomics, so that a capture is reproducible.

With TRITON_INTERPRET=1 the kernels run on CPU tensors, which is how they are tested without a GPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35h5.capturing.reductions import KeyReduction
from sd35h5.store.schema import MANTISSA_BITS

_LOG2_E = math.log2(math.e)
_CELL_BLOCK, _MAP_BLOCK, _SUM_BLOCKS, _SUM_BLOCK, _ROUND_BLOCK = 64, 32, 16, 64, 2048
_SMALLEST_DOT = 16  # tl.dot takes no side below it


class Tiling(NamedTuple):
    """How `_reduce_tiles` is cut: queries and keys of a tile, warps of a program, tiles loaded ahead."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None  # of a thread, at most: more programs at a time on a multiprocessor


# the exponentials bind: small tiles leave registers for several programs a multiprocessor, which overlap
_WITH_ENTROPY, _WITHOUT = Tiling(64, 64, 4, 3), Tiling(64, 64, 4, 3)


def reduce_keys(
    query: Tensor, key: Tensor, lse: Tensor, image_tokens: int, *, entropy: bool = False
) -> KeyReduction:
    """Measure how both streams' queries attend to the given keys: see `reductions.reduce_keys`."""
    query, key = _multipliable(query), _multipliable(key)
    batch, heads, queries, width = query.shape
    keys, flat = key.shape[2], batch * heads
    tile = _WITH_ENTROPY if entropy else _WITHOUT
    image_blocks = triton.cdiv(image_tokens, tile.queries)
    blocks = image_blocks + triton.cdiv(queries - image_tokens, tile.queries)
    columns = keys + entropy  # the sum of a block's row entropies stands behind those of its keys
    partial = query.new_empty((flat, blocks, columns), dtype=torch.float32)
    row_sum = query.new_empty((batch, heads, queries), dtype=torch.float32)
    row_entropy = torch.empty_like(row_sum) if entropy else None
    _reduce_tiles[(blocks, flat)](
        query, key, lse, partial, row_sum, row_entropy if entropy else row_sum,
        heads, image_tokens, queries, keys, image_blocks, blocks, columns, width,
        width**-0.5 * _LOG2_E, *query.stride()[:3], *key.stride()[:3], *lse.stride(),
        ENTROPY=entropy, BLOCK_Q=tile.queries, BLOCK_K=tile.keys, BLOCK_D=_padded(width),
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    means = query.new_empty((batch, heads, 2, columns), dtype=torch.float32)
    _add_blocks[(triton.cdiv(columns, _SUM_BLOCK), flat)](
        partial, means, image_blocks, blocks, columns, image_tokens, queries - image_tokens,
        BLOCKS=_SUM_BLOCKS, BLOCK=_SUM_BLOCK,
    )  # fmt: skip
    return KeyReduction(
        mass=means[..., :keys],
        row_sum=row_sum,
        entropy=means[..., keys] if entropy else None,
        row_entropy=row_entropy,
    )


def attention_maps(query: Tensor, key: Tensor, lse: Tensor, patches: tuple[int, int], pool: int) -> Tensor:
    """Maps of A[patch, key], pooled before they are written: see `reductions.attention_maps`."""
    query, key = _multipliable(query), _multipliable(key)
    heads, _, width = query.shape
    height, length = patches
    rows, columns, count = triton.cdiv(height, pool), triton.cdiv(length, pool), key.shape[1]
    maps = query.new_empty((heads, count, rows, columns), dtype=torch.float32)
    _pool_maps[(triton.cdiv(rows * columns, _CELL_BLOCK), triton.cdiv(count, _MAP_BLOCK), heads)](
        query, key, lse, maps, height, length, columns, rows * columns, count, width,
        width**-0.5 * _LOG2_E, *query.stride()[:2], *key.stride()[:2], *lse.stride(),
        POOL=pool, BLOCK_C=_CELL_BLOCK, BLOCK_M=_MAP_BLOCK, BLOCK_D=_padded(width),
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return maps


def round_mantissa(values: Tensor, bits: int = MANTISSA_BITS) -> Tensor:
    """Round float32, read once and written once: see `reductions.round_mantissa`."""
    values = values.contiguous()
    rounded = torch.empty_like(values)
    _round_words[(triton.cdiv(values.numel(), _ROUND_BLOCK),)](
        values.view(torch.int32),
        rounded.view(torch.int32),
        values.numel(),
        DROP=23 - bits,
        BLOCK=_ROUND_BLOCK,
    )
    return rounded


def _padded(width: int) -> int:
    return max(_SMALLEST_DOT, triton.next_power_of_2(width))


def _multipliable(states: Tensor) -> Tensor:
    """Channels side by side; on the CPU float32, as the interpreter multiplies no bfloat16."""
    states = states if states.stride(-1) == 1 else states.contiguous()
    return states if states.is_cuda else states.float()


@triton.jit
def _reduce_tiles(
    query, key, lse, partial, row_sum, row_entropy,
    heads, image_tokens, queries, keys, image_blocks, blocks, columns, width, bits_per_dot,
    query_batch, query_head, query_row, key_batch, key_head, key_row, lse_batch, lse_head, lse_row,
    ENTROPY: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One block of one stream's queries of one head against all keys; logits are in bits, not nats."""
    block = tl.program_id(0)
    flat = tl.program_id(1).to(tl.int64)
    batch, head = flat // heads, flat % heads
    # blocks do not straddle the streams: those of the image first, then those of the text
    is_image = block < image_blocks
    first_row = tl.where(is_image, block * BLOCK_Q, image_tokens + (block - image_blocks) * BLOCK_Q)
    rows = first_row + tl.arange(0, BLOCK_Q)
    has_row = rows < tl.where(is_image, image_tokens, queries)
    channels = tl.arange(0, BLOCK_D)
    has_channel = channels < width
    queries_here = tl.load(
        query + batch * query_batch + head * query_head + rows[None, :] * query_row + channels[:, None],
        mask=has_row[None, :] & has_channel[:, None], other=0.0,
    )  # fmt: skip
    bits = 1.4426950408889634 * tl.load(
        lse + batch * lse_batch + head * lse_head + rows * lse_row, mask=has_row, other=0.0
    )
    # finite, so that a share of 0 times its logit is 0: of a row that is not there, of a key below
    bits = tl.where(has_row, bits, 1.0e30)
    sums = partial + (flat * blocks + block) * columns
    total = tl.zeros((BLOCK_K, BLOCK_Q), tl.float32)
    weighted = tl.zeros((BLOCK_K, BLOCK_Q), tl.float32)
    positions = tl.arange(0, BLOCK_K)
    keys_from = key + batch * key_batch + head * key_head + positions[:, None] * key_row + channels[None, :]
    whole = keys // BLOCK_K * BLOCK_K
    for rest in tl.static_range(2):  # whole tiles, which need no mask, then the last one
        for first_key in range(whole if rest else 0, keys if rest else whole, BLOCK_K):
            has_key = first_key + positions < keys
            there = (has_key[:, None] & has_channel[None, :]) if rest else has_channel[None, :]
            keys_here = tl.load(keys_from + first_key * key_row, mask=there, other=0.0)
            logits = tl.dot(keys_here, queries_here, input_precision="ieee") * bits_per_dot - bits[None, :]
            if rest:
                logits = tl.where(has_key[:, None], logits, -1.0e30)
            share = tl.exp2(logits)
            tl.store(sums + first_key + positions, tl.sum(share, 1), mask=has_key)
            total += share
            if ENTROPY:
                weighted += share * logits
    mass = tl.sum(total, 0)
    tl.store(row_sum + flat * queries + rows, mass, mask=has_row)
    if ENTROPY:
        # log Z − (Σ p log p)/Z; below 1e-30 float32 has too few digits left
        counts = mass > 1.0e-30
        safe = tl.where(counts, mass, 1.0)
        nats = 0.6931471805599453 * (tl.log2(safe) - tl.sum(weighted, 0) / safe)
        nats = tl.where(counts, nats, 0.0)
        tl.store(row_entropy + flat * queries + rows, nats, mask=has_row)
        tl.store(sums + keys, tl.sum(nats, 0))


@triton.jit
def _add_blocks(
    partial, means, image_blocks, blocks, columns, image_queries, text_queries,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Means over each stream's queries from the sums of its blocks, added in one order always."""
    flat = tl.program_id(1).to(tl.int64)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = positions < columns
    for stream in tl.static_range(2):
        start, stop = (image_blocks, blocks) if stream else (0, image_blocks)
        total = tl.zeros((BLOCKS, BLOCK), tl.float32)
        for first in range(start, stop, BLOCKS):
            number = first + tl.arange(0, BLOCKS)
            total += tl.load(
                partial + (flat * blocks + number[:, None]) * columns + positions[None, :],
                mask=(number < stop)[:, None] & there[None, :], other=0.0,
            )  # fmt: skip
        count = tl.maximum(text_queries if stream else image_queries, 1)
        tl.store(means + (flat * 2 + stream) * columns + positions, tl.sum(total, 0) / count, mask=there)


@triton.jit
def _pool_maps(
    query, key, lse, maps, height, length, columns, cells, count, width, bits_per_dot,
    query_head, query_row, key_head, key_row, lse_head, lse_row,
    POOL: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A block of cells of a block of one head's maps: the mean over the POOL × POOL patches of each cell.

    The patches of a cell are taken in turn, one tile for each place within the cell, so that the tile of sums
    is the pooled map itself. A cell at the edge averages the patches that it has.
    """
    cell = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(2).to(tl.int64)
    channels = tl.arange(0, BLOCK_D)
    has_channel = channels < width
    keys_here = tl.load(
        key + head * key_head + token[None, :] * key_row + channels[:, None],
        mask=(token < count)[None, :] & has_channel[:, None], other=0.0,
    )  # fmt: skip
    total = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    patches = tl.zeros((BLOCK_C,), tl.float32)
    for place in range(0, POOL * POOL):
        y = cell // columns * POOL + place // POOL
        x = cell % columns * POOL + place % POOL
        there = (cell < cells) & (y < height) & (x < length)
        rows = y * length + x
        queries_here = tl.load(
            query + head * query_head + rows[:, None] * query_row + channels[None, :],
            mask=there[:, None] & has_channel[None, :], other=0.0,
        )  # fmt: skip
        bits = 1.4426950408889634 * tl.load(lse + head * lse_head + rows * lse_row, mask=there, other=0.0)
        logits = tl.dot(queries_here, keys_here, input_precision="ieee") * bits_per_dot - bits[:, None]
        total += tl.where(there[:, None], tl.exp2(logits), 0.0)
        patches += there.to(tl.float32)
    pooled = total / tl.maximum(patches, 1.0)[:, None]
    tl.store(
        maps + (head * count + token[None, :]) * cells + cell[:, None],
        pooled, mask=(cell < cells)[:, None] & (token < count)[None, :],
    )  # fmt: skip


@triton.jit
def _round_words(values, rounded, count, DROP: tl.constexpr, BLOCK: tl.constexpr):
    """Round the words of float32 to a mantissa that is DROP bits shorter, half to even; not NaN and infinity."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(values + at, mask=at < count, other=0)
    near = (word + ((1 << (DROP - 1)) - 1) + ((word >> DROP) & 1)) & -(1 << DROP)
    finite = (word & 0x7F800000) != 0x7F800000
    tl.store(rounded + at, tl.where(finite, near, word), mask=at < count)
