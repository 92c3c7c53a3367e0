"""A transformer with a random adapter of peft's, and without it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig

_TARGETS = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "to_out.0", "ff.net.2"]
CONFIGS = {
    "LoRA": LoraConfig(r=8, lora_alpha=4, target_modules=_TARGETS, init_lora_weights=False),
    "DoRA": LoraConfig(r=8, lora_alpha=4, target_modules=_TARGETS, init_lora_weights=False, use_dora=True),
    "LoKr": LoKrConfig(r=8, alpha=4, target_modules=_TARGETS, init_weights=False),
    "LoHa": LoHaConfig(r=8, alpha=4, target_modules=_TARGETS, init_weights=False),
}


@contextmanager
def adapted(pipe: StableDiffusion3Pipeline, kind: str, fused: bool) -> Iterator[None]:
    """The pipeline with an adapter of a kind in CONFIGS at 0.7, beside the weights or fused into them."""
    torch.manual_seed(1)
    pipe.transformer.add_adapter(CONFIGS[kind], "style")
    pipe.set_adapters(["style"], [0.7])
    if fused:
        pipe.fuse_lora()
    try:
        yield
    finally:
        if fused:
            pipe.unfuse_lora()
        pipe.transformer.unload_lora()
