"""Gated attention: the gate modules, their safetensors file (form (c)), and putting them on a transformer.

A gate is g = activation(x W + b), multiplied onto a stream's attention output before the output projection, where x is
that stream's adaLN-modulated input: `headwise` has one scalar a head, `elementwise` one a channel. (Qiu et al. 2025,
"Gated Attention for Large Language Models", position G1.) A gate never changes the attention of its own layer.
MMDiT-X's second attention (`attn2`) has a gate of its own on its own input, of the image stream alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sd35h5.errors import ConfigError
from sd35h5.gates.attention import JointAttention
from sd35h5.gates.attention_gate import AttentionGate
from sd35h5.gates.decision import Sizes
from sd35h5.gates.kinds import ACTIVATIONS, GATE_TYPES, JOINT, SECOND, TARGETS, Place
from sd35h5.gates.texts import tell_forced, tell_layers

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

GATES_FILE = "gates.safetensors"
_OPEN_BIAS = 40.0  # sigmoid(40) is 1 in float32, bfloat16 and float16


@dataclass(frozen=True)
class Gates:
    """All gates of a transformer.

    Args:
        modules: block index as a string -> the gate of its joint attention (an nn.ModuleDict, so that `.to`
            and training work on all).
        second: the same of its second, image-only attention (attn2).
    """

    gate_type: str
    activation: str
    modules: nn.ModuleDict
    second: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks whose joint attention carries a gate, ascending."""
        return tuple(sorted(int(layer) for layer in self.modules))

    @property
    def second_layers(self) -> tuple[int, ...]:
        """Blocks whose second attention carries a gate, ascending."""
        return tuple(sorted(int(layer) for layer in self.second))

    @property
    def target(self) -> str:
        """Which attentions carry gates: joint, attn2 or all (both)."""
        return "all" if self.modules and self.second else ("attn2" if self.second else "joint")

    @property
    def untrained(self) -> bool:
        """True if every gate weight is zero: the gate is then a constant, whatever its bias."""
        weights = (gate.state_dict() for _, _, gate in self.all())
        return not any(
            bool(value.any()) for state in weights for name, value in state.items() if "weight" in name
        )

    def all(self) -> Iterator[tuple[int, str, AttentionGate]]:
        """Every gate: (layer, `attn` or `attn2`, gate)."""
        for attention, modules in ((JOINT, self.modules), (SECOND, self.second)):
            for layer in sorted(modules, key=int):
                yield int(layer), attention, modules[layer]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Move all gates."""
        self.modules.to(device=device, dtype=dtype)
        self.second.to(device=device, dtype=dtype)


def sizes_of(transformer: SD3Transformer2DModel) -> Sizes:
    """What gates depend on, asked of a transformer, which may be on the meta device."""
    blocks = transformer.transformer_blocks
    attn = blocks[0].attn
    second = tuple(layer for layer, block in enumerate(blocks) if getattr(block, SECOND, None) is not None)
    return Sizes(len(blocks), attn.heads, attn.to_q.out_features, second)


def build_gates(
    transformer: SD3Transformer2DModel,
    gate_type: str,
    activation: str = "sigmoid",
    target: str = "joint",
    init: str = "neutral",
    places: Collection[Place] | None = None,
) -> Gates:
    """Make untrained gates for every joint attention of the transformer, or every attention of the target.

    Args:
        init: `neutral`, all zero, so that each gate is activation(0), or `identity`, so that each is 1.
        places: these attentions in place of the target's.

    Raises:
        ConfigError: an unknown type, or attn2 asked for of a model that has none.
    """
    modules = {JOINT: nn.ModuleDict(), SECOND: nn.ModuleDict()}
    for layer, block in enumerate(transformer.transformer_blocks):
        for attention in TARGETS[target] if places is None else (JOINT, SECOND):
            attn = getattr(block, attention, None)
            if attn is not None and (places is None or (layer, attention) in places):
                modules[attention][str(layer)] = gate_for(attn, gate_type, activation)
    if target == "attn2" and not modules[SECOND]:
        raise ConfigError("gate target attn2: this model has no second attention in any layer")
    gates = Gates(gate_type, activation, modules[JOINT], modules[SECOND])
    bias = _OPEN_BIAS if init == "identity" and activation == "sigmoid" else 0.0
    for _, _, gate in gates.all():
        for name, parameter in gate.named_parameters():
            nn.init.constant_(parameter, bias if name.endswith("bias") else 0.0)
    return gates


def gate_for(attn: nn.Module, gate_type: str, activation: str) -> AttentionGate:
    """Make the gate that fits an attention, not initialised.

    Raises:
        ConfigError: an unknown type.
    """
    if gate_type not in GATE_TYPES:
        raise ConfigError(f"unknown gate type {gate_type!r}: expected one of {', '.join(GATE_TYPES)}")
    width = attn.to_q.in_features
    outputs = attn.heads if gate_type == "headwise" else attn.to_q.out_features
    has_text = attn.added_kv_proj_dim is not None and not attn.context_pre_only
    return AttentionGate(width, outputs, text=has_text, activation=activation)


def install_gates(
    transformer: SD3Transformer2DModel, gates: Gates | None, attn2_layout: str = "diffusers"
) -> None:
    """Give every attention of the transformer a processor that applies its gate.

    The gates move to the transformer's device and dtype once, here.

    Args:
        attn2_layout: `diffusers`, or `sd-scripts`, which computes attn2 with other heads.
    """
    by_attention: Mapping[str, nn.ModuleDict] = {}
    if gates is not None:
        gates.to(device=transformer.device, dtype=transformer.dtype)
        by_attention = {JOINT: gates.modules, SECOND: gates.second}
    processors = {}
    for name in transformer.attn_processors:
        _, layer, attention, _ = name.split(".")
        modules = by_attention.get(attention, {})
        gate = modules[layer] if layer in modules else None
        processors[name] = JointAttention(gate, attention == SECOND and attn2_layout == "sd-scripts")
    transformer.set_attn_processor(processors)


def gates_of(transformer: SD3Transformer2DModel) -> Gates | None:
    """The gates that the transformer's processors apply, None if there are none."""
    found = {JOINT: nn.ModuleDict(), SECOND: nn.ModuleDict()}
    gate_type = activation = None
    for (layer, block), attention in product(enumerate(transformer.transformer_blocks), found):
        attn = getattr(block, attention, None)
        gate = getattr(getattr(attn, "processor", None), "gate", None)
        if gate is None:
            continue
        found[attention][str(layer)] = gate
        gate_type = "headwise" if gate.to_gate.out_features == attn.heads else "elementwise"
        activation = next(known for known, factor in ACTIVATIONS.items() if factor == gate.factor)
    return Gates(gate_type, activation, found[JOINT], found[SECOND]) if gate_type else None


