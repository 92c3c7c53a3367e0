"""Which gates a model draws with, decided from what its file holds and the options, before a weight is read.

Torch-free: a plan asks it with the headers of files, the loader with the tensors themselves; one set of rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sd35h5.errors import ConfigError
from sd35h5.gates.forms import OURS
from sd35h5.gates.kinds import ACTIVATIONS, JOINT, LAYOUTS, SECOND, TARGETS, Place
from sd35h5.gates.texts import (
    attn2_question,
    forced_value,
    parse_layers,
    tell_layers,
    tell_places,
    zeros_question,
)
from sd35h5.gates.writers import attn2_layout_by_writer

if TYPE_CHECKING:
    from sd35h5.gates.gate_options import GateOptions


@dataclass(frozen=True)
class Sizes:
    """What the gates of a transformer depend on.

    Args:
        channels: of the stream, heads × head size.
        second_layers: blocks that have a second, image-only attention.
    """

    layers: int
    heads: int
    channels: int
    second_layers: tuple[int, ...]


@dataclass(frozen=True)
class Attn2:
    """What a transformer's own file tells of how its second attention splits channels into heads.

    Args:
        file: of an MMDiT-X in the original layout, in which trainers save, too; empty where nothing is asked.
        told: `diffusers` or `sd-scripts`; empty where nothing tells.
    """

    file: str = ""
    told: str = ""


@dataclass(frozen=True)
class HeldGates:
    """The gates that a file holds, as far as its header and its zeros tell.

    Args:
        shapes: shape of every gate tensor by its form (c) key.
        form: `a` (fused rows), `b` (gate_proj) or `c` (ours).
        zeros: attentions whose gate rows are all zero.
        metadata: what a form (c) file tells: gate_type, activation, attn2_layout.
        second: the file has a second attention: it is of an MMDiT-X.
    """

    name: str
    form: str
    shapes: Mapping[str, tuple[int, ...]]
    zeros: tuple[Place, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    second: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """Attentions that have a gate, ascending."""
        return tuple(sorted({(int(key.split(".")[1]), key.split(".")[2]) for key in self.shapes}))


@dataclass(frozen=True)
class Decision:
    """Which gates are put on: `places` carry one of `gate_type` ("" without any), `forced_places` a constant.

    Args:
        init: how untrained gates are made; None for those of a file.
        dropped: the file's gates are left out, which does not make it the baseline.
        record: what the store tells of it.
    """

    gate_type: str = ""
    activation: str = ""
    places: tuple[Place, ...] = ()
    forced: float | None = None
    forced_places: tuple[Place, ...] = ()
    init: str | None = None
    dropped: bool = False
    attn2_layout: str = "diffusers"
    record: Mapping[str, str] = field(default_factory=dict)

    def layers(self, attention: str) -> tuple[int, ...]:
        """Blocks whose attention of that name carries a gate, ascending."""
        return tuple(layer for layer, where in self.places if where == attention)


def decide(
    sizes: Sizes, held: HeldGates | None, options: GateOptions, attn2: Attn2 | None = None
) -> Decision:
    """Decide which gates a transformer draws with, and how its attn2 is computed.

    Args:
        attn2: what the transformer's own file tells of the latter.

    Raises:
        ConfigError: a file that does not fit, a flag that contradicts what there is, or questions that only the
            user can answer, asked together.
    """
    attn2 = attn2 or Attn2()
    if held is None:
        _ask(sizes, None, options, (), attn2)
        layout = _attn2_layout(sizes, None, options, attn2)
        return replace(_untrained(sizes, options), attn2_layout=layout)
    if options.gate_init:
        raise ConfigError(f"--gate_init {options.gate_init}: {held.name} has gates already, leave it away")
    record = {"file": held.name, "form": held.form}
    if options.gate_type == "none":
        _ask(sizes, held, options, (), attn2)
        layout = _attn2_layout(sizes, held, options, attn2)
        return Decision(dropped=True, attn2_layout=layout, record=record | {"dropped": "yes"})
    _check_places(sizes, held)
    gate_type, activation = _type_of(sizes, held, options), _activation_of(held, options)
    zeros = zero_places(held)
    _ask(sizes, held, options, zeros, attn2)
    layout = _attn2_layout(sizes, held, options, attn2)
    if zeros:
        record |= {"zero_rows": f"{options.gate_zero_rows}: {tell_places(zeros)}"}
    off = zeros if options.gate_zero_rows == "off" else ()
    places = tuple(place for place in held.places if place not in off)
    _check_shapes(sizes, held, gate_type, places)
    if not places:
        return Decision(attn2_layout=layout, record=record)
    found = Decision(gate_type, activation, places, attn2_layout=layout, record=record)
    return _chosen(found, options, held.name)


def _ask(
    sizes: Sizes, held: HeldGates | None, options: GateOptions, zeros: tuple[Place, ...], attn2: Attn2
) -> None:
    """Ask all that no file tells at once: who answers one question should not meet the next one later."""
    questions = []
    if sizes.second_layers and not (options.attn2_layout or _told_layout(held, attn2)):
        if held is not None and held.form != OURS and held.second:
            questions.append(attn2_question(held.name, gated=True))
        elif attn2.file:
            questions.append(attn2_question(attn2.file, gated=False))
    if held is not None and zeros and not options.gate_zero_rows:
        questions.append(zeros_question(held.name, zeros))
    if questions:
        raise ConfigError("; and ".join(questions))


def _told_layout(held: HeldGates | None, attn2: Attn2) -> str:
    """What the gates' file tells, else the transformer's own, which knows nothing of another checkpoint's gates."""
    told = held and (held.metadata.get("attn2_layout") or attn2_layout_by_writer(held.metadata))
    of_another = held is not None and held.form != OURS and held.second and held.name != attn2.file
    return told or ("" if of_another else attn2.told)


