"""Gated attention: the gate modules, their safetensors file (form (c)), and putting them on a transformer.

A gate is g = activation(x W + b), multiplied onto a stream's attention output before the output projection, where x is
that stream's adaLN-modulated input: `headwise` has one scalar a head, `elementwise` one a channel. (Qiu et al. 2025,
"Gated Attention for Large Language Models", position G1.) A gate never changes the attention of its own layer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sd35h5.attention import JointAttention
from sd35h5.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

GATES_FILE = "gates.safetensors"
GATE_TYPES = ("headwise", "elementwise")
ACTIVATIONS = {"sigmoid": 1.0, "2sigmoid": 2.0}  # name -> factor on the sigmoid
_KEY = re.compile(r"transformer_blocks\.(\d+)\.attn\.(to_gate|add_gate)\.(weight|bias)")


class AttentionGate(nn.Module):
    """The gates of one attention: `to_gate` for the image stream, `add_gate` for the text stream.

    Args:
        width: channels of both streams' inputs.
        outputs: values a token: the number of heads (headwise) or of channels (elementwise).
        text: False where the block drops its text output (the last one).
    """

    def __init__(self, width: int, outputs: int, text: bool = True, activation: str = "sigmoid"):
        super().__init__()
        self.factor = ACTIVATIONS[activation]
        self.to_gate = nn.Linear(width, outputs)
        self.add_gate = nn.Linear(width, outputs) if text else None

    def forward(self, image_states: Tensor, text_states: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the gates of both streams, (B, tokens, outputs), in (0, 1) (or (0, 2) for 2sigmoid)."""
        image = torch.sigmoid(self.to_gate(image_states)) * self.factor
        if self.add_gate is None or text_states is None:
            return image, None
        return image, torch.sigmoid(self.add_gate(text_states)) * self.factor


