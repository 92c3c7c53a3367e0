"""Gates out of files: read in any form, checked against the transformer, asserted and restricted by the options."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sd35h5.errors import ConfigError
from sd35h5.gate_forms import (
    OUR_KEY,
    OURS,
    find_gates,
    has_second_attention,
    is_checkpoint,
    split_gate_keys,
    zero_attentions,
)
from sd35h5.gate_options import GateOptions
from sd35h5.gate_texts import forced_value, parse_layers, tell_forced, tell_layers
from sd35h5.gates import (
    ACTIVATIONS,
    JOINT,
    SECOND,
    TARGETS,
    Gates,
    attn2_layout_of,
    build_gates,
    gate_for,
    install_gates,
)

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

log = logging.getLogger("sd35h5")


@dataclass(frozen=True)
class GateSource:
    """The gates that a file holds.

    Args:
        tensors: in form (c) keys, as stored.
        form: `a` (fused rows), `b` (gate_proj) or `c` (ours).
        metadata: what a form (c) file tells: gate_type, activation, attn2_layout.
        second: the file has a second attention: it is of an MMDiT-X.
        layers: blocks of the model in the file, None for a file of gates alone.
    """

    name: str
    form: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    second: bool = False
    layers: int | None = None


@dataclass(frozen=True)
class Choice:
    """What to put on the transformer: gates, the layout of attn2, and what the store should tell of them."""

    gates: Gates | None
    attn2_layout: str
    record: dict[str, str]


def read_gates(path: Path) -> GateSource:
    """Read the gates of a safetensors file, a whole model or gates alone; the model's own weights are not read.

    Raises:
        ConfigError: no readable file, gate keys or shapes that make no sense, or no gates.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            found = find_gates(shapes)
            _refuse_others(path.name, shapes, found)
            tensors = {key: slices[rows.source][rows.start : rows.stop] for key, rows in found.items()}
            metadata = dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise ConfigError(f"gates file {path.name} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path.name} is not a readable safetensors file: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}" if path.name not in str(error) else str(error)) from error
    return _source(path.name, list(shapes), tensors, {rows.form for rows in found.values()}, metadata)


def source_of(state: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], GateSource | None]:
    """Split a checkpoint in memory. Returns: the model without gates, and its gates or None."""
    base, tensors = split_gate_keys(state)
    if not tensors:
        return base, None
    forms = {rows.form for rows in find_gates({key: value.shape for key, value in state.items()}).values()}
    return base, _source(name, list(state), tensors, forms, {})


def _source(
    name: str, keys: Sequence[str], tensors: dict[str, Tensor], forms: set[str], metadata: dict[str, str]
) -> GateSource:
    layers = [int(key.split("blocks.")[1].split(".")[0]) for key in keys if "blocks." in key]
    whole = max(layers) + 1 if is_checkpoint(keys) and layers else None
    return GateSource(name, min(forms), tensors, metadata, has_second_attention(keys), whole)


def _refuse_others(name: str, shapes: Mapping[str, Sequence[int]], found: Mapping[str, object]) -> None:
    if is_checkpoint(list(shapes)):
        if not found:
            raise ConfigError(f"{name} holds a model without gates")
        return
    unknown = [] if any(".gate_proj." in key and "joint_blocks." in key for key in shapes) else [
        key for key in shapes if not OUR_KEY.fullmatch(key)
    ]  # fmt: skip
    if unknown or not found:
        raise ConfigError(
            f"{name} is not a gates file: "
            + (f"unknown key {unknown[0]!r}" if unknown else "it holds no tensors")
            + ", expected transformer_blocks.N.attn.to_gate.weight and the like"
        )


def choose_gates(
    transformer: SD3Transformer2DModel, source: GateSource | None, options: GateOptions
) -> Choice:
    """Decide which gates the transformer draws with.

    Args:
        source: the gates of the model's own files or of --gates; None if there are none.

    Raises:
        ConfigError: a flag that contradicts what there is, or a question that only the user can answer.
    """
    layout = choose_attn2_layout(transformer, source, options)
    record = {} if source is None else {"file": source.name, "form": source.form}
    if source is None:
        gates = _untrained(transformer, options)
        return Choice(gates, layout, record if gates is None else {"init": str(options.gate_init)})
    if options.gate_init:
        raise ConfigError(f"--gate_init {options.gate_init}: {source.name} has gates already, leave it away")
    if options.gate_type == "none":
        log.warning(
            "the gates of %s are left out (--gate_type none): this is not the baseline model, "
            "for it was trained with them", source.name,
        )  # fmt: skip
        return Choice(None, layout, record | {"dropped": "yes"})
    gates = make_gates(source, transformer, options)
    if zeros := _zero_rows(source, len(transformer.transformer_blocks)):
        record |= {"zero_rows": f"{options.gate_zero_rows}: {_tell(zeros)}"}
    return Choice(gates, layout, record)