def _attn2_layout(sizes: Sizes, held: HeldGates | None, options: GateOptions, attn2: Attn2) -> str:
    asked, told = options.attn2_layout, None if held is None else held.metadata.get("attn2_layout")
    if not sizes.second_layers:
        if asked:
            raise ConfigError(f"--attn2_layout {asked}: this model has no second attention in any layer")
        return "diffusers"
    if told is not None and told not in LAYOUTS:
        raise ConfigError(f"{held.name} says attn2_layout={told}, which is neither diffusers nor sd-scripts")
    if asked and told and asked != told:
        raise ConfigError(f"{held.name} says attn2_layout={told}, but --attn2_layout {asked} was given")
    return asked or _told_layout(held, attn2) or "diffusers"


def _untrained(sizes: Sizes, options: GateOptions) -> Decision:
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
        return Decision()
    if not options.gate_init:
        raise ConfigError(
            f"--gate_type {options.gate_type}: this model has no gates; give a file that has them with --gates, "
            "or make untrained ones with --gate_init identity (1 everywhere) or neutral (0.5, no baseline)"
        )
    activation = "sigmoid" if options.gate_activation == "auto" else options.gate_activation
    if options.gate_target == "attn2" and not sizes.second_layers:
        raise ConfigError("--gate_target attn2: this model has no second attention in any layer")
    every = [(layer, JOINT) for layer in range(sizes.layers)]
    every += [(layer, SECOND) for layer in sizes.second_layers]
    places = tuple(sorted(place for place in every if place[1] in TARGETS[options.gate_target]))
    record = {"init": str(options.gate_init)}
    found = Decision(options.gate_type, activation, places, init=options.gate_init, record=record)
    return _chosen(found, options, "the model")


def _check_places(sizes: Sizes, held: HeldGates) -> None:
    for layer, attention in held.places:
        if layer >= sizes.layers:
            raise ConfigError(
                f"{held.name} has a gate for layer {layer}, but the transformer has layers 0..{sizes.layers - 1}"
            )
        if attention == SECOND and layer not in sizes.second_layers:
            raise ConfigError(
                f"{held.name} has a gate for attn2 of layer {layer}, which has no second attention"
            )


