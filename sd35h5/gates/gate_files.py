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
from sd35h5.gates.decision import Decision, HeldGates, decide
from sd35h5.gates.forms import (
    find_gates,
    has_second_attention,
    is_checkpoint,
    refuse_others,
    split_gate_keys,
    zero_attentions,
)
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.kinds import JOINT, SECOND
from sd35h5.gates.modules import Gates, gate_for, sizes_of
from sd35h5.gates.wrappers import unwrapped

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

    @property
    def held(self) -> HeldGates:
        """What a decision needs to know of them."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}
        zeros = tuple(zero_attentions(self.tensors, self.layers))
        return HeldGates(self.name, self.form, shapes, zeros, self.metadata, self.second)


def read_gates(path: Path) -> GateSource:
    """Read the gates of a safetensors file, a whole model or gates alone; the model's own weights are not read.

    Raises:
        ConfigError: no readable file, gate keys or shapes that make no sense, or no gates.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {unwrapped(key): file.get_slice(key) for key in file.keys()}
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            found = find_gates(shapes)
            refuse_others(path.name, shapes, found)
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


def make_gates(
    source: GateSource, transformer: SD3Transformer2DModel, decision: Decision | None = None
) -> Gates | None:
    """Make gates of a file's tensors, in float32 on the CPU.

    Args:
        decision: which of them; without one, all that the file holds.

    Returns: None where none is left.

    Raises:
        ConfigError: tensors that do not fit this transformer, or a question that no file answers.
    """
    decision = decision or decide(sizes_of(transformer), source.held, GateOptions())
    modules = {JOINT: nn.ModuleDict(), SECOND: nn.ModuleDict()}
    for layer, attention in decision.places:
        block = transformer.transformer_blocks[layer]
        gate = gate_for(getattr(block, attention), decision.gate_type, decision.activation)
        with torch.no_grad():
            for name, parameter in gate.named_parameters():
                parameter.copy_(source.tensors[f"transformer_blocks.{layer}.{attention}.{name}"])
        modules[attention][str(layer)] = gate
    gates = Gates(decision.gate_type, decision.activation, modules[JOINT], modules[SECOND])
    return gates if decision.places else None


def load_gates(path: Path, transformer: SD3Transformer2DModel) -> Gates:
    """Read all gates of a file, of any form, for this transformer, in float32 on the CPU.

    Raises:
        ConfigError: an unreadable file, an unknown or missing key, a wrong shape, or metadata that
            contradicts the shapes, or layers whose rows are zero in a file that does not say what they mean.
    """
    return make_gates(read_gates(path), transformer)
