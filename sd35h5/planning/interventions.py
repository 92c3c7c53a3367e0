"""What --intervene and --control may say: which keys of attention are altered, where, and how. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from tyro.conf import arg

from sd35h5.errors import ConfigError
from sd35h5.flags import Text
from sd35h5.index_lists import choose
from sd35h5.store.schema import GROUPS, QUERIES, REGROUPED

_KEYS = re.compile(r"token:[\d,-]+|patch:\d+,\d+|top:[1-9]\d*|" + "|".join(GROUPS))
_ACTION = re.compile(r"(?P<action>mask|value0|scale:(?P<odds>[^:]*)):(?P<keys>.+)")
_PLACES = ("layers", "heads", "steps", "queries", "attn")
_EXAMPLE = (
    "write mask:KEYS, value0:KEYS or scale:0.5:KEYS, then any of @layers 4-9 @heads 0,3 @steps 0-5 "
    "@queries image @attn attn2"
)
JOINT, SECOND = "joint", "attn2"
ALTERED_MASS = {
    JOINT: "sinks/altered_mass",
    SECOND: "attn2/altered_mass",
}  # attention -> variable of the file


@dataclass(frozen=True)
class SecondAttention:
    """MMDiT-X's second, image-only attention.

    Args:
        layers: those that have one.
        own_heads: how many heads it has where they are not those of the joint attention, as in sd-scripts' layout;
            0 where they are.
    """

    layers: tuple[int, ...] = ()
    own_heads: int = 0

    def variable(self, name: str) -> str:
        """The variable that holds what `name` does of an attention with the joint one's heads."""
        return REGROUPED.get(name, name) if self.own_heads else name


NO_SECOND = SecondAttention()


@dataclass(frozen=True)
class CausalOptions:
    """Causal runs: alter the attention while it draws, and measure the altered model. The samples pair with those
    of the run without it. The joint attention is altered, or SD3.5-Medium's attn2, in every branch."""

    intervene: Annotated[tuple[str, ...], arg(help_behavior_hint="")] = ()
    """`mask:KEYS` takes keys out of the softmax, `value0:KEYS` keeps their probabilities and zeroes their
    values, `scale:0.5:KEYS` multiplies their odds. KEYS: token groups (clip_bos, t5_pad, image), `token:0,5-9`,
    `patch:x,y`, `top:1` (each head's heaviest), joined by `+`; then @layers 4-9 @heads 0,3 @steps 0-5
    @queries image, all where not given; @attn attn2 for the second, image-only attention. Several apply in
    order."""
    control: Text = ""
    """`random:SEED`: alter other keys in place of the named ones, drawn by lot up to the same mass."""


@dataclass(frozen=True)
class Intervention:
    """One alteration of attention.

    Args:
        odds: what the keys' odds are multiplied by: 0 takes them out of the softmax, 1 leaves A as it is.
        zero_values: the keys' values are zero.
        keys: the parts between `+`, each a group, token:…, patch:x,y or top:N.
        layers, heads, steps: as `selectors.choose` reads them. queries: `all`, `image` or `text`.
        attn: `joint`, or `attn2` for MMDiT-X's second attention, whose queries and keys are the image's alone.
    """

    text: str
    odds: float
    zero_values: bool
    keys: tuple[str, ...]
    layers: str = "all"
    heads: str = "all"
    steps: str = "all"
    queries: str = "all"
    attn: str = JOINT

    @property
    def top(self) -> int:
        """How many of each head's heaviest keys are among the keys."""
        return max((int(key.removeprefix("top:")) for key in self.keys if key.startswith("top:")), default=0)

    @property
    def streams(self) -> tuple[int, ...]:
        """Positions along the query axis of the queries that it acts on."""
        return tuple(i for i, name in enumerate(QUERIES) if self.queries in ("all", name))


def altered_variables(
    interventions: Sequence[Intervention], second: SecondAttention = NO_SECOND
) -> dict[str, str]:
    """Attention -> the variable that holds the mass which they alter in it, in the file's order."""
    altered = {each.attn for each in interventions}
    return {attn: second.variable(name) for attn, name in ALTERED_MASS.items() if attn in altered}


def parse_interventions(options: CausalOptions) -> tuple[Intervention, ...]:
    """Read --intervene; the shell may have split it at its spaces.

    Raises:
        ConfigError: a text that is not understood, or a control of nothing.
    """
    control_seed(options)
    joined = re.sub(r"\s+@", "@", " ".join(options.intervene))
    return tuple(_parse(text) for text in re.sub(r"(@[a-z]+)\s+", r"\1=", joined).split())


def control_seed(options: CausalOptions) -> int | None:
    """Seed of --control random:SEED, None without it.

    Raises:
        ConfigError: another text, or nothing that it could be a control of.
    """
    if not options.control:
        return None
    match = re.fullmatch(r"random:(\d{1,9})", options.control)
    if match is None:
        raise ConfigError(
            f"--control {options.control!r} is not understood: write random:SEED, such as random:0"
        )
    if not options.intervene:
        raise ConfigError(f"--control {options.control} is a control of --intervene, which is not given")
    return int(match[1])