def choose_attn2_layout(
    transformer: SD3Transformer2DModel, source: GateSource | None, options: GateOptions
) -> str:
    """How attn2 splits its channels into heads.

    Raises:
        ConfigError: it must be said, or what is said contradicts the model or the file.
    """
    asked, told = options.attn2_layout, None if source is None else source.metadata.get("attn2_layout")
    if attn2_layout_of(transformer) is None:
        if asked:
            raise ConfigError(f"--attn2_layout {asked}: this model has no second attention in any layer")
        return "diffusers"
    if told is not None and told not in ("diffusers", "sd-scripts"):
        raise ConfigError(
            f"{source.name} says attn2_layout={told}, which is neither diffusers nor sd-scripts"
        )
    if asked and told and asked != told:
        raise ConfigError(f"{source.name} says attn2_layout={told}, but --attn2_layout {asked} was given")
    if source is not None and source.form != OURS and not asked and source.second:
        raise ConfigError(
            f"{source.name} is a gated MMDiT-X in the original layout, whose second attention (attn2) some "
            "trainers compute with other heads: say --attn2_layout sd-scripts if it was trained with sd-scripts, "
            "--attn2_layout diffusers if not"
        )
    return asked or told or "diffusers"


def _untrained(transformer: SD3Transformer2DModel, options: GateOptions) -> Gates | None:
    """Gates made anew, or none, for a model without."""
    if options.gate_type in ("auto", "none"):
        asked = {
            "gate_layers": options.gate_layers, "gate_override": options.gate_override,
            "gate_zero_rows": options.gate_zero_rows,
            "gate_target": "" if options.gate_target == "all" else options.gate_target,
            "gate_activation": "" if options.gate_activation == "auto" else options.gate_activation,
        }  # fmt: skip
        if name := next((name for name, value in asked.items() if value), None):
            raise ConfigError(f"--{name} {asked[name]}: this model has no gates")
        return None
    if not options.gate_init:
        raise ConfigError(
            f"--gate_type {options.gate_type}: this model has no gates; give a file that has them with --gates, "
            "or make untrained ones with --gate_init identity (1 everywhere) or neutral (0.5, no baseline)"
        )
    activation = "sigmoid" if options.gate_activation == "auto" else options.gate_activation
    gates = build_gates(transformer, options.gate_type, activation, options.gate_target, options.gate_init)
    if options.gate_override:
        return _force(gates, options, "the model")
    return _restrict(gates, options, "the model")


def make_gates(
    source: GateSource, transformer: SD3Transformer2DModel, options: GateOptions | None = None
) -> Gates | None:
    """Make gates of a file's tensors, in float32 on the CPU, as far as the options ask for them.

    Returns: None where --gate_zero_rows off leaves none.

    Raises:
        ConfigError: tensors that do not fit this transformer, or options that contradict them.
    """
    options = options or GateOptions()
    blocks = transformer.transformer_blocks
    places = sorted({(int(key.split(".")[1]), key.split(".")[2]) for key in source.tensors})
    for layer, attention in places:
        if layer >= len(blocks):
            raise ConfigError(
                f"{source.name} has a gate for layer {layer}, but the transformer has layers 0..{len(blocks) - 1}"
            )
        if getattr(blocks[layer], attention, None) is None:
            raise ConfigError(
                f"{source.name} has a gate for attn2 of layer {layer}, which has no second attention"
            )
    gate_type = _type_of(source, transformer, options)
    activation = _activation_of(source, options)
    zeros = _answered_zero_rows(source, options, len(blocks))
    modules = {JOINT: nn.ModuleDict(), SECOND: nn.ModuleDict()}
    for layer, attention in places:
        if (layer, attention) not in zeros:
            gate = gate_for(getattr(blocks[layer], attention), gate_type, activation)
            _fill(source, f"transformer_blocks.{layer}.{attention}", gate)
            modules[attention][str(layer)] = gate
    gates = Gates(gate_type, activation, modules[JOINT], modules[SECOND])
    if not list(gates.all()):
        return None
    if options.gate_override:
        return _force(gates, options, source.name)
    return _restrict(gates, options, source.name)


def _type_of(source: GateSource, transformer: SD3Transformer2DModel, options: GateOptions) -> str:
    """Tell the gate type from the number of rows, and check it against metadata and flag."""
    attn = transformer.transformer_blocks[0].attn
    rows = {tensor.shape[0] for tensor in source.tensors.values()}
    by_rows = {attn.heads: "headwise", attn.to_q.out_features: "elementwise"}
    if len(rows) != 1 or not rows <= by_rows.keys():
        raise ConfigError(
            f"{source.name}: gate rows {sorted(rows)} fit neither {attn.heads} heads "
            f"nor {attn.to_q.out_features} channels"
        )
    gate_type = by_rows[rows.pop()]
    told = source.metadata.get("gate_type", gate_type)
    if told != gate_type:
        raise ConfigError(f"{source.name} says gate_type={told}, but its shapes are {gate_type}")
    if options.gate_type not in ("auto", gate_type):
        raise ConfigError(f"--gate_type {options.gate_type}: the gates of {source.name} are {gate_type}")
    return gate_type


