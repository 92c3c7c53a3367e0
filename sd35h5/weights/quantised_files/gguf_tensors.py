"""GGUF weights as tensors: quantised ones stay packed in the linear layers of diffusers, all else is made plain.

Reading the blocks is left to diffusers, so that a model computes what it computes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from sd35h5.errors import ConfigError
from sd35h5.weights.checkpoints import Entry
from sd35h5.weights.quantised_files.gguf_header import BLOCKS

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def check_package() -> None:
    """Refuse GGUF where the package that diffusers reads it with is missing.

    Raises:
        ConfigError: the sentence.
    """
    if find_spec("gguf") is None:
        raise ConfigError("GGUF files are read with the package gguf: pip install gguf")


def open_gguf(path: Path, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """A file's tensors by key, mapped from it: packed ones as diffusers' GGUFParameter (row, bytes of a row)."""
    check_package()
    from diffusers.quantizers.gguf.utils import GGUFParameter
    from gguf import GGMLQuantizationType

    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    state = {}
    for key, entry in entries.items():
        raw = whole[entry.offset : entry.offset + entry.nbytes]
        if entry.dtype in BLOCKS:
            packed = raw.view(*entry.shape[:-1], -1)
            state[key] = GGUFParameter(packed, quant_type=GGMLQuantizationType[entry.dtype])
        elif entry.dtype in _DTYPES:  # integers are nothing that a parameter takes
            state[key] = raw.view(_DTYPES[entry.dtype]).view(entry.shape)
    return state


def is_packed(tensor: Tensor) -> bool:
    """Whether a tensor is a quantised one of GGUF."""
    return hasattr(tensor, "quant_type")


def dense(tensor: Tensor) -> Tensor:
    """A packed tensor's weights in float32 (diffusers' linear layers compute them in float16); any other as it is."""
    if not is_packed(tensor):
        return tensor
    from diffusers.quantizers.gguf.utils import dequantize_functions

    weights, size = BLOCKS[tensor.quant_type.name]
    plain = dequantize_functions[tensor.quant_type](
        tensor.as_tensor().reshape(-1, size), weights, size, torch.float32
    )
    return plain.reshape(*tensor.shape[:-1], -1)


def put_packed(model: nn.Module, packed: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give the linear layers of these weights diffusers' forward, which makes them plain whenever it computes.

    Args:
        dtype: in which they compute.
    """
    if not packed:
        return
    from diffusers.quantizers.gguf.utils import _replace_with_gguf_linear

    _replace_with_gguf_linear(model, dtype, packed)
    for name, tensor in packed.items():
        model.get_submodule(name.removesuffix(".weight"))._parameters["weight"] = tensor
    model.eval()