@dataclass(frozen=True)
class Gates:
    """All gates of a transformer.

    Args:
        modules: block index as a string -> its gate (an nn.ModuleDict, so that `.to` and training work on all).
    """

    gate_type: str
    activation: str
    modules: nn.ModuleDict

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks that carry a gate, ascending."""
        return tuple(sorted(int(layer) for layer in self.modules))

    @property
    def untrained(self) -> bool:
        """True if every gate weight is zero: the gate is then a constant, whatever its bias."""
        return not any(
            bool(p.any()) for name, p in self.modules.named_parameters() if name.endswith("weight")
        )


def build_gates(transformer: SD3Transformer2DModel, gate_type: str, activation: str = "sigmoid") -> Gates:
    """Make gates for every joint attention of the transformer, all zero: each gate starts at activation(0)."""
    modules = nn.ModuleDict()
    for layer, block in enumerate(transformer.transformer_blocks):
        modules[str(layer)] = _gate_for(block.attn, gate_type, activation)
    for parameter in modules.parameters():
        nn.init.zeros_(parameter)
    return Gates(gate_type, activation, modules)


def _gate_for(attn: nn.Module, gate_type: str, activation: str) -> AttentionGate:
    if gate_type not in GATE_TYPES:
        raise ConfigError(f"unknown gate type {gate_type!r}: expected one of {', '.join(GATE_TYPES)}")
    width = attn.to_q.in_features
    outputs = attn.heads if gate_type == "headwise" else attn.to_q.out_features
    return AttentionGate(width, outputs, text=not attn.context_pre_only, activation=activation)


def install_gates(transformer: SD3Transformer2DModel, gates: Gates) -> None:
    """Give every attention of the transformer a processor that applies its gate.

    The gates move to the transformer's device and dtype once, here.
    """
    gates.modules.to(device=transformer.device, dtype=transformer.dtype)
    processors = {}
    for name in transformer.attn_processors:
        layer = name.split(".")[1]
        gated = name.endswith(".attn.processor") and layer in gates.modules
        processors[name] = JointAttention(gates.modules[layer] if gated else None)
    transformer.set_attn_processor(processors)


def save_gates(path: Path, gates: Gates, dtype: torch.dtype = torch.float16) -> None:
    """Write the gates as a safetensors file in form (c): our keys, with gate type and activation as metadata."""
    tensors = {
        f"transformer_blocks.{layer}.attn.{name}": tensor.detach().to("cpu", dtype).contiguous()
        for layer, gate in gates.modules.items()
        for name, tensor in gate.state_dict().items()
    }
    save_file(tensors, path, metadata={"gate_type": gates.gate_type, "activation": gates.activation})


def load_gates(path: Path, transformer: SD3Transformer2DModel) -> Gates:
    """Read a form (c) file for this transformer, in float32 on the CPU.

    Type and layers come from the keys and shapes; the metadata must agree with them.

    Raises:
        ConfigError: unreadable file, unknown or missing key, wrong shape, or metadata that contradicts the shapes.
    """
    tensors, metadata = _read_safetensors(path)
    unknown = [key for key in tensors if not _KEY.fullmatch(key)]
    if unknown or not tensors:
        raise ConfigError(
            f"{path.name} is not a gates file: "
            + (f"unknown key {unknown[0]!r}" if unknown else "it holds no tensors")
            + ", expected transformer_blocks.N.attn.to_gate.weight and the like"
        )
    activation = metadata.get("activation", "sigmoid")
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"{path.name}: unknown gate activation {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    gate_type = _gate_type_of(path, tensors, metadata, transformer)
    layers = sorted({int(_KEY.fullmatch(key)[1]) for key in tensors})
    blocks = transformer.transformer_blocks
    if layers[-1] >= len(blocks):
        raise ConfigError(
            f"{path.name} has a gate for layer {layers[-1]}, but the transformer has layers 0..{len(blocks) - 1}"
        )
    modules = nn.ModuleDict()
    for layer in layers:
        gate = _gate_for(blocks[layer].attn, gate_type, activation)
        _fill(path, layer, gate, tensors)
        modules[str(layer)] = gate
    return Gates(gate_type, activation, modules)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise ConfigError(f"gates file {path.name} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path.name} is not a readable safetensors file: {error}") from error


def _gate_type_of(path: Path, tensors: dict, metadata: dict, transformer: SD3Transformer2DModel) -> str:
    """Tell the gate type from the number of rows, and check it against the metadata."""
    attn = transformer.transformer_blocks[0].attn
    rows = {tensor.shape[0] for tensor in tensors.values()}
    by_rows = {attn.heads: "headwise", attn.to_q.out_features: "elementwise"}
    if len(rows) != 1 or not rows <= by_rows.keys():
        raise ConfigError(
            f"{path.name}: gate rows {sorted(rows)} fit neither {attn.heads} heads "
            f"nor {attn.to_q.out_features} channels"
        )
    gate_type = by_rows[rows.pop()]
    if metadata.get("gate_type", gate_type) != gate_type:
        raise ConfigError(
            f"{path.name} says gate_type={metadata['gate_type']}, but its shapes are {gate_type}"
        )
    return gate_type


def _fill(path: Path, layer: int, gate: AttentionGate, tensors: dict[str, Tensor]) -> None:
    """Copy one layer's tensors into its gate, refusing gaps and wrong shapes by key."""
    for name, parameter in gate.named_parameters():
        key = f"transformer_blocks.{layer}.attn.{name}"
        if key not in tensors:
            raise ConfigError(f"{path.name} lacks {key}")
        if tensors[key].shape != parameter.shape:
            raise ConfigError(
                f"{path.name}: {key} has shape {tuple(tensors[key].shape)}, expected {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(tensors[key])


def describe(gates: Gates | None) -> dict[str, str]:
    """Return the store's root attributes that tell which gates a model carries."""
    if gates is None:
        return {"gate_type": "none", "gate_target": "none", "gate_layers": "[]", "gate_activation": "none"}
    return {
        "gate_type": gates.gate_type,
        "gate_target": "joint",
        "gate_layers": json.dumps(list(gates.layers)),
        "gate_activation": gates.activation,
    }
