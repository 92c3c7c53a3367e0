"""The options of a capture, each explained once, beside its field; `--help` is made from that. Torch-free."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from sd35h5.capturing.encoder_masks import CLIP, T5
from sd35h5.capturing.interventions import CausalOptions, parse_interventions
from sd35h5.capturing.selectors import check_rows, choose_steps, count_rows, parse_raw
from sd35h5.capturing.tokens import check_phrases
from sd35h5.errors import ConfigError
from sd35h5.flags import Count, Flag, Text
from sd35h5.gates.options import GateOptions, validate_gate_options
from sd35h5.weights.options import DTYPES, Model

IMAGE_SEED_STRIDE = 1_000_000
MAX_MAPS = 24


@dataclass(frozen=True)
class Prompts:
    """What is drawn. Sample i is the pipeline's own picture for
    `generator=torch.Generator("cpu").manual_seed(seed + i)`."""

    prompt: Annotated[tuple[str, ...], arg(help_behavior_hint="")] = ()
    """One prompt or several: --prompt "a red apple" "a cat on a chair"."""
    prompts_json: Text = ""
    """A JSON file instead: a list of prompts, or of {"id": "apple", "prompt": "a red apple"}."""
    limit: Count = None
    """Take only the first so many prompts."""
    negative_prompt: Text = ""
    """What to steer away from, for all prompts."""
    num_images: int = 1
    """Images a prompt, each a sample of its own; image j adds 1,000,000 times j to the seed."""
    seed: int = 0
    """Seed of the first prompt; the i-th prompt of the list has seed + i."""


@dataclass(frozen=True)
class Sampling:
    """How it is drawn; the same meaning as in the pipeline."""

    steps: int = 28
    """Denoising steps."""
    guidance: float = 4.5
    """Guidance scale; 1 or less turns guidance off, and there is then no unconditional branch."""
    height: Count = None
    """Height in pixels, a multiple of 16; the model's own size if not given."""
    width: Count = None
    """Width in pixels, a multiple of 16; the model's own size if not given."""
    batch_size: int = 1
    """Samples that are drawn in one call of the pipeline, in the order of the list; the last call may have
    fewer. It pays for small pictures, of which one does not fill a GPU, and takes memory for all of them. The
    last bits of a picture can depend on how many are drawn with it: samples pair only with those of calls as
    large, and to go on, a call of which anything is missing is drawn whole."""
    max_sequence_length: int = 256
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
    no_unconditional: Flag = False
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

    def flat(self) -> dict[str, object]:
        """All that decides the data, by option name: what must be equal to continue a capture."""
        parts = (self.model, self.prompts, self.sampling, self.tiers, self.gating, self.causal)
        options = {name: value for part in parts for name, value in dataclasses.asdict(part).items()}
        return json.loads(json.dumps(options))


@dataclass(frozen=True)
class Prompt:
    """One prompt of a capture."""

    id: str
    text: str


def validate(config: CaptureConfig) -> list[Prompt]:
    """Check every value that can be judged without the model. Returns: the prompts, in order.

    Raises:
        ConfigError: a sentence naming the option.
    """
    model, sampling = config.model, config.sampling
    validate_gate_options(config.gating)
    if model.dtype != "auto" and model.dtype not in DTYPES:
        raise ConfigError(f"--dtype {model.dtype!r} is unknown: use auto or one of {', '.join(DTYPES)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", model.device):
        raise ConfigError(f"--device {model.device!r} is unknown: use auto, cpu, cuda or cuda:N")
    if model.no_t5 and model.t5xxl_path:
        raise ConfigError("--no_t5 leaves T5 out, and --t5xxl_path gives one: give one of the two")
    if model.dit_path and model.transformer != "transformer":
        raise ConfigError(
            f"--dit_path and --transformer {model.transformer} both name the transformer: give one of the two"
        )
    if model.gates and not Path(model.gates).is_file():
        raise ConfigError(f"--gates {model.gates}: there is no such file")
    at_least = {
        "steps": (sampling.steps, 1),
        "batch_size": (sampling.batch_size, 1),
        "num_images": (config.prompts.num_images, 1),
        "seed": (config.prompts.seed, 0),
        "topk": (config.tiers.topk, 0),
    }
    if config.prompts.limit is not None:
        at_least["limit"] = (config.prompts.limit, 1)
    for name, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"--{name} {value} is too small: it is {least} or more")
    for name, pixels in (("height", sampling.height), ("width", sampling.width)):
        if pixels is not None and (pixels < 16 or pixels % 16):
            raise ConfigError(
                f"--{name} {pixels} is not a multiple of 16: use {max(16, round(pixels / 16) * 16)}"
            )
    if not math.isfinite(sampling.guidance) or sampling.guidance < 0:
        raise ConfigError(f"--guidance {sampling.guidance} is no guidance scale: use 0 or more")
    if not 1 <= sampling.max_sequence_length <= 512:
        raise ConfigError(f"--max_sequence_length {sampling.max_sequence_length} is outside 1..512")
    if sampling.apply_t5_attn_mask and config.model.no_t5:
        raise ConfigError("--apply_t5_attn_mask masks padding inside T5, and --no_t5 draws without it")
    validate_tiers(config.tiers, sampling.steps)
    if parse_interventions(config.causal) and sampling.batch_size > 1:
        raise ConfigError("--intervene alters one sample at a time: leave out --batch_size")
    prompts = load_prompts(config.prompts)
    texts = [prompt.text for prompt in prompts]
    check_phrases(config.tiers.words, texts)
    check_rows(config.tiers.rows, texts)
    return prompts