def attn2_layout_of(transformer: SD3Transformer2DModel) -> str | None:
    """How the second attentions split their channels into heads; None if there are none."""
    seconds = [p for name, p in transformer.attn_processors.items() if name.endswith(f".{SECOND}.processor")]
    if not seconds:
        return None
    return "sd-scripts" if any(getattr(each, "regrouped", False) for each in seconds) else "diffusers"


def gate_tensors(gates: Gates) -> dict[str, Tensor]:
    """The gates' weights in form (c) keys."""
    return {
        f"transformer_blocks.{layer}.{attention}.{name}": tensor
        for layer, attention, gate in gates.all()
        for name, tensor in gate.state_dict().items()
    }


def save_gates(
    path: Path, gates: Gates, dtype: torch.dtype = torch.float16, attn2_layout: str | None = None
) -> None:
    """Write the gates as a safetensors file in form (c): our keys, with gate type and activation as metadata."""
    tensors = {
        key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in gate_tensors(gates).items()
    }
    metadata = {"gate_type": gates.gate_type, "activation": gates.activation}
    save_file(tensors, path, metadata=metadata | ({"attn2_layout": attn2_layout} if attn2_layout else {}))


def describe(gates: Gates | None) -> dict[str, str]:
    """Return the store's root attributes that tell which gates a model carries."""
    if gates is None:
        return {
            "gate_type": "none", "gate_target": "none", "gate_layers": "[]", "gate_activation": "none",
            "gate_override": "none", "gate_weights": "none",
        }  # fmt: skip
    by_target = {"joint": list(gates.layers), "attn2": list(gates.second_layers)}
    return {
        "gate_type": gates.gate_type,
        "gate_target": gates.target,
        "gate_layers": json.dumps(by_target if gates.target == "all" else by_target[gates.target]),
        "gate_activation": gates.activation,
        "gate_override": _tell_override(gates),
        "gate_weights": "untrained" if gates.untrained else "trained",
    }


def _tell_override(gates: Gates) -> str:
    """`none`, `open`, or where only some gates are forced `open at joint 0-3, attn2 1`."""
    forced = [
        (layer, attention, gate.forced) for layer, attention, gate in gates.all() if gate.forced is not None
    ]
    if not forced:
        return "none"
    told = tell_forced(forced[0][2])
    if len(forced) == len(list(gates.all())):
        return told
    places = []
    for name, attention in (("joint", JOINT), ("attn2", SECOND)):
        if layers := [layer for layer, where, _ in forced if where == attention]:
            places.append(f"{name} {tell_layers(layers)}")
    return f"{told} at {', '.join(places)}"
