"""What a capture would write, before it is begun: shapes, tiers and bytes. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sd35h5.capturing.config import MAX_MAPS, CaptureConfig, Prompt
from sd35h5.capturing.cost import told_cost
from sd35h5.capturing.interventions import altered_variables, check_interventions, parse_interventions
from sd35h5.capturing.selectors import choose, choose_steps, count_rows, raw_indices
from sd35h5.capturing.tokens import CLIP_TOKENS
from sd35h5.errors import ConfigError
from sd35h5.store import schema
from sd35h5.weights.facts import ModelFacts

_ITEM_BYTES = {"float32": 4, "int64": 8, "int32": 4, "int16": 2, "uint8": 1, "str": 16}
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


def make_plan(config: CaptureConfig, facts: ModelFacts) -> Plan:
    """Lay out one sample of a capture."""
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
    whole = facts.layers, facts.heads, sampling.steps
    interventions = parse_interventions(config.causal)
    check_interventions(interventions, whole, patches, tokens, _second_layers(config, facts))
    mapped = len(choose("map_layers", tiers.map_layers, facts.layers, "layer"))
    own = {"maps": {"layer": mapped}, "attn2": {"layer": len(facts.second_layers), "query": 1}}
    parts = [
        _part(name, sizes | own.get(name.partition("/")[0], {}), present, tiers.precision == "rounded")
        for name, present in _names(config, facts, branches)
    ]
    return Plan(sizes, tuple(parts))


def _names(config: CaptureConfig, facts: ModelFacts, branches: int) -> list[tuple[str, int]]:
    """(variable, number of branches that hold it), in the file's order."""
    tiers = config.tiers
    kept = len(tiers.kept_branches) if branches == 2 else 1
    names = [(name, branches) for name in schema.VARIABLES if name.startswith("tokens/")]
    names += [("sinks/mass_image", kept)] + [("sinks/mass_text", kept)] * tiers.text_queries
    names += [("sinks/mass_group", branches), ("sinks/entropy_text", branches)]
    names += [(name, branches) for name in altered_variables(parse_interventions(config.causal))]
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
    if _second_layers(config, facts):
        names += [("attn2/entropy_all", 1)] * bool(tiers.topk or tiers.atlas)
        tops = [name for name in schema.VARIABLES if name.startswith("attn2/top_")]
        names += [(name, 1) for name in tops] * bool(tiers.topk)
        names += [("attn2/mass_patch", 1)] * tiers.atlas
    if _is_gated(config, facts):
        gates = [name for name in schema.VARIABLES if name.startswith("gates/")]
        names += [(name, branches) for name in gates if name != "gates/contribution"]
        names += [("gates/contribution", 1)] * bool(tiers.topk)
    return names + ([] if tiers.no_images else [("images/image", 1)])


def _second_layers(config: CaptureConfig, facts: ModelFacts) -> tuple[int, ...]:
    """Layers with a second attention whose heads are those of the file, and which can be measured and altered."""
    return () if config.gating.attn2_layout == "sd-scripts" else facts.second_layers


def _is_gated(config: CaptureConfig, facts: ModelFacts) -> bool:
    """Whether it will draw with gates, as far as that shows before the weights are read."""
    held = facts.gates_file is not None or facts.own_gates or config.gating.gate_init is not None
    return bool(held) and config.gating.gate_type != "none"


def _part(name: str, sizes: dict[str, int], present: int, rounded: bool) -> Part:
    spec = schema.VARIABLES[name]
    shape = {dim: present if dim == "branch" else sizes[dim] for dim in spec.dims if dim != "sample"}
    return Part(name, shape, math.prod(shape.values()) * _ITEM_BYTES[spec.dtype], spec.rounded and rounded)


def describe_plan(config: CaptureConfig, facts: ModelFacts, prompts: list[Prompt]) -> str:
    """The plan as text: the model, the samples, a line for each array, and the sum."""
    plan, sampling = make_plan(config, facts), config.sampling
    samples = len(prompts) * config.prompts.num_images
    gates = f"gates from {facts.gates_file}" if facts.gates_file else facts.own_gates or "no gates"
    pixels = f"{plan.sizes['pixel_y']} × {plan.sizes['pixel_x']} px"
    second = f"\n  {len(facts.second_layers)} layers have a second, image-only attention: group attn2"
    images = _count(config.prompts.num_images, "image")
    told = [
        f"{_count(samples, 'sample')}: {_count(len(prompts), 'prompt')} × {images}",
        *[f"{sampling.batch_size} a call of the pipeline"] * (sampling.batch_size > 1),
        f"seed {config.prompts.seed}", _count(sampling.steps, "step"), f"guidance {sampling.guidance:g}",
        pixels, f"{plan.sizes['token']} text tokens",
    ]  # fmt: skip
    width = max(len(part.name) for part in plan.parts)
    lines = [
        f"{config.model.model_id}: {facts.layers} layers, {facts.heads} heads of {facts.head_dim}, {gates}"
        + second * bool(facts.second_layers),
        "  " + ", ".join(told),
        *_told_interventions(config),
        "a sample, before compression:",
    ]
    for part in plan.parts:
        axes = " × ".join(f"{dim} {length}" for dim, length in part.shape.items())
        lines.append(f"  {part.name:{width}}  {in_bytes(part.bytes):>9}  {axes}")
    lines.append(
        f"sum: {in_bytes(plan.raw_bytes)} a sample, about {in_bytes(plan.file_bytes)} in the file; "
        f"{_count(samples, 'sample')}: about {in_bytes(samples * plan.file_bytes)} in {config.output.out}"
    )
    lines.append(told_cost(config.tiers, sampling.steps, plan.raw_bytes))
    return "\n".join(lines)


def _told_interventions(config: CaptureConfig) -> list[str]:
    control = f", control {config.causal.control}: other keys of the same mass" * bool(config.causal.control)
    texts = [each.text for each in parse_interventions(config.causal)]
    return [f"  intervention: {' '.join(texts)}{control}"] * bool(texts)


def in_bytes(count: float) -> str:
    """A number of bytes for people: 53.9 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


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
