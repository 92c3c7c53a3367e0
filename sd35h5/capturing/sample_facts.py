"""What is known of a sample when its file is begun: the axes that all samples of a file share, and its own facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sd35h5.capturing.call import Call
from sd35h5.errors import CaptureError
from sd35h5.index_lists import choose
from sd35h5.measuring.attend import dtype_in_force
from sd35h5.measuring.reductions import pooled_centres
from sd35h5.planning.interventions import SecondAttention
from sd35h5.planning.options import MAX_MAPS, Tiers
from sd35h5.planning.selectors import choose_steps, count_rows, raw_indices
from sd35h5.planning.token_table import TokenTable, token_encoders
from sd35h5.store import schema

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline


@dataclass(frozen=True)
class Layout:
    """The axes that all samples of one file share.

    Args:
        patches: (y, x) of the image tokens.
        pixels: (height, width) of the stored images, or None if none are stored.
        ranks: number of heaviest keys, 0 for none. maps: number of places for maps, 0 for none.
        rows: number of places for chosen queries, 0 for none.
        map_layers: layers with maps.
        raw: true indices of raw probabilities along raw_step, raw_layer, raw_head and raw_token, or None.
    """

    branches: tuple[str, ...]
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    layers: int
    heads: int
    second: SecondAttention
    token_encoders: tuple[int, ...]
    patches: tuple[int, int]
    pixels: tuple[int, int] | None
    ranks: int
    top_steps: tuple[int, ...]
    maps: int
    map_steps: tuple[int, ...]
    pool: int
    map_layers: tuple[int, ...]
    rows: int
    atlas: bool
    raw: Mapping[str, tuple[int, ...]] | None

    def scales(self) -> dict[str, np.ndarray]:
        """Values of the file's scales; those of an absent tier are left out."""
        count = {
            "step": len(self.timesteps),
            "layer": self.layers,
            "head": self.heads,
            "token": len(self.token_encoders),
        }
        scales = {name: np.arange(length) for name, length in count.items()}
        scales["branch"] = np.array([schema.BRANCHES.index(branch) for branch in self.branches])
        scales["timestep"], scales["sigma"] = np.array(self.timesteps), np.array(self.sigmas)
        scales["token_encoder"] = np.array(self.token_encoders)
        some = {
            "rank": self.ranks,
            "map_token": self.maps,
            "row": self.rows,
            "head_attn2": self.second.own_heads,
        }
        scales |= {name: np.arange(length) for name, length in some.items() if length}
        if self.ranks or self.atlas:
            scales["top_step"] = np.array(self.top_steps)
        if self.maps or self.rows:
            scales["map_step"] = np.array(self.map_steps)
            scales |= {
                d: np.array(pooled_centres(n, self.pool)) for d, n in zip("yx", self.patches, strict=True)
            }
        if self.atlas or self.raw:
            scales |= {f"patch_{d}": np.arange(n) for d, n in zip("yx", self.patches, strict=True)}
        if self.raw:
            scales |= {name: np.array(indices) for name, indices in self.raw.items()}
        if self.pixels is not None:
            scales["pixel_y"], scales["pixel_x"] = np.arange(self.pixels[0]), np.arange(self.pixels[1])
        return scales

    def heads_of(self, variable: str) -> int:
        """How many heads a variable is along: an attn2 in sd-scripts' layout has its own."""
        is_own = "head_attn2" in schema.variable(variable).dims
        return self.second.own_heads if is_own else self.heads

    def differences(self, other: Layout) -> list[str]:
        """Names of the axes in which another sample's layout differs."""
        return [name for name, value in vars(self).items() if value != getattr(other, name)]


@dataclass(frozen=True)
class SampleFacts:
    """What is written of a sample besides its measurements."""

    index: int
    sample_id: str
    prompt_id: str
    prompt: str
    negative_prompt: str
    prompt_index: int
    image_index: int
    tags: str
    seed: int


