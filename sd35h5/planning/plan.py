"""What a capture would write, before it is begun: shapes, tiers and bytes. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sd35h5.errors import ConfigError
from sd35h5.gates.decision import Decision
from sd35h5.gates.kinds import JOINT, SECOND
from sd35h5.index_lists import choose
from sd35h5.planning.interventions import (
    SecondAttention,
    altered_variables,
    check_interventions,
    parse_interventions,
)
from sd35h5.planning.options import MAX_MAPS, CaptureConfig
from sd35h5.planning.selectors import choose_steps, count_rows, raw_indices
from sd35h5.planning.token_table import CLIP_TOKENS
from sd35h5.store import schema
from sd35h5.weights.model_facts import ModelFacts

_ITEM_BYTES = {"float32": 4, "int64": 8, "int32": 4, "int16": 2, "uint8": 1, "str": 16}
NO_GATES = Decision()
_ROUNDED_SHARE = 0.5  # of the raw bytes: rounded, shuffled and deflated arrays were measured at 0.42 to 0.53


@dataclass(frozen=True)
class Part:
    """One variable of the plan: lengths of its axes without `sample`, and bytes before compression."""

    name: str
    shape: dict[str, int]
    bytes: int
    rounded: bool


@dataclass(frozen=True)
class Plan:
    """What one sample holds."""

    sizes: dict[str, int]
    parts: tuple[Part, ...]

    @property
    def raw_bytes(self) -> int:
        """Bytes of a sample before compression."""
        return sum(part.bytes for part in self.parts)

    @property
    def file_bytes(self) -> int:
        """Bytes to expect in the file, about: rounded arrays shrink to half, others count whole."""
        return round(sum(part.bytes * (_ROUNDED_SHARE if part.rounded else 1) for part in self.parts))


def make_plan(config: CaptureConfig, facts: ModelFacts, gates: Decision = NO_GATES) -> Plan:
    """Lay out one sample of a capture.

    Raises:
        ConfigError: layers, heads, tokens or patches that this model does not have.
    """
    tiers, sampling = config.tiers, config.sampling
    height, width = check_size(config, facts)
    patches = height // facts.scale, width // facts.scale
    tokens = CLIP_TOKENS + sampling.max_sequence_length
    branches = 2 if sampling.guidance > 1 else 1
    sizes = {
        "branch": branches, "step": sampling.steps, "layer": facts.layers, "head": facts.heads,
        "token": tokens,
        "query": len(schema.QUERIES), "group": len(schema.GROUPS), "encoder": len(schema.ENCODERS),
        "top_step": len(choose_steps("top_steps", tiers.top_steps, sampling.steps)),
        "map_step": len(choose_steps("map_steps", tiers.map_steps, sampling.steps)),
        "rank": min(tiers.topk, patches[0] * patches[1] + tokens),
        "map_token": {"off": 0, "first": 1, "words": MAX_MAPS, "all": tokens}[tiers.maps],
        "y": math.ceil(patches[0] / tiers.map_pool), "x": math.ceil(patches[1] / tiers.map_pool),
        "patch_y": patches[0], "patch_x": patches[1], "row": count_rows(tiers.rows),
        "pixel_y": height, "pixel_x": width, "rgb": 3,
    }  # fmt: skip
    raw = raw_indices(tiers.raw, sampling.steps, facts.layers, facts.heads, tokens) or {}
    sizes |= {name: len(indices) for name, indices in raw.items()}
    second = _second(facts, gates)
    sizes |= {"head_attn2": second.own_heads} if second.own_heads else {}
    whole = facts.layers, facts.heads, sampling.steps
    interventions = parse_interventions(config.causal)
    check_interventions(interventions, whole, patches, tokens, second)
    mapped = len(choose("map_layers", tiers.map_layers, facts.layers, "layer"))
    of_second = {"layer": len(second.layers), "query": 1}
    own = {"maps": {"layer": mapped}, "attn2": of_second, "attn2_regrouped": of_second}
    parts = [
        _part(name, sizes | own.get(name.partition("/")[0], {}), present, tiers.precision == "rounded")
        for name, present in _names(config, second, gates, branches)
    ]
    return Plan(sizes, tuple(parts))


def _names(
    config: CaptureConfig, second: SecondAttention, gates: Decision, branches: int
) -> list[tuple[str, int]]:
    """(variable, number of branches that hold it), in the file's order."""
    tiers = config.tiers
    kept = len(tiers.kept_branches) if branches == 2 else 1
    names = [(name, branches) for name in schema.VARIABLES if name.startswith("tokens/")]
    names += [("sinks/mass_image", kept)] + [("sinks/mass_text", kept)] * tiers.text_queries
    names += [("sinks/mass_group", branches), ("sinks/entropy_text", branches)]
    altered = altered_variables(parse_interventions(config.causal), second)
    names += [(name, branches) for name in altered.values()]
    if tiers.topk:
        names += [(name, 1) for name in schema.VARIABLES if name.startswith("topk/")]
    if tiers.maps != "off":
        names += [("maps/map_token_index", 1), ("maps/image_to_text", 1)]
        names += [("maps/image_to_text_per_head", 1)] * (tiers.map_heads == "all")
    if tiers.rows:
        names += [(name, 1) for name in schema.VARIABLES if name.startswith("rows/")]
    if tiers.atlas:
        names += [("sinks/entropy_all", 1), ("atlas/mass_patch", 1)]
    if tiers.raw:
        names.append(("raw/probability", 1))
    if second.layers:
        names += [(second.variable("attn2/entropy_all"), 1)] * bool(tiers.topk or tiers.atlas)
        tops = [name for name in schema.VARIABLES if name.startswith("attn2/top_")]
        names += [(second.variable(name), 1) for name in tops] * bool(tiers.topk)
        names += [(second.variable("attn2/mass_patch"), 1)] * tiers.atlas
    if gates.layers(SECOND):
        names += [(f"attn2/{name}", branches) for name in schema.GATE_STATISTICS]
        names += [(second.variable("attn2/contribution"), 1)] * bool(tiers.topk)
    if gates.layers(JOINT):
        held = [name for name in schema.VARIABLES if name.startswith("gates/")]
        names += [(name, branches) for name in held if name != "gates/contribution"]
        names += [("gates/contribution", 1)] * bool(tiers.topk)
    return names + ([] if tiers.no_images else [("images/image", 1)])


def _second(facts: ModelFacts, gates: Decision) -> SecondAttention:
    """sd-scripts takes the number of heads for the size of a head: there are then as many as channels of one."""
    regrouped = bool(facts.second_layers) and gates.attn2_layout == "sd-scripts"
    return SecondAttention(facts.second_layers, facts.head_dim if regrouped else 0)


def _part(name: str, sizes: dict[str, int], present: int, rounded: bool) -> Part:
    spec = schema.VARIABLES[name]
    shape = {dim: present if dim == "branch" else sizes[dim] for dim in spec.dims if dim != "sample"}
    return Part(name, shape, math.prod(shape.values()) * _ITEM_BYTES[spec.dtype], spec.rounded and rounded)


def in_bytes(count: float) -> str:
    """A number of bytes for people: 53.9 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def check_size(config: CaptureConfig, facts: ModelFacts) -> tuple[int, int]:
    """Height and width to draw: those asked for, or the model's own.

    Raises:
        ConfigError: no multiple of the model's patch.
    """
    size = config.sampling.height or facts.pixels, config.sampling.width or facts.pixels
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels % facts.scale:
            raise ConfigError(f"--{name} {pixels}: this model draws multiples of {facts.scale} pixels")
    return size
