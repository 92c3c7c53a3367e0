"""`reductions.round_mantissa` in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35h5.store.schema import MANTISSA_BITS

_BLOCK = 2048


def round_mantissa(values: Tensor, bits: int = MANTISSA_BITS) -> Tensor:
    """Round float32, read once and written once: see `reductions.round_mantissa`."""
    values = values.contiguous()
    rounded = torch.empty_like(values)
    _round_words[(triton.cdiv(values.numel(), _BLOCK),)](
        values.view(torch.int32),
        rounded.view(torch.int32),
        values.numel(),
        DROP=23 - bits,
        BLOCK=_BLOCK,
    )
    return rounded


@triton.jit
def _round_words(values, rounded, count, DROP: tl.constexpr, BLOCK: tl.constexpr):
    """Round the words of float32 to a mantissa that is DROP bits shorter, half to even; not NaN and infinity."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(values + at, mask=at < count, other=0)
    near = (word + ((1 << (DROP - 1)) - 1) + ((word >> DROP) & 1)) & -(1 << DROP)
    finite = (word & 0x7F800000) != 0x7F800000
    tl.store(rounded + at, tl.where(finite, near, word), mask=at < count)
