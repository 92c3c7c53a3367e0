"""Quantised transformers as diffusers loads them: which ways there are, which can run here, and loading one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from diffusers import GGUFQuantizationConfig, SD3Transformer2DModel
from transformers import T5EncoderModel

WAYS = {  # way -> the package that it needs
    "bitsandbytes nf4": "bitsandbytes", "bitsandbytes int8": "bitsandbytes", "torchao int8": "torchao",
    "torchao float8": "torchao", "torchao float8, activations too": "torchao", "optimum-quanto int8": "optimum.quanto",
    "optimum-quanto float8": "optimum.quanto", "GGUF Q8_0": "gguf", "GGUF Q4_0": "gguf", "GGUF Q4_K": "gguf",
    "layerwise float8": "",
}  # fmt: skip
ENCODERS = {  # the same for T5, as transformers loads it
    "T5 bitsandbytes nf4": "bitsandbytes", "T5 bitsandbytes int8": "bitsandbytes",
}  # fmt: skip
_ON_GPUS = ("bitsandbytes nf4", "bitsandbytes int8", "torchao float8, activations too")


def why_not(way: str, device: torch.device) -> str:
    """Why a way cannot run here; empty if it can."""
    package = (WAYS | ENCODERS)[way]
    root = package.partition(".")[0]
    if package and (find_spec(root) is None or find_spec(package) is None):
        return f"{package.replace('.', '-')} is not installed"
    if way in _ON_GPUS and device.type == "cpu":
        return "diffusers loads it on a GPU only"
    return ""


def quantised(way: str, folder: Path, dtype: torch.dtype, device: torch.device) -> SD3Transformer2DModel:
    """Load a transformer that was saved in a folder, quantised.

    Args:
        dtype: in which it computes.
    """
    if way == "layerwise float8":
        transformer = SD3Transformer2DModel.from_pretrained(folder, torch_dtype=dtype).to(device)
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
        return transformer.eval()
    if way.startswith("GGUF"):
        file = folder / f"{way}.gguf"
        if not file.is_file():
            write_gguf(file, SD3Transformer2DModel.load_config(folder), way.removeprefix("GGUF "))
        config = GGUFQuantizationConfig(compute_dtype=dtype)
        of = partial(SD3Transformer2DModel.from_single_file, str(file), config=str(folder))
        return of(quantization_config=config, torch_dtype=dtype).to(device).eval()
    transformer = SD3Transformer2DModel.from_pretrained(
        folder, torch_dtype=dtype, quantization_config=_CONFIGS[way](dtype)
    )
    return (transformer if way.startswith("bitsandbytes") else transformer.to(device)).eval()


def quantised_encoder(way: str, folder: Path, dtype: torch.dtype, device: torch.device) -> T5EncoderModel:
    """Load a T5 encoder that was saved in a folder, quantised."""
    from transformers import BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(**(four if way.endswith("nf4") else {"load_in_8bit": True}))
    of = partial(T5EncoderModel.from_pretrained, folder, quantization_config=config, dtype=dtype)
    return of(device_map={"": device}).eval()


def _bitsandbytes(bits: int, dtype: torch.dtype) -> object:
    from diffusers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _torchao(name: str, dtype: torch.dtype) -> object:
    import torchao.quantization
    from diffusers import TorchAoConfig

    return TorchAoConfig(getattr(torchao.quantization, name)())


def _quanto(weights: str, dtype: torch.dtype) -> object:
    from diffusers import QuantoConfig

    return QuantoConfig(weights_dtype=weights)


_CONFIGS: dict[str, Callable[[torch.dtype], object]] = {
    "bitsandbytes nf4": partial(_bitsandbytes, 4),
    "bitsandbytes int8": partial(_bitsandbytes, 8),
    "torchao int8": partial(_torchao, "Int8WeightOnlyConfig"),
    "torchao float8": partial(_torchao, "Float8WeightOnlyConfig"),
    "torchao float8, activations too": partial(_torchao, "Float8DynamicActivationFloat8WeightConfig"),
    "optimum-quanto int8": partial(_quanto, "int8"),
    "optimum-quanto float8": partial(_quanto, "float8"),
}


def random_blocks(stored: str, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Random weights as GGUF stores them, uint8 (row, bytes of a row): any bytes are weights, the scales are small."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[stored]]
    blocks = random.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    scales = random.uniform(0.5, 1, (2, rows, columns // elements, 1)) * 2 ** -_SCALES[stored][0]
    for place, scale in zip(_SCALES[stored][1:], scales.astype(np.float16).view(np.uint8), strict=False):
        blocks[..., place : place + 2] = scale
    return blocks.reshape(rows, -1)


_SCALES = {  # how small its scales must be (powers of two) for weights of a few hundredths, and the bytes they begin at
    "Q4_0": (7, 0), "Q4_1": (9, 0, 2), "Q5_0": (8, 0), "Q5_1": (10, 0, 2), "Q8_0": (11, 0), "Q2_K": (9, 80, 82),
    "IQ4_NL": (11, 0), "IQ4_XS": (15, 0), "Q3_K": (11, 108), "Q4_K": (14, 0, 2), "Q5_K": (15, 0, 2), "Q6_K": (16, 208),
}  # fmt: skip


def write_gguf(file: Path, config: dict[str, object], stored: str) -> None:
    """Write a random transformer of this configuration, its linear layers quantised, under diffusers' names."""
    from gguf import GGMLQuantizationType, GGUFWriter

    with torch.device("meta"):
        model = SD3Transformer2DModel.from_config(config)
    random, writer = np.random.default_rng(0), GGUFWriter(str(file), "sd3")
    linear = {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    for name, tensor in model.state_dict().items():
        if name in linear:
            kind = stored if tensor.shape[1] % 256 == 0 or stored == "Q8_0" else "Q8_0"
            blocks = random_blocks(kind, *tensor.shape, random)
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[kind])
        else:
            values = random.normal(1 if "norm_" in name else 0, 0.02, tensor.shape)
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
