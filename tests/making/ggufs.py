"""GGUF files as city96's and llama.cpp's tools write them, of random blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from parts.quantising import random_blocks
from torch import Tensor

KINDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "BF16",
    "F16", "F32",
)  # fmt: skip
UNPACKED = ("F32", "F16", "BF16")


def in_turns(key: str, tensor: Tensor) -> str:
    """Each of the types for some matrix that its blocks divide; what is no matrix in float32, as the tools leave it."""
    sizes = {kind: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] for kind in KINDS}
    fitting = [kind for kind in KINDS if tensor.ndim == 2 and tensor.shape[1] % sizes[kind] == 0]
    return fitting[sum(key.encode()) % len(fitting)] if fitting else "F32"


def write_gguf(
    path: Path, state: Mapping[str, Tensor], kind: Callable[[str, Tensor], str] = in_turns, arch: str = "sd3"
) -> dict[str, Tensor]:
    """Write a file. Returns: what it means, float32, read back by the package gguf."""
    random, writer, meant = np.random.default_rng(0), gguf.GGUFWriter(str(path), arch), {}
    writer.add_array("tokenizer.ggml.tokens", ["a", "cat"])
    writer.add_array("numbers", [1, 2, 3])
    for key, tensor in state.items():
        stored = gguf.GGMLQuantizationType[kind(key, tensor)]
        values = tensor.float().numpy()
        if stored.name in UNPACKED:
            blocks = gguf.quants.quantize(values, stored)
        else:
            blocks = random_blocks(stored.name, *values.shape, random)
        writer.add_tensor(key, blocks, raw_dtype=stored)
        meant[key] = torch.from_numpy(np.array(gguf.quants.dequantize(blocks, stored))).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def llama_t5(model: torch.nn.Module) -> dict[str, Tensor]:
    """A T5 encoder's weights under llama.cpp's names, which the package gguf knows."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, model.config.num_layers)
    state = {key: each for key, each in model.state_dict().items() if key != "encoder.embed_tokens.weight"}
    return {f"{names.get_name(key.removesuffix('.weight'))}.weight": each for key, each in state.items()}
