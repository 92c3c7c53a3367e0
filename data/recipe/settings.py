"""Sizes of a training run: the full one, for one H100-class GPU, and the smoke test, for seconds on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Settings:
    """Everything a stage needs to know. `seconds` ends a stage early; the same command goes on from its checkpoint."""

    models: Path
    work: Path
    device: torch.device
    seconds: float = math.inf
    seed: int = 0
    scenes: int = 200_000
    vae_steps: int = 12_000
    vae_batch: int = 64
    vae_lr: float = 2e-3
    encode_batch: int = 500
    text_steps: int = 8_000
    steps: int = 22_000
    batch: int = 128
    muon_lr: float = 1e-2
    adam_lr: float = 1e-3
    empty_captions: float = 0.1
    short_t5: int = 64  # T5 tokens in the first part of a training: every caption fits, fewer pads to compute
    short_share: float = 0.75  # of the steps; the rest has all 256, as in use
    ema: float = 0.999

    def log(self, stage: str) -> Path:
        """Return the stage's loss curve, kept beside the weights."""
        folder = self.models / "training"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{stage}.jsonl"

    def compiled(self, function: Callable) -> Callable:
        """Compile on CUDA; on the CPU, where smoke runs are shorter than compilation, return the function itself."""
        return torch.compile(function, dynamic=False) if self.device.type == "cuda" else function

    def autocast(self) -> torch.autocast:
        """Return bf16 autocast on CUDA; CPUs emulate bf16 slowly, so there it does nothing.

        The cache of cast weights is off, for it would outlive a captured graph.
        """
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False
        )


def smoke(models: Path, work: Path, seconds: float = math.inf) -> Settings:
    """Return settings that run every stage in seconds on a CPU."""
    return Settings(
        models,
        work,
        torch.device("cpu"),
        seconds,
        scenes=24,
        vae_steps=2,
        vae_batch=2,
        encode_batch=8,
        text_steps=2,
        steps=2,
        batch=4,
    )