def _parse(text: str) -> Intervention:
    told, *places = text.split("@")
    match = _ACTION.fullmatch(told)
    if match is None:
        raise ConfigError(f"--intervene {text!r} is not understood: {_EXAMPLE}")
    keys = tuple(match["keys"].split("+"))
    for key in keys:
        if not _KEYS.fullmatch(key):
            raise ConfigError(
                f"--intervene {text}: {key!r} names no keys: use {', '.join(GROUPS)}, token:0,5-9, patch:x,y or "
                "top:1, joined by +"
            )
    given: dict[str, str] = {}
    for place in places:
        name, _, chosen = place.partition("=")
        if name not in _PLACES or not chosen or name in given:
            raise ConfigError(f"--intervene {text}: '@{place}' is not understood: {_EXAMPLE}, each once")
        given[name] = chosen
    if given.get("queries", "all") not in ("all", *QUERIES):
        raise ConfigError(f"--intervene {text}: @queries {given['queries']} is neither image, text nor all")
    if given.get("attn", JOINT) == SECOND:
        _check_second(text, match["action"], keys, given)
    elif given.get("attn", JOINT) != JOINT:
        raise ConfigError(f"--intervene {text}: @attn {given['attn']} is neither {JOINT} nor {SECOND}")
    odds = _odds(text, match["odds"]) if match["odds"] is not None else float(match["action"] != "mask")
    return Intervention(text, odds, match["action"] == "value0", keys, **given)


def _check_second(text: str, action: str, keys: tuple[str, ...], given: dict[str, str]) -> None:
    """Refuse what attn2 does not have: text tokens as keys, text queries, or a key left beside the image.

    From here on its queries are `all`: there are no others than the image's."""
    if strange := [key for key in keys if key != "image" and not key.startswith(("patch:", "top:"))]:
        raise ConfigError(
            f"--intervene {text}: attn2 sees the image alone, and {strange[0]} is text: use image, patch:x,y or "
            "top:1"
        )
    if given.pop("queries", "all") == "text":
        raise ConfigError(f"--intervene {text}: attn2 has no text queries, only the image's")
    if action == "mask" and "image" in keys:
        raise ConfigError(f"--intervene {text}: takes every key out of attn2, and some must stay")


def _odds(text: str, told: str) -> float:
    try:
        odds = float(told)
    except ValueError:
        odds = math.nan
    if not 1e-4 <= odds <= 1e4:
        raise ConfigError(
            f"--intervene {text}: {told!r} is no factor of odds: use a number of 0.0001 to 10000, or mask:… for 0"
        )
    return odds


@dataclass(frozen=True)
class Reach:
    """Where an intervention acts in a model of known size."""

    layers: frozenset[int]
    heads: tuple[int, ...]
    steps: frozenset[int]


def reach(each: Intervention, sizes: tuple[int, int, int], second: SecondAttention = NO_SECOND) -> Reach:
    """Where it acts in a model.

    Args:
        sizes: layers, heads, steps.
        second: in whose layers and heads alone an intervention on attn2 acts.

    Raises:
        ConfigError: an index that is not there.
    """
    layers, heads, steps = sizes
    chosen = frozenset(choose("intervene @layers", each.layers, layers, "layer"))
    if each.attn == SECOND:
        chosen = _with_second(each, chosen, second.layers)
        heads = second.own_heads or heads
    return Reach(
        chosen,
        tuple(choose("intervene @heads", each.heads, heads, "head")),
        frozenset(choose("intervene @steps", each.steps, steps, "step")),
    )


def _with_second(each: Intervention, layers: frozenset[int], second_layers: Sequence[int]) -> frozenset[int]:
    """Those of the layers that have an attn2; a list that names others is refused, `all` and `every:N` are not."""
    there, missing = layers & frozenset(second_layers), layers - frozenset(second_layers)
    if not second_layers:
        raise ConfigError(
            f"--intervene {each.text}: this model has no attn2 to alter: SD3.5-Medium has one in its first layers"
        )
    if not there or (missing and each.layers != "all" and not each.layers.startswith("every:")):
        raise ConfigError(
            f"--intervene {each.text}: layer {min(missing)} has no attn2: of this model "
            f"layers {', '.join(map(str, second_layers))} have one"
        )
    return there


def named_keys(each: Intervention, token_groups: np.ndarray, patches: tuple[int, int]) -> np.ndarray:
    """The keys that it names, without `top`: bool (patches + tokens), image first; of attn2 the patches alone.

    Args:
        token_groups: group of each text token. patches: (y, x) of the image tokens.

    Raises:
        ConfigError: a token or patch that is not there, or as many heaviest keys as there are keys.
    """
    height, width = patches
    token_groups = token_groups[:0] if each.attn == SECOND else token_groups
    image, tokens = height * width, len(token_groups)
    named = np.zeros(image + tokens, bool)
    for key in each.keys:
        kind, _, argument = key.partition(":")
        if kind == "token":
            chosen = choose("intervene token", argument, tokens, "token")
            named[np.array(chosen) + image] = True
        elif kind == "patch":
            x, y = map(int, argument.split(","))
            if x >= width or y >= height:
                raise ConfigError(f"--intervene {key}: patches are numbered 0,0 to {width - 1},{height - 1}")
            named[y * width + x] = True
        elif kind == "image":
            named[:image] = True
        elif kind != "top":
            named[image:] |= token_groups == GROUPS.index(kind)
    if each.top >= len(named):
        raise ConfigError(f"--intervene top:{each.top}: attention has {len(named)} keys, and some must stay")
    return named


def check_interventions(
    interventions: Sequence[Intervention],
    sizes: tuple[int, int, int],
    patches: tuple[int, int],
    tokens: int,
    second: SecondAttention = NO_SECOND,
) -> None:
    """Refuse what is not there, before anything is loaded.

    Args:
        sizes: layers, heads, steps.

    Raises:
        ConfigError: a sentence naming it.
    """
    nowhere = np.zeros(tokens, int)
    for each in interventions:
        reach(each, sizes, second)
        named_keys(each, nowhere, patches)
