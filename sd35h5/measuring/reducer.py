"""Which implementation of the reductions measures on a device: the Triton kernels, or plain torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

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
    """The kernels on CUDA where triton is installed and finds the C compiler that it builds launchers with."""
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    if device.type == "cuda" and find_spec("triton") is not None and compiler:
        return triton_reducer()
    return torch_reducer()
