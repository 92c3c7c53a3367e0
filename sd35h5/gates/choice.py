"""Which gates the transformer draws with: those of a file or made anew, asserted, restricted and forced by options."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from sd35h5.errors import ConfigError
from sd35h5.gates.files import GateSource, make_gates, tell_places, zero_rows_of
from sd35h5.gates.forms import OURS
from sd35h5.gates.modules import (
    ACTIVATIONS,
    JOINT,
    SECOND,
    TARGETS,
    Gates,
    attn2_layout_of,
    build_gates,
    install_gates,
)
from sd35h5.gates.options import GateOptions
from sd35h5.gates.texts import forced_value, parse_layers, tell_forced, tell_layers

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

log = logging.getLogger("sd35h5")


@dataclass(frozen=True)
class Choice:
    """What to put on the transformer: gates, the layout of attn2, and what the store should tell of them."""

    gates: Gates | None
    attn2_layout: str
    record: dict[str, str]


def put_gates(transformer: SD3Transformer2DModel, choice: Choice) -> None:
    """Put the chosen gates on the transformer, which is on its device, and say so."""
    if choice.gates is not None or choice.attn2_layout != "diffusers":
        install_gates(transformer, choice.gates, choice.attn2_layout)
    if choice.gates is not None:
        places = tell_places([(layer, attention) for layer, attention, _ in choice.gates.all()])
        origin = (
            f"made anew ({record['init']})"
            if "init" in (record := choice.record)
            else f"from {record['file']}"
        )
        log.info("gates: %s, on %s, %s", choice.gates.gate_type, places, origin)


def choose_gates(
    transformer: SD3Transformer2DModel, source: GateSource | None, options: GateOptions
) -> Choice:
    """Decide which gates the transformer draws with.

    Args:
        transformer: its sizes are asked, not its weights, so that it may be on the meta device.
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
    if gates is not None:
        gates = _apply(gates, options, source.name)
    if zeros := zero_rows_of(source, len(transformer.transformer_blocks)):
        record |= {"zero_rows": f"{options.gate_zero_rows}: {tell_places(zeros)}"}
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
    return _apply(gates, options, "the model")


def _chosen(gates: Gates, options: GateOptions, name: str) -> set[tuple[int, str]]:
    """The gates that --gate_target and --gate_layers name.

    Raises:
        ConfigError: one of them names what is not there.
    """
    there = {(layer, attention) for layer, attention, _ in gates.all()}
    kept = {place for place in there if place[1] in TARGETS[options.gate_target]}
    if not kept:
        raise ConfigError(
            f"--gate_target {options.gate_target}: {name} has gates on {tell_places(sorted(there))} only"
        )
    wanted = set(parse_layers(options.gate_layers))
    if missing := sorted(wanted - {layer for layer, _ in kept}):
        raise ConfigError(
            f"--gate_layers {options.gate_layers}: {name} has no gate on layer {tell_layers(missing)}, "
            f"it has {tell_places(sorted(kept))}"
        )
    return {place for place in kept if not wanted or place[0] in wanted}


def _apply(gates: Gates, options: GateOptions, name: str) -> Gates:
    """Force the gates that the options name, or leave out those that they do not."""
    return (_force if options.gate_override else _restrict)(gates, options, name)


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
    log.info("gates forced to %s on %s", tell_forced(value), tell_places(sorted(chosen)))
    return gates
