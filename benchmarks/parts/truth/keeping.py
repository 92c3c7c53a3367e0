"""Draw with every query, key, value and gate kept: the whole attention matrices, in float64."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from sd35h5.gates.attention import project_joint

#: (attention, layer) -> name -> an array a step, float64, text tokens and the cond branch first. Of `attn` and `attn2`:
#: attention (branch, head, query, key), norms of the value vectors (branch, head, key), image gate and text gate
#: (branch, query, head, channel)
Kept = dict[tuple[str, int], dict[str, list[np.ndarray]]]


class Keeper:
    """An attention processor that keeps q, k, v and gates of each call and leaves the rest to the one it wraps."""

    def __init__(self, inner, kept: dict[str, list[np.ndarray]]) -> None:
        self.inner, self.kept = inner, kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        joint = project_joint(attn, hidden_states, encoder_hidden_states)
        image = joint.image_tokens
        order = [*range(image, joint.key.shape[2]), *range(image)]  # text first, as in the store
        query, key, value = (
            part.detach()[:, :, order].double().flip(0) for part in (joint.query, joint.key, joint.value)
        )
        if getattr(self.inner, "regrouped", False):  # heads of as many channels as there are heads
            query, key, value = (
                part.transpose(1, 2).flatten(2).unflatten(-1, (-1, attn.heads)).transpose(1, 2)
                for part in (query, key, value)
            )
        logits = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        self.kept["attention"].append(torch.softmax(logits, dim=-1).numpy())
        self.kept["norms"].append(value.norm(dim=-1).numpy())
        if (gate := getattr(self.inner, "gate", None)) is not None:
            for name, found in zip(
                ("image", "text"), gate(hidden_states, encoder_hidden_states), strict=True
            ):
                if found is not None:
                    by_head = found.detach().double().flip(0).unflatten(-1, (attn.heads, -1))
                    self.kept[f"{name} gate"].append(by_head.numpy())
        return self.inner(attn, hidden_states, encoder_hidden_states)


def keep(pipe, prompt: str, seed: int, **call: object) -> Kept:
    """Draw, keeping everything."""
    transformer, kept = pipe.transformer, {}
    before = dict(transformer.attn_processors)
    keepers = {}
    for name, inner in before.items():  # transformer_blocks.3.attn2.processor
        _, layer, attention, _ = name.split(".")
        kept[attention, int(layer)] = defaultdict(list)
        keepers[name] = Keeper(inner, kept[attention, int(layer)])
    transformer.set_attn_processor(keepers)
    try:
        pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), **call)
    finally:
        transformer.set_attn_processor(before)
    return kept


def stacked(kept: Kept, attention: str, name: str) -> np.ndarray | None:
    """Return (step, layer, …) of what every layer kept, NaN for those that have none; None where no layer has any."""
    layers = 1 + max(layer for _, layer in kept)
    found = {
        layer: np.stack(kept[attention, layer][name])
        for layer in range(layers)
        if name in kept.get((attention, layer), {})
    }
    if not found:
        return None
    gap = np.full_like(next(iter(found.values())), np.nan)
    return np.stack([found.get(layer, gap) for layer in range(layers)], axis=1)
