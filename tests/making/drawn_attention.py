"""What a transformer attends to while it draws, computed apart: in float64, from diffusers' own projections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import nn


@contextmanager
def watched_masses(transformer: nn.Module) -> Iterator[list[dict[int, np.ndarray]]]:
    """Yield a list that grows by each call of the transformer: layer -> mean over the image's queries of A to each text
    token, float64 (batch row, head, text token), of the layers that ran. They need norms of query and key."""
    calls: list[dict[int, np.ndarray]] = []
    hooks = [transformer.register_forward_pre_hook(lambda *_: calls.append({}))]
    kept: dict[str, torch.Tensor] = {}

    def keep(layer: int, name: str):
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            kept[name] = output
            if name == "norm_added_k":  # the last of the four
                key = torch.cat([kept["norm_k"], output], dim=2).double()
                logits = kept["norm_q"].double() @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
                masses = logits.softmax(-1).mean(2)[..., -output.shape[2] :]
                calls[-1][layer] = masses.cpu().numpy()

        return hook

    for layer, block in enumerate(transformer.transformer_blocks):
        for name in ("norm_q", "norm_k", "norm_added_k"):
            hooks.append(getattr(block.attn, name).register_forward_hook(keep(layer, name)))
    try:
        yield calls
    finally:
        for hook in hooks:
            with suppress(KeyError):
                hook.remove()


def masses_of(calls: list[dict[int, np.ndarray]], row: int, layers: int) -> np.ndarray:
    """One batch row's masses of all calls, float64 (call, layer, head, text token), NaN where a layer did not run."""
    gap = next(iter(calls[0].values())) * np.nan
    return np.stack([[call.get(layer, gap)[row] for layer in range(layers)] for call in calls])
