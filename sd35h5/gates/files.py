"""Gates out of files: read in any form, checked against the transformer, made into modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sd35h5.errors import ConfigError
from sd35h5.gates.forms import (
    OUR_KEY,
    OURS,
    find_gates,
    has_second_attention,
    is_checkpoint,
    split_gate_keys,
    zero_attentions,
)
from sd35h5.gates.modules import (
    ACTIVATIONS,
    JOINT,
    SECOND,
    Gates,
    gate_for,
)
from sd35h5.gates.options import GateOptions
from sd35h5.gates.texts import tell_layers

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


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
    return gates if list(gates.all()) else None


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


def zero_rows_of(source: GateSource, layers: int) -> list[tuple[int, str]]:
    """Attentions of which the file does not tell whether their gate is applied. In form (c), a gate that is
    there is applied."""
    return [] if source.form == OURS else zero_attentions(source.tensors, layers)


def _answered_zero_rows(source: GateSource, options: GateOptions, layers: int) -> list[tuple[int, str]]:
    """Attentions that are switched off."""
    zeros = zero_rows_of(source, layers)
    if zeros and not options.gate_zero_rows:
        raise ConfigError(
            f"{source.name}: the gate rows of {tell_places(zeros)} are all zero, which can mean that no gate is "
            "applied there, or a gate of 0.5, and no file tells: say --gate_zero_rows off or --gate_zero_rows half"
        )
    return zeros if options.gate_zero_rows == "off" else []


def tell_places(places: Sequence[tuple[int, str]]) -> str:
    """(layer, attention) for people: joint layers 3-5, attn2 layers 0."""
    told = []
    for name, attention in (("joint", JOINT), ("attn2", SECOND)):
        if layers := [layer for layer, where in places if where == attention]:
            told.append(f"{name} layer{'s' * (len(layers) > 1)} {tell_layers(layers)}")
    return " and ".join(told)


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


def load_gates(path: Path, transformer: SD3Transformer2DModel) -> Gates:
    """Read all gates of a file, of any form, for this transformer, in float32 on the CPU.

    Raises:
        ConfigError: an unreadable file, an unknown or missing key, a wrong shape, or metadata that
            contradicts the shapes, or layers whose rows are zero in a file that does not say what they mean.
    """
    return make_gates(read_gates(path), transformer)