def make_layout(
    pipe: StableDiffusion3Pipeline, tiers: Tiers, call: Call, latents: Tensor, first: Tensor, text_tokens: int,
    has_t5: bool, second: SecondAttention,
) -> Layout:  # fmt: skip
    """The axes of a sample, at the first call of its transformer.

    Args:
        latents: what goes into the transformer, (batch row, channel, y, x).
        first: the timestep that it is called with.
    Raises:
        CaptureError: a timestep that is none of the scheduler's.
    """
    config, scheduler, clip = pipe.transformer.config, pipe.scheduler, pipe.tokenizer_max_length
    height, width = latents.shape[-2:]
    patches = (height // config.patch_size, width // config.patch_size)
    begin = _first_step(scheduler, float(first.reshape(-1)[0]))
    timesteps = scheduler.timesteps[begin:].tolist()
    has_image = not tiers.no_images and call.get("output_type") != "latent"
    factor, layers, heads = pipe.vae_scale_factor, config.num_layers, config.num_attention_heads
    return Layout(
        branches=call.branches,
        timesteps=tuple(timesteps),
        sigmas=tuple(float(sigma) for sigma in scheduler.sigmas[begin : begin + len(timesteps)]),
        layers=layers,
        heads=heads,
        second=second,
        token_encoders=tuple(int(each) for each in token_encoders(clip, text_tokens - clip, has_t5)),
        patches=patches,
        pixels=(height * factor, width * factor) if has_image else None,
        ranks=min(tiers.topk, patches[0] * patches[1] + text_tokens),
        top_steps=tuple(choose_steps("top_steps", tiers.top_steps, len(timesteps))),
        maps=map_places(tiers.maps, text_tokens),
        map_steps=tuple(choose_steps("map_steps", tiers.map_steps, len(timesteps))),
        pool=tiers.map_pool,
        map_layers=tuple(choose("map_layers", tiers.map_layers, layers, "layer")),
        rows=count_rows(tiers.rows),
        atlas=tiers.atlas,
        raw=raw_indices(tiers.raw, len(timesteps), layers, heads, text_tokens),
    )


def map_places(maps: str, text_tokens: int) -> int:
    """How many maps a sample has places for, by --maps."""
    return {"off": 0, "first": 1, "words": MAX_MAPS, "all": text_tokens}[maps]


def pairing_fields(
    pipe: StableDiffusion3Pipeline, call: Call, layout: Layout, latents: Tensor, samples: int, has_t5: bool,
    shared: Mapping[str, object],
) -> dict[str, object]:  # fmt: skip
    """What must be equal for two samples to be compared; weights and gates are not among it.

    Args:
        latents: what goes into the transformer. samples: of one call of the pipeline.
        shared: `Session.pairing_fields()`.
    """
    config = pipe.scheduler.config
    return {
        "prompt": call.prompt,
        "negative_prompt": call.negative_prompt,
        "seed": call.seed,
        "steps": len(layout.timesteps),
        "scheduler": {
            "class": type(pipe.scheduler).__name__,
            "shift": config.get("shift"),
            "stochastic": bool(config.get("stochastic_sampling", False)),
            "sigmas": [round(sigma, 5) for sigma in layout.sigmas],
        },
        "guidance": float(call.get("guidance_scale")) if call.guided else None,
        "skip_layer_guidance": call.skip_layer_guidance(),
        "height": latents.shape[-2] * pipe.vae_scale_factor,
        "width": latents.shape[-1] * pipe.vae_scale_factor,
        "max_sequence_length": call.get("max_sequence_length"),
        "t5": has_t5,
        "dtype": str(dtype_in_force(latents)).removeprefix("torch."),
        "batch_size": samples,
        **shared,
        "other": call.other() | shared["other"],
    }


def reads_t5(pipe: StableDiffusion3Pipeline, call: Call, has_t5: bool) -> bool:
    """Whether T5 wrote the second part of the text axis; text states that were given may be of one that is gone.

    Args:
        has_t5: whether the capture has one.
    """
    given = call.get("prompt_embeds")
    return has_t5 or (given is not None and bool(given[:, pipe.tokenizer_max_length :].any()))


def _first_step(scheduler: object, timestep: float) -> int:
    """Where in the scheduler's list a pipeline begins: behind its start, if it begins with a picture."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is None:
        there = [place for place, each in enumerate(scheduler.timesteps.tolist()) if each == timestep]
        begin = there[0] if there else -1
    if begin < 0:
        raise CaptureError(
            f"the transformer's first call has timestep {timestep:g}, which is none of the scheduler's: a capture "
            "cannot tell the steps"
        )
    return begin


def put_facts(
    put: Callable[..., None],
    facts: SampleFacts,
    layout: Layout,
    tables: Mapping[str, TokenTable],
    map_tokens: Sequence[int],
    rows: Sequence[tuple[int, int]],
) -> None:
    """Write what is known when a sample's file is begun.

    Args:
        put: `SampleWriter.put`. tables: of each branch. map_tokens: tokens with maps.
        rows: stream and position of chosen queries.
    """
    cond = layout.branches.index("cond")
    for name, value in vars(facts).items():
        if name != "index":
            put(f"samples/{name}", value)
    ordered = [tables[branch] for branch in layout.branches]
    put("samples/kept_chars", np.stack([table.kept_chars for table in ordered]))
    put("tokens/token_text", np.array([list(table.texts) for table in ordered], dtype=object))
    columns = {
        "group": "groups", "word": "words", "char_start": "starts", "char_end": "ends", "id": "ids",
    }  # fmt: skip
    for name, attribute in columns.items():
        put(f"tokens/token_{name}", np.stack([getattr(table, attribute) for table in ordered]))
    if layout.maps:
        places = np.full(layout.maps, -1, np.int16)
        places[: len(map_tokens)] = map_tokens
        put("maps/map_token_index", places, branch=cond)
    if rows:
        streams, positions = np.array(rows).T
        put("rows/query_stream", streams, branch=cond)
        put("rows/query_index", positions, branch=cond)
