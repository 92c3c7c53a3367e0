"""The reductions of `reductions.py` in Triton: the same contract, with the probabilities in registers only.

A tile of logits is one `tl.dot` of queries and keys in their own dtype with float32 sums, and its exponentials
never leave the registers. A program of `_reduce_tiles` keeps a block of keys and walks over a chunk of queries,
so that what is summed over queries (the mass) adds up element by element until the last tile, and what is
summed over a block's keys (row sums, entropies) is summed within a warp. `_finish_rows` and `_add_chunks` add
the blocks' and chunks' sums in one order always: no atomics, so that a capture is reproducible.

With TRITON_INTERPRET=1 the kernels run on CPU tensors, which is how they are tested without a GPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35h5.measuring.reductions import KeyReduction

_LOG2_E = math.log2(math.e)
_CELL_BLOCK, _MAP_BLOCK = 64, 32
_SUM_TILE, _ROW_TILE = (16, 64), (8, 512)  # partial sums × what they are sums of
_SMALLEST_DOT = 16  # tl.dot takes no side below it


class Tiling(NamedTuple):
    """How `_reduce_tiles` is cut."""

    queries: int  # of a tile
    keys: int
    warps: int  # of a program
    stages: int  # tiles loaded ahead
    chunk: int  # queries of a program
    registers: int | None = None  # of a thread, at most: more programs at a time on a multiprocessor


# the exponentials bind: small tiles leave registers for several programs a multiprocessor, which overlap
_WITH_ENTROPY, _WITHOUT = Tiling(64, 128, 4, 3, 512, 168), Tiling(64, 64, 4, 3, 1024, 96)


def reduce_keys(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    image_tokens: int,
    *,
    entropy: bool = False,
    row_sums: bool = True,
) -> KeyReduction:
    """Measure how both streams' queries attend to the given keys: see `reductions.reduce_keys`."""
    query, key, tile = _multipliable(query), _multipliable(key), _WITH_ENTROPY if entropy else _WITHOUT
    batch, heads, queries, width = query.shape
    keys, flat, rows = key.shape[2], batch * heads, entropy or row_sums
    image_chunks = triton.cdiv(image_tokens, tile.chunk)
    chunks = image_chunks + triton.cdiv(queries - image_tokens, tile.chunk)
    key_blocks = triton.cdiv(keys, tile.keys)
    columns = keys + entropy  # the sum of a chunk's row entropies stands behind those of the keys
    partial = query.new_empty((flat, chunks, columns), dtype=torch.float32)
    parts = query.new_empty((flat, key_blocks, queries, 1 + entropy) if rows else (1,), dtype=torch.float32)
    _reduce_tiles[(chunks, key_blocks, flat)](
        query, key, lse, partial, parts,
        heads, image_tokens, queries, keys, image_chunks, chunks, columns, width,
        width**-0.5 * _LOG2_E, *query.stride()[:3], *key.stride()[:3], *lse.stride(),
        ROWS=rows, ENTROPY=entropy, FULL_WIDTH=width == _padded(width), CHUNK=tile.chunk,
        BLOCK_Q=tile.queries, BLOCK_K=tile.keys, BLOCK_D=_padded(width),
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    row_sum = query.new_empty((batch, heads, queries), dtype=torch.float32) if rows else None
    row_entropy = torch.empty_like(row_sum) if entropy else None
    if rows:
        _finish_rows[(chunks, flat)](
            parts, partial, row_sum, row_entropy if entropy else row_sum, image_tokens, queries, keys, key_blocks,
            image_chunks, chunks, columns,
            ENTROPY=entropy, CHUNK=tile.chunk, BLOCKS=_ROW_TILE[0], BLOCK=_ROW_TILE[1],
        )  # fmt: skip
    means = query.new_empty((batch, heads, 2, columns), dtype=torch.float32)
    _add_chunks[(triton.cdiv(columns, _SUM_TILE[1]), flat)](
        partial, means, image_chunks, chunks, columns, image_tokens, queries - image_tokens,
        BLOCKS=_SUM_TILE[0], BLOCK=_SUM_TILE[1],
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
    maps = query.new_empty((count, heads, rows, columns), dtype=torch.float32)  # as the file has them
    _pool_maps[(triton.cdiv(rows * columns, _CELL_BLOCK), triton.cdiv(count, _MAP_BLOCK), heads)](
        query, key, lse, maps, height, length, columns, rows * columns, count, width,
        width**-0.5 * _LOG2_E, *query.stride()[:2], *key.stride()[:2], *lse.stride(),
        POOL=pool, BLOCK_C=_CELL_BLOCK, BLOCK_M=_MAP_BLOCK, BLOCK_D=_padded(width),
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return maps.transpose(0, 1)


def _padded(width: int) -> int:
    return max(_SMALLEST_DOT, triton.next_power_of_2(width))


def _multipliable(states: Tensor) -> Tensor:
    """Channels side by side; on the CPU float32, as the interpreter multiplies no bfloat16."""
    states = states if states.stride(-1) == 1 else states.contiguous()
    return states if states.is_cuda else states.float()


@triton.jit
def _chunk_span(chunk, image_chunks, image_tokens, queries, CHUNK: tl.constexpr):
    """First query of a chunk and the one behind its last: chunks of the image first, then those of the text."""
    is_image = chunk < image_chunks
    first = tl.where(is_image, chunk * CHUNK, image_tokens + (chunk - image_chunks) * CHUNK)
    return first, tl.minimum(first + CHUNK, tl.where(is_image, image_tokens, queries))


@triton.jit
def _reduce_tiles(
    query, key, lse, partial, parts,
    heads, image_tokens, queries, keys, image_chunks, chunks, columns, width, bits_per_dot,
    query_batch, query_head, query_row, key_batch, key_head, key_row, lse_batch, lse_head, lse_row,
    ROWS: tl.constexpr, ENTROPY: tl.constexpr, FULL_WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One chunk of queries of one head against one block of keys; logits are in bits, not nats.

    Writes the sum of A over the chunk for each key, and for each query Σ p and Σ p log2 p over the block.
    """
    chunk, key_block = tl.program_id(0), tl.program_id(1)
    flat = tl.program_id(2).to(tl.int64)
    batch, head = flat // heads, flat % heads
    first, end = _chunk_span(chunk, image_chunks, image_tokens, queries, CHUNK)
    channels = tl.arange(0, BLOCK_D)
    has_channel = channels < width
    positions = key_block * BLOCK_K + tl.arange(0, BLOCK_K)
    has_key = positions < keys
    keys_here = tl.load(
        key + batch * key_batch + head * key_head + positions[None, :] * key_row + channels[:, None],
        mask=has_key[None, :] & has_channel[:, None], other=0.0,
    )  # fmt: skip
    within = tl.arange(0, BLOCK_Q)
    queries_from = query + batch * query_batch + head * query_head + channels[None, :]
    lse_from = lse + batch * lse_batch + head * lse_head
    into = parts + (flat * tl.num_programs(1) + key_block) * queries * (1 + ENTROPY)
    pair = tl.arange(0, 2)
    mass = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    last = end - 1  # which stands in for rows behind it: no address needs a mask
    nats = tl.load(lse_from + tl.minimum(first + within, last) * lse_row)
    whole = (key_block + 1) * BLOCK_K <= keys
    for rest in tl.static_range(2):  # a whole block of keys needs no mask
        here = (not whole) if rest else whole
        for start in range(first, tl.where(here, end, first), BLOCK_Q):
            rows = start + within
            has_row = rows < end
            queries_at = queries_from + tl.minimum(rows, last)[:, None] * query_row
            if FULL_WIDTH:
                queries_here = tl.load(queries_at)
            else:
                queries_here = tl.load(queries_at, mask=has_channel[None, :], other=0.0)
            # a row that is not there has shares of 0; finite, so that 0 times its logit is 0
            bits = tl.where(has_row, 1.4426950408889634 * nats, 1.0e30)
            # loaded ahead, as it would be waited for
            nats = tl.load(lse_from + tl.minimum(rows + BLOCK_Q, last) * lse_row)
            logits = tl.dot(queries_here, keys_here, input_precision="ieee") * bits_per_dot - bits[:, None]
            if rest:
                logits = tl.where(has_key[None, :], logits, -1.0e30)
            share = tl.exp2(logits)
            mass += share
            if ENTROPY:
                sums = tl.join(tl.sum(share, 1), tl.sum(share * logits, 1))
                tl.store(into + rows[:, None] * 2 + pair[None, :], sums, mask=has_row[:, None])
            elif ROWS:
                tl.store(into + rows, tl.sum(share, 1), mask=has_row)
    tl.store(partial + (flat * chunks + chunk) * columns + positions, tl.sum(mass, 0), mask=has_key)


@triton.jit
def _finish_rows(
    parts, partial, row_sum, row_entropy, image_tokens, queries, keys, key_blocks, image_chunks, chunks, columns,
    ENTROPY: tl.constexpr, CHUNK: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row sums and entropies of one chunk of queries, from the sums over each block of keys."""
    chunk = tl.program_id(0)
    flat = tl.program_id(1).to(tl.int64)
    first, end = _chunk_span(chunk, image_chunks, image_tokens, queries, CHUNK)
    numbers = tl.arange(0, BLOCKS)
    entropies = tl.zeros((BLOCK,), tl.float32)
    for start in range(first, end, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        has_row = rows < end
        total = tl.zeros((BLOCKS, BLOCK), tl.float32)
        weighted = tl.zeros((BLOCKS, BLOCK), tl.float32)
        for number in range(0, key_blocks, BLOCKS):
            there = (number + numbers < key_blocks)[:, None] & has_row[None, :]
            at = ((flat * key_blocks + number + numbers[:, None]) * queries + rows[None, :]) * (1 + ENTROPY)
            total += tl.load(parts + at, mask=there, other=0.0)
            if ENTROPY:
                weighted += tl.load(parts + at + 1, mask=there, other=0.0)
        mass = tl.sum(total, 0)
        tl.store(row_sum + flat * queries + rows, mass, mask=has_row)
        if ENTROPY:
            # log Z − (Σ p log p)/Z; below 1e-30 float32 has too few digits left
            counts = mass > 1.0e-30
            safe = tl.where(counts, mass, 1.0)
            nats = tl.where(counts, 0.6931471805599453 * (tl.log2(safe) - tl.sum(weighted, 0) / safe), 0.0)
            tl.store(row_entropy + flat * queries + rows, nats, mask=has_row)
            entropies += nats
    if ENTROPY:
        tl.store(partial + (flat * chunks + chunk) * columns + keys, tl.sum(entropies, 0))


@triton.jit
def _add_chunks(
    partial, means, image_chunks, chunks, columns, image_queries, text_queries,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Means over each stream's queries from the sums of its chunks."""
    flat = tl.program_id(1).to(tl.int64)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = positions < columns
    for stream in tl.static_range(2):
        start, stop = (image_chunks, chunks) if stream else (0, image_chunks)
        total = tl.zeros((BLOCKS, BLOCK), tl.float32)
        for first in range(start, stop, BLOCKS):
            numbers = first + tl.arange(0, BLOCKS)
            total += tl.load(
                partial + (flat * chunks + numbers[:, None]) * columns + positions[None, :],
                mask=(numbers < stop)[:, None] & there[None, :], other=0.0,
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
        maps + (token[None, :] * tl.num_programs(2) + head) * cells + cell[:, None],
        pooled, mask=(cell < cells)[:, None] & (token < count)[None, :],
    )  # fmt: skip
