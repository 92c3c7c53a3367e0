"""A transformer compiled and put back, as people compile theirs: by block, whole, or wrapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import StableDiffusion3Pipeline

WAYS = ("blocks", "whole", "wrapped")


def backend_on(device: torch.device) -> str:
    """Inductor on a GPU; elsewhere the graph with eager's kernels, which needs no C++ compiler."""
    return "inductor" if device.type == "cuda" else "aot_eager"


@contextmanager
def compiled(
    pipe: StableDiffusion3Pipeline, way: str, backend: str, mode: str | None = None
) -> Iterator[None]:
    """The pipeline with its transformer compiled in one of WAYS, eager again afterwards."""
    transformer = pipe.transformer
    asked = {"fullgraph": True, "backend": backend, "mode": mode if backend == "inductor" else None}
    if way == "wrapped":
        pipe.transformer = torch.compile(transformer, **asked)
    for part in {"blocks": transformer.transformer_blocks, "whole": [transformer]}.get(way, ()):
        part.compile(**asked)
    try:
        yield
    finally:
        pipe.transformer = transformer
        for part in (transformer, *transformer.transformer_blocks):
            part._compiled_call_impl = None
