"""A transformer compiled and put back, as people compile theirs: by block, whole, or wrapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import StableDiffusion3Pipeline

WAYS = ("blocks", "whole", "wrapped")


def settings(device: torch.device) -> dict[str, object]:
    """What torch.compile is asked for: inductor on a GPU; elsewhere its graphs as they are, without a C++ compiler."""
    return {"fullgraph": True, **({} if device.type == "cuda" else {"backend": "aot_eager"})}


@contextmanager
def compiled(pipe: StableDiffusion3Pipeline, way: str, mode: str | None = None) -> Iterator[None]:
    """The pipeline with its transformer compiled in one of WAYS, eager again afterwards."""
    transformer = pipe.transformer
    asked = settings(transformer.device) | ({"mode": mode} if mode else {})
    asked = {name: value for name, value in asked.items() if mode is None or name != "backend"}
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
