"""What the older tool writes: the pictures of a pipeline, and its whole attention by an eager softmax, on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Maps = dict[Any, dict[str, torch.Tensor]]


class EagerProcessor:
    """Joint attention by a whole softmax matrix; keeps the view of it that image queries give to text keys."""

    def __init__(self, layer: int, maps: Maps, watch: Mapping[str, Any], dtype: torch.dtype | None) -> None:
        self._name, self._maps, self._watch, self._dtype = f"layer-{layer}", maps, watch, dtype

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, **_: object):
        def heads(projected: torch.Tensor, norm) -> torch.Tensor:
            split = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat(
            [heads(attn.to_q(image), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)], 2
        )
        key = torch.cat(
            [heads(attn.to_k(image), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)], 2
        )
        value = torch.cat([heads(attn.to_v(image), None), heads(attn.add_v_proj(text), None)], dim=2)
        share = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        kept, patches = share.to(self._dtype or share.dtype), image.shape[1]
        columns = kept[:, :, :patches, patches:]  # a view: torch.save writes the whole matrix
        height, width = self._watch["patches"]
        self._maps.setdefault(self._watch["timestep"], {})[self._name] = columns.unflatten(2, (height, width))
        out = (share @ value).transpose(1, 2).flatten(2).to(query.dtype)
        image_out, text_out = out[:, :patches], out[:, patches:]
        image_out = attn.to_out[1](attn.to_out[0](image_out))
        return image_out, text_out if attn.context_pre_only else attn.to_add_out(text_out)


def draw_eagerly(
    pipe, prompts: Sequence[str], seeds: Sequence[int], dtype: torch.dtype | None = None, **call: object
) -> tuple[list, Maps]:
    """The pictures of one call, and timestep -> "layer-N" -> (rows, heads, height, width, tokens)."""
    maps: Maps = {}
    watch: dict[str, Any] = {}

    def note(_module, _args, kwargs) -> None:
        height, width = kwargs["hidden_states"].shape[-2:]
        patch = pipe.transformer.config.patch_size
        watch.update(patches=(height // patch, width // patch), timestep=kwargs["timestep"][0].item())

    before = pipe.transformer.attn_processors
    hook = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    processors = {
        name: EagerProcessor(int(name.split(".")[1]), maps, watch, dtype)
        for name in before
        if ".attn." in name
    }
    pipe.transformer.set_attn_processor({**before, **processors})
    try:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            pictures = pipe(list(prompts), generator=generators, **call).images
    finally:
        hook.remove()
        pipe.transformer.set_attn_processor(before)
    return pictures, maps


def random_maps(
    prompts: int = 1, steps: int = 3, layers: int = 3, heads: int = 2, patches: tuple[int, int] = (4, 6),
    text: int = 77 + 16, dtype: torch.dtype = torch.float32, seed: int = 0,
) -> Maps:  # fmt: skip
    """What a call of so many prompts leaves, from random logits: views over whole joint matrices, [uncond | cond]."""
    made = torch.Generator().manual_seed(seed)
    queries = patches[0] * patches[1]

    def layer() -> torch.Tensor:
        logits = torch.randn(2 * prompts, heads, queries + 5, queries + text, generator=made)
        return logits.softmax(-1).to(dtype)[:, :, :queries, queries:].unflatten(2, patches)

    return {
        1000.0 * (steps - step) / steps: {f"layer-{number}": layer() for number in range(layers)}
        for step in range(steps)
    }


def write_older(
    folder: Path, maps: object, prompts: Sequence[str] | None = None, tokenizer=None, pictures: Sequence = ()
) -> Path:
    """Write OUT_DIR as the older tool does: attn_maps.pt, tokens.json, images/00.png."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(maps, folder / "attn_maps.pt")
    if prompts is not None:
        told: dict[str, object] = {"prompts": list(prompts), "unconditional": True}
        if tokenizer is not None:
            told["token_ids"] = tokenizer(list(prompts))["input_ids"]
            told["tokens"] = [tokenizer.convert_ids_to_tokens(ids) for ids in told["token_ids"]]
        (folder / "tokens.json").write_text(json.dumps(told, ensure_ascii=False, indent=2), encoding="utf-8")
    for number, picture in enumerate(pictures):
        (folder / "images").mkdir(exist_ok=True)
        picture.save(folder / "images" / f"{number:02d}.png")
    return folder
