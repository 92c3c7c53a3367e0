"""A whole model of SD3.5-Large's sizes in diffusers' layout, sharded as it is published, written from random bits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sd35h5.weights.checkpoints import sha256_of
from sd35h5.weights.configs import COMPONENT_CONFIGS, SCHEDULER, TRANSFORMERS
from sd35h5.weights.frame import load_tokenizers
from sd35h5.weights.layouts import ENCODERS
from sd35h5.weights.loading import build
from sd35h5.weights.model_options import Model

LARGE = {"transformer": TRANSFORMERS["stabilityai/stable-diffusion-3.5-large"], **COMPONENT_CONFIGS}
_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SMALL = {
    "transformer": {
        "sample_size": 8, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16,
        "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32, "pos_embed_max_size": 16,
    },
    "text_encoder": _CLIP, "text_encoder_2": _CLIP,
    "text_encoder_3": {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
}  # fmt: skip
CONFIGS = {"large": LARGE, "tiny": {name: LARGE[name] | own for name, own in _SMALL.items()}}
SHARD = 5 << 30  # bytes of a file, about, as published
_CLASSES = {
    "transformer": ("diffusers", "SD3Transformer2DModel"), "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_3": ("transformers", "T5EncoderModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "tokenizer": ("transformers", "CLIPTokenizer"), "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "tokenizer_3": ("transformers", "T5TokenizerFast"),
}  # fmt: skip


def write_model(folder: Path, size: str, device: torch.device, dtype: torch.dtype) -> int:
    """Write it, several files at a time, and its files' hashes beside them. Returns: bytes of its weights.

    Args:
        size: of `CONFIGS`.
        device: where the random numbers are made.
    """
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(_write_shard, path, shapes, device, dtype)
            for component, config in CONFIGS[size].items()
            for path, shapes in _shards(folder / component, component, config, dtype)
        ]
        written = sum(job.result() for job in jobs)
    _write_frame(folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sha256_of, folder.glob("*/*.safetensors")))
    return written


def _shards(
    folder: Path, component: str, config: Mapping[str, Any], dtype: torch.dtype
) -> Iterator[tuple[Path, dict[str, tuple[int, ...]]]]:
    """The files of a component with the shapes that they hold; its config and index are written."""
    library, kind = _CLASSES[component]
    is_ours = library == "diffusers"
    told = {"_class_name": kind} if is_ours else {"architectures": [kind], "torch_dtype": str(dtype)[6:]}
    _write_json(folder / "config.json", {**config, **told})
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, tensor in build(component, config).state_dict().items():
        if name == "encoder.embed_tokens.weight":  # T5's embedding under its second name
            continue
        if filled and filled + tensor.numel() * dtype.itemsize > SHARD:
            shards, filled = [*shards, {}], 0
        shards[-1][name] = tuple(tensor.shape)
        filled += tensor.numel() * dtype.itemsize
    stem, count = "diffusion_pytorch_model" if is_ours else "model", len(shards)
    files = [
        f"{stem}-{i + 1:05}-of-{count:05}.safetensors" if count > 1 else f"{stem}.safetensors"
        for i in range(count)
    ]
    if count > 1:
        places = {name: file for file, shapes in zip(files, shards, strict=True) for name in shapes}
        _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": places})
    for file, shapes in zip(files, shards, strict=True):
        yield folder / file, shapes


def _write_shard(
    path: Path, shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> int:
    tensors = {name: _random(name, shape, device, dtype).cpu() for name, shape in shapes.items()}
    save_file(tensors, path, {"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _random(name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers of a trained model's magnitude, about: norms are 1 and biases 0, so that nothing overflows."""
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")), dtype=dtype, device=device)
    bits = torch.randint(-(2**15), 2**15, (math.prod(shape),), dtype=torch.int16, device=device)
    # sign and mantissa by chance, the exponent of 2^-6: bfloat16 of 0.016 to 0.031
    numbers = bits.bitwise_and_(-0x7F81).bitwise_or_(0x3C80)
    return numbers.view(torch.bfloat16).view(shape).to(dtype)


def _write_frame(folder: Path) -> None:
    """Everything that is no weights."""
    for name, tokenizer in load_tokenizers(Model(), None, ENCODERS).items():
        tokenizer.save_pretrained(folder / name)
    _write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", **SCHEDULER},
    )
    _write_json(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline", **_CLASSES})


def _write_json(path: Path, told: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1), encoding="utf-8")