def validate_tiers(tiers: Tiers, steps: int) -> None:
    """Check the tier options against the number of steps.

    Raises:
        ConfigError: a sentence naming the option.
    """
    choose_steps("map_steps", tiers.map_steps, steps)
    choose_steps("top_steps", tiers.top_steps, steps)
    count_rows(tiers.rows)
    if (raw := parse_raw(tiers.raw)) is not None:
        choose_steps("raw steps", raw.steps, steps)
    if tiers.words and tiers.maps != "words":
        raise ConfigError(f"--words goes with --maps words, not with --maps {tiers.maps}")


def load_prompts(options: Prompts) -> list[Prompt]:
    """Read the prompts from the command line or from a JSON file.

    Raises:
        ConfigError: none, both, an unreadable file, an empty prompt, or an id that comes twice.
    """
    if options.prompt and options.prompts_json:
        raise ConfigError("give --prompt or --prompts_json, not both")
    if not options.prompt and not options.prompts_json:
        raise ConfigError('there is nothing to draw: give --prompt "…", --prompts_json FILE, or try --demo')
    entries: Sequence[object] = (
        _read_json_list(options.prompts_json) if options.prompts_json else options.prompt
    )
    prompts = [_as_prompt(number, entry) for number, entry in enumerate(entries)][: options.limit]
    if not prompts:
        raise ConfigError(f"--prompts_json {options.prompts_json} is an empty list: there is nothing to draw")
    ids = [prompt.id for prompt in prompts]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise ConfigError(f"--prompts_json {options.prompts_json}: the id {twice!r} comes twice")
    return prompts


def _read_json_list(name: str) -> list[object]:
    try:
        entries = json.loads(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--prompts_json {name}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts_json {name} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(
            f'--prompts_json {name} is no list: write ["a red apple", …] or [{{"id": "…", "prompt": "…"}}, …]'
        )
    return entries


def _as_prompt(number: int, entry: object) -> Prompt:
    text = entry.get("prompt") if isinstance(entry, Mapping) else entry
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"prompt {number} is empty or no text: {json.dumps(entry, ensure_ascii=False)[:80]}"
        )
    name = entry.get("id", f"p{number:03d}") if isinstance(entry, Mapping) else f"p{number:03d}"
    return Prompt(str(name), text)


def sample_seed(seed: int, prompt_index: int, image_index: int) -> int:
    """Seed of one sample: seed + its position in the prompt list, plus 1,000,000 an image."""
    return seed + prompt_index + IMAGE_SEED_STRIDE * image_index


PAIRING_FIELDS = (
    "prompt", "negative_prompt", "seed", "steps", "scheduler", "guidance",
    "skip_layer_guidance", "height", "width",
    "max_sequence_length", "encoder_masks", "t5", "dtype", "batch_size", "model_shape",
    "attn2_layout", "other",
)  # fmt: skip


def pairing_key(fields: Mapping[str, object]) -> str:
    """Hash of what must be equal for two samples to be compared: 16 hex digits. Weights and gates are not
    in it.

    Args:
        fields: exactly PAIRING_FIELDS; `other` holds rarely used pipeline arguments.
    """
    if fields.keys() != set(PAIRING_FIELDS):
        raise ValueError(
            f"the pairing key is made of {', '.join(PAIRING_FIELDS)}, not of {', '.join(fields)}"
        )
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
