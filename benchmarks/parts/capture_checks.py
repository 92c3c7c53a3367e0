"""Checks before anything is timed: the same picture to the bit, and reductions against float64 on the same q and k."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

import sd35h5
from sd35h5.gates.attention import JointQKV
from sd35h5.measuring.attend import blocked_lse
from sd35h5.measuring.processor import ProbeProcessor
from sd35h5.measuring.reducer import Reducer
from sd35h5.measuring.reductions import joint_entropy, pool_columns

EXACT = {"map_heads": "all", "map_steps": "all", "top_steps": "all", "atlas": True}


def same_to_the_bit(pipe: StableDiffusion3Pipeline, prompt: str, call: dict[str, object]) -> bool:
    """Whether the last latents with a rich capture equal those without."""
    call = call | {"output_type": "latent"}
    plain = pipe(prompt, generator=torch.Generator("cpu").manual_seed(0), **call).images
    with (
        tempfile.TemporaryDirectory() as folder,
        sd35h5.capture(pipe, Path(folder) / "a.h5", **EXACT) as generate,
    ):
        captured = generate(prompt, seed=0, **call).images
    return torch.equal(plain, captured)


def attentions(
    pipe: StableDiffusion3Pipeline, prompt: str, call: dict[str, object]
) -> dict[int, tuple[JointQKV, Tensor]]:
    """Query, key, value and log-sum-exp of the first, the middle and the last layer at the first step."""
    kept: dict[int, tuple[JointQKV, Tensor]] = {}

    def keep(layer: int, joint: JointQKV, lse: Tensor | None, gates: object) -> None:
        kept[layer] = joint, blocked_lse(joint.query, joint.key) if lse is None else lse

    layers = pipe.transformer.config.num_layers
    before = dict(pipe.transformer.attn_processors)
    chosen = {
        f"transformer_blocks.{layer}.attn.processor": ProbeProcessor(layer, keep, None)
        for layer in (0, layers // 2, layers - 1)
    }
    pipe.transformer.set_attn_processor({**before, **chosen})
    try:
        pipe(prompt, generator=torch.Generator("cpu").manual_seed(0), **call | {"output_type": "latent"})
    finally:
        pipe.transformer.set_attn_processor(before)
    return kept


def largest_errors(
    reducer: Reducer, joint: JointQKV, lse: Tensor, patches: tuple[int, int], tokens: int = 24
) -> dict[str, float]:
    """Largest relative error of each reduction against float64, over the first, the middle and the last head."""
    heads, image = joint.query.shape[1], joint.image_tokens
    text = reducer.reduce_keys(joint.query, joint.key[:, :, image:], lse, image, entropy=True)
    patch = reducer.reduce_keys(joint.query, joint.key[:, :, :image], lse, image, entropy=True)
    whole_entropy = joint_entropy((text, patch), image)
    key = joint.key[-1, :, image : image + tokens]
    maps = {
        pool: reducer.attention_maps(joint.query[-1, :, :image], key, lse[-1, :, :image], patches, pool)
        for pool in (1, 2, 4)
    }
    errors: dict[str, float] = {}

    def compare(name: str, found: Tensor, expected: Tensor) -> None:
        error = ((found.double() - expected).abs() / expected.abs()).max()
        errors[name] = max(errors.get(name, 0.0), float(error))

    for head in sorted({0, heads // 2, heads - 1}):
        query, keys = joint.query[-1, head].double(), joint.key[-1, head].double()
        share = (query @ keys.T * query.shape[-1] ** -0.5).softmax(-1)
        streams = share[:image], share[image:]
        mass = torch.stack([stream.mean(0) for stream in streams])
        compare("mass of text keys", text.mass[-1, head], mass[:, image:])
        compare("mass of image keys", patch.mass[-1, head], mass[:, :image])
        compare("row sums", text.row_sum[-1, head], share[:, image:].sum(-1))
        entropy = [
            _entropy(stream[:, image:] / stream[:, image:].sum(-1, keepdim=True)) for stream in streams
        ]
        compare("entropy_text", text.entropy[-1, head], torch.stack(entropy))
        compare("entropy_all", whole_entropy[-1, head], torch.stack([_entropy(each) for each in streams]))
        columns = share[:image, image : image + tokens]
        for pool, found in maps.items():
            compare(f"maps, pool {pool}", found[head], pool_columns(columns, *patches, pool))
    return errors


def _entropy(rows: Tensor) -> Tensor:
    return -torch.xlogy(rows, rows).sum(-1).mean()