def _activation_of(source: GateSource, options: GateOptions) -> str:
    told, asked = source.metadata.get("activation"), options.gate_activation
    if told is not None and told not in ACTIVATIONS:
        raise ConfigError(
            f"{source.name}: unknown gate activation {told!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    if asked == "auto":
        return told or "sigmoid"
    if told is not None and told != asked:
        raise ConfigError(f"--gate_activation {asked}: {source.name} says its activation is {told}")
    return asked


def _zero_rows(source: GateSource, layers: int) -> list[tuple[int, str]]:
    """Attentions of which the file does not tell whether their gate is applied. In form (c), a gate that is
    there is applied."""
    return [] if source.form == OURS else zero_attentions(source.tensors, layers)


def _answered_zero_rows(source: GateSource, options: GateOptions, layers: int) -> list[tuple[int, str]]:
    """Attentions that are switched off."""
    zeros = _zero_rows(source, layers)
    if zeros and not options.gate_zero_rows:
        raise ConfigError(
            f"{source.name}: the gate rows of {_tell(zeros)} are all zero, which can mean that no gate is applied "
            "there, or a gate of 0.5, and no file tells: say --gate_zero_rows off or --gate_zero_rows half"
        )
    return zeros if options.gate_zero_rows == "off" else []


def _tell(places: Sequence[tuple[int, str]]) -> str:
    """(layer, attention) for people: joint layers 3-5, attn2 layers 0."""
    told = []
    for name, attention in (("joint", JOINT), ("attn2", SECOND)):
        if layers := [layer for layer, where in places if where == attention]:
            told.append(f"{name} layer{'s' * (len(layers) > 1)} {tell_layers(layers)}")
    return " and ".join(told)


def _chosen(gates: Gates, options: GateOptions, name: str) -> set[tuple[int, str]]:
    """The gates that --gate_target and --gate_layers name.

    Raises:
        ConfigError: one of them names what is not there.
    """
    there = {(layer, attention) for layer, attention, _ in gates.all()}
    kept = {place for place in there if place[1] in TARGETS[options.gate_target]}
    if not kept:
        raise ConfigError(
            f"--gate_target {options.gate_target}: {name} has gates on {_tell(sorted(there))} only"
        )
    wanted = set(parse_layers(options.gate_layers))
    if missing := sorted(wanted - {layer for layer, _ in kept}):
        raise ConfigError(
            f"--gate_layers {options.gate_layers}: {name} has no gate on layer {tell_layers(missing)}, "
            f"it has {_tell(sorted(kept))}"
        )
    return {place for place in kept if not wanted or place[0] in wanted}


def _restrict(gates: Gates, options: GateOptions, name: str) -> Gates:
    kept = _chosen(gates, options, name)
    left = {JOINT: nn.ModuleDict(), SECOND: nn.ModuleDict()}
    for layer, attention, gate in gates.all():
        if (layer, attention) in kept:
            left[attention][str(layer)] = gate
    return Gates(gates.gate_type, gates.activation, left[JOINT], left[SECOND])


def _force(gates: Gates, options: GateOptions, name: str) -> Gates:
    value, factor = forced_value(options.gate_override), ACTIVATIONS[gates.activation]
    if value > factor:
        raise ConfigError(
            f"--gate_override {options.gate_override}: gates of {gates.activation} are 0 to {factor:g}"
        )
    chosen = _chosen(gates, options, name)
    for layer, attention, gate in gates.all():
        if (layer, attention) in chosen:
            gate.forced = value
    log.info("gates forced to %s on %s", tell_forced(value), _tell(sorted(chosen)))
    return gates


def _fill(source: GateSource, place: str, gate: nn.Module) -> None:
    """Copy one attention's tensors into its gate, refusing gaps and wrong shapes by key."""
    for name, parameter in gate.named_parameters():
        key = f"{place}.{name}"
        if key not in source.tensors:
            raise ConfigError(f"{source.name} lacks {key}")
        if source.tensors[key].shape != parameter.shape:
            raise ConfigError(
                f"{source.name}: {key} has shape {tuple(source.tensors[key].shape)}, "
                f"expected {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(source.tensors[key])


def put_gates(transformer: SD3Transformer2DModel, source: GateSource | None, options: GateOptions) -> Choice:
    """Choose the gates, put them on the transformer, which is on its device, and say so.

    Raises:
        ConfigError: as `choose_gates` does.
    """
    choice = choose_gates(transformer, source, options)
    if choice.gates is not None or choice.attn2_layout != "diffusers":
        install_gates(transformer, choice.gates, choice.attn2_layout)
    if choice.gates is not None:
        places = _tell([(layer, attention) for layer, attention, _ in choice.gates.all()])
        origin = f"made anew ({options.gate_init})" if source is None else f"from {source.name}"
        log.info("gates: %s, on %s, %s", choice.gates.gate_type, places, origin)
    return choice
