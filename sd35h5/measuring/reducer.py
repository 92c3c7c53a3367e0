"""Which implementation of the reductions measures on a device: the Triton kernels, or plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sd35h5.devices import takes_triton
from sd35h5.measuring import reductions
from sd35h5.measuring.reductions import KeyReduction


@dataclass(frozen=True)
class Reducer:
    """One implementation of the contract: the functions of these names as reductions.py documents them."""

    name: str
    reduce_keys: Callable[..., KeyReduction]
    attention_maps: Callable[..., Tensor]
    round_mantissa: Callable[[Tensor], Tensor]


def torch_reducer() -> Reducer:
    """Plain torch, on any device, with a workspace of its own."""
    reduce_keys = partial(reductions.reduce_keys, workspace=reductions.Workspace())
    return Reducer("torch", reduce_keys, reductions.attention_maps, reductions.round_mantissa)


def triton_reducer() -> Reducer:
    """The Triton kernels, on CUDA (on a CPU only where TRITON_INTERPRET=1)."""
    from sd35h5.measuring import kernels, rounding_kernel

    return Reducer("triton", kernels.reduce_keys, kernels.attention_maps, rounding_kernel.round_mantissa)


def reducer_for(device: torch.device) -> Reducer:
    """The kernels where they run, else plain torch."""
    return triton_reducer() if takes_triton(device) else torch_reducer()