def _type_of(sizes: Sizes, held: HeldGates, options: GateOptions) -> str:
    """Tell the gate type from the number of rows, and check it against metadata and flag."""
    rows = {shape[0] for shape in held.shapes.values()}
    by_rows = {sizes.heads: "headwise", sizes.channels: "elementwise"}
    if len(rows) != 1 or not rows <= by_rows.keys():
        raise ConfigError(
            f"{held.name}: gate rows {sorted(rows)} fit neither {sizes.heads} heads "
            f"nor {sizes.channels} channels"
        )
    gate_type = by_rows[rows.pop()]
    told = held.metadata.get("gate_type", gate_type)
    if told != gate_type:
        raise ConfigError(f"{held.name} says gate_type={told}, but its shapes are {gate_type}")
    if options.gate_type not in ("auto", gate_type):
        raise ConfigError(f"--gate_type {options.gate_type}: the gates of {held.name} are {gate_type}")
    return gate_type


def _activation_of(held: HeldGates, options: GateOptions) -> str:
    told, asked = held.metadata.get("activation"), options.gate_activation
    if told is not None and told not in ACTIVATIONS:
        raise ConfigError(
            f"{held.name}: unknown gate activation {told!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    if asked == "auto":
        return told or "sigmoid"
    if told is not None and told != asked:
        raise ConfigError(f"--gate_activation {asked}: {held.name} says its activation is {told}")
    return asked


def zero_places(held: HeldGates) -> tuple[Place, ...]:
    """Attentions of which no file tells whether their gate is applied; in form (c), one that is there is."""
    return () if held.form == OURS else held.zeros


def _check_shapes(sizes: Sizes, held: HeldGates, gate_type: str, places: tuple[Place, ...]) -> None:
    """Refuse gaps and wrong shapes by key: the last block applies no text gate, attn2 has none."""
    rows = sizes.heads if gate_type == "headwise" else sizes.channels
    for layer, attention in places:
        text = attention == JOINT and layer < sizes.layers - 1
        for name in ("to_gate", "add_gate") if text else ("to_gate",):
            for kind, shape in (("weight", (rows, sizes.channels)), ("bias", (rows,))):
                key = f"transformer_blocks.{layer}.{attention}.{name}.{kind}"
                if key not in held.shapes:
                    raise ConfigError(f"{held.name} lacks {key}")
                if tuple(held.shapes[key]) != shape:
                    raise ConfigError(
                        f"{held.name}: {key} has shape {tuple(held.shapes[key])}, expected {shape}"
                    )


def _chosen(found: Decision, options: GateOptions, name: str) -> Decision:
    """Keep the gates that --gate_target and --gate_layers name, or force those and keep all.

    Raises:
        ConfigError: one of them names what is not there, or a constant that these gates cannot have.
    """
    kept = [place for place in found.places if place[1] in TARGETS[options.gate_target]]
    if not kept:
        raise ConfigError(
            f"--gate_target {options.gate_target}: {name} has gates on {tell_places(found.places)} only"
        )
    wanted = set(parse_layers(options.gate_layers))
    if missing := sorted(wanted - {layer for layer, _ in kept}):
        raise ConfigError(
            f"--gate_layers {options.gate_layers}: {name} has no gate on layer {tell_layers(missing)}, "
            f"it has {tell_places(kept)}"
        )
    chosen = tuple(place for place in kept if not wanted or place[0] in wanted)
    if not options.gate_override:
        return replace(found, places=chosen)
    value, factor = forced_value(options.gate_override), ACTIVATIONS[found.activation]
    if value > factor:
        raise ConfigError(
            f"--gate_override {options.gate_override}: gates of {found.activation} are 0 to {factor:g}"
        )
    return replace(found, forced=value, forced_places=chosen)
