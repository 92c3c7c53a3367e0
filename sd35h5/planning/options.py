"""The options of a capture, each explained once, beside its field; `--help` is made from that. Torch-free."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from sd35h5.flags import Count, Flag, Text
from sd35h5.gates.gate_options import GateOptions
from sd35h5.planning.interventions import CausalOptions
from sd35h5.planning.spread_options import Spread
from sd35h5.weights.model_options import Model

MAX_MAPS = 24
AUTO = "auto"
CLIP, T5 = ENCODER_MASKS = "clip", "t5"  # kinds of text encoders in which padding can be masked


@dataclass(frozen=True)
class Prompts:
    """What is drawn. Sample i is the pipeline's own picture for
    `generator=torch.Generator("cpu").manual_seed(seed + i)`."""

    prompt: Annotated[tuple[str, ...], arg(help_behavior_hint="")] = ()
    """One prompt or several: --prompt "a red apple" "a cat on a chair"."""
    prompts_json: Annotated[Text, arg(aliases=["--prompts_file"])] = ""
    """A file instead: JSON, a list of prompts or of {"id": "apple", "prompt": "a red apple"}, the same as JSON
    Lines, or plain text, one a line. An object may have a negative_prompt, a seed and tags of its own."""
    limit: Count = None
    """Take only the first so many prompts."""
    negative_prompt: Text = ""
    """What to steer away from, for all prompts that have none of their own."""
    num_images: int = 1
    """Images a prompt, each a sample of its own; image j adds 1,000,000 times j to the seed."""
    seed: int = 0
    """Seed of the first prompt; the i-th prompt of the list has seed + i, if it has none of its own."""


@dataclass(frozen=True)
class Sampling:
    """How it is drawn; the same meaning as in the pipeline."""

    steps: int = 28
    """Denoising steps."""
    guidance: Annotated[float, arg(aliases=["--cfg_scale"])] = 4.5
    """Guidance scale; 1 or less turns guidance off, and there is then no unconditional branch."""
    height: Count = None
    """Height in pixels, a multiple of 16; the model's own size if not given."""
    width: Count = None
    """Width in pixels, a multiple of 16; the model's own size if not given."""
    batch_size: int | Literal["auto"] = 1
    """Samples that are drawn in one call of the pipeline, in the order of the list; the last call may have
    fewer. It pays for small pictures, of which one does not fill a GPU, and takes memory for all of them. The
    last bits of a picture can depend on how many are drawn with it: samples pair only with those of calls as
    large, and to go on, a call of which anything is missing is drawn whole. `auto` takes as many, up to 16, as
    fit the GPU by a rule of thumb, 1 on a CPU, and keeps to that number when it goes on."""
    max_sequence_length: Annotated[int, arg(aliases=["--t5xxl_token_length"])] = 256
    """T5 tokens, 1 to 512. The text axis has these after CLIP's 77."""
    apply_lg_attn_mask: Flag = False
    """Mask padding inside CLIP-L and CLIP-G, as sd-scripts does for models trained so. The picture is then no
    longer the plain pipeline's."""
    apply_t5_attn_mask: Flag = False
    """The same inside T5."""

    @property
    def encoder_masks(self) -> tuple[str, ...]:
        """Text encoders with a mask: of `clip` and `t5`."""
        return (CLIP,) * self.apply_lg_attn_mask + (T5,) * self.apply_t5_attn_mask


@dataclass(frozen=True)
class Tiers:
    """What is kept. The sinks tier is always on, at every step: the mass of every text token, group
    masses, entropy, and the gates of a gated model. --dry_run tells what each choice costs in bytes."""

    maps: Literal["off", "first", "words", "all"] = "words"
    """Maps of where the image looks at a token: `first` is the CLIP start token alone, `words` that and at
    most 23 words, `all` every token."""
    words: Annotated[tuple[str, ...], arg(help_behavior_hint="")] = ()
    """Words or phrases to map in place of the first ones: --words cat "red apple"."""
    map_steps: str = "every:4"
    """Steps of the maps: `every:4`, `all`, or a list such as `0,5,27`."""
    map_layers: str = "all"
    """Layers with maps: `all`, `every:2`, or a list such as `0,12-18`."""
    map_heads: Literal["mean", "all"] = "mean"
    """Average the maps over heads, or keep one a head, too (as many times larger as there are heads)."""
    map_pool: Literal[1, 2, 4] = 2
    """Average maps over so many patches each way; 1 keeps every patch."""
    topk: int = 16
    """Keep the so many heaviest keys of each head over text and image together; 0 turns this off."""
    top_steps: str = "every:4"
    """Steps of the heaviest keys, written like --map_steps."""
    branches: tuple[Literal["cond", "uncond"], ...] = ("cond",)
    """Branches whose mass is kept for every token. Group masses are kept for all branches anyway."""
    no_unconditional: Annotated[Flag, arg(aliases=["--keep_unconditional"])] = False
    """The same as --branches cond uncond: keep the unconditional branch **too**. The name is that of the
    tool people come from, and so is its meaning."""
    text_queries: Flag = False
    """Keep also how the text looks at every token, not only how the image does."""
    rows: Annotated[tuple[str, ...], arg(help_behavior_hint="")] = ()
    """Chosen queries whose whole row of attention is kept, mean over heads, at the steps of the maps:
    patches `centre`, `sample:16` (spread evenly) or `x,y`, and tokens `token:0` or `word:cat`."""
    atlas: Flag = False
    """The mass of every image patch from both streams, and the entropy of whole rows, at --top_steps."""
    raw: Annotated[tuple[str, ...], arg(help_behavior_hint="")] = ()
    """Unpooled maps of every head, for a close look: any of `steps=0,14`, `layers=3-5`, `heads=all` and
    `tokens=0-15`; all of what is not named. Large: see --dry_run."""
    precision: Literal["rounded", "exact"] = "rounded"
    """`rounded` keeps 10 bits of mantissa in the large arrays (0.05 % error, less than half the size)."""
    no_images: Annotated[Flag, arg(aliases=["--skip_images"])] = False
    """Do not store the images."""

    @property
    def kept_branches(self) -> tuple[str, ...]:
        """Branches with mass for every token, in the file's order."""
        wanted = {*self.branches, *(("cond", "uncond") if self.no_unconditional else ())}
        return tuple(branch for branch in ("cond", "uncond") if branch in wanted)


@dataclass(frozen=True)
class Output:
    """Where it goes. Ctrl-C is safe: sealed samples stay, and the same command goes on with the next."""

    out: str = "run.h5"
    """The file to make. Until it is whole, samples gather in the folder OUT.parts, which opens like it."""
    overwrite: Flag = False
    """Remove what is at --out first."""
    budget: Text = ""
    """Bytes that the file may take, about: `500MB`, `4GB`. The richest tiers that fit are chosen, and the
    plan is printed."""


@dataclass(frozen=True)
class CaptureConfig:
    """A whole capture."""

    model: Model = field(default_factory=Model)
    prompts: Prompts = field(default_factory=Prompts)
    sampling: Sampling = field(default_factory=Sampling)
    tiers: Tiers = field(default_factory=Tiers)
    gating: GateOptions = field(default_factory=GateOptions)
    causal: CausalOptions = field(default_factory=CausalOptions)
    output: Output = field(default_factory=Output)
    spread: Spread = field(default_factory=Spread)

    def flat(self) -> dict[str, object]:
        """All that decides the data, by option name: what must be equal to continue a capture."""
        parts = (self.model, self.prompts, self.sampling, self.tiers, self.gating, self.causal)
        options = {name: value for part in parts for name, value in dataclasses.asdict(part).items()}
        return json.loads(json.dumps(options))
