"""The options about gates: they assert or restrict what a file holds, and force gates. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from sd35h5.errors import ConfigError
from sd35h5.flags import Text
from sd35h5.gates.texts import forced_value, parse_layers

ZeroRows = Annotated[Literal["off", "half"] | None, arg(metavar="{off,half}", help_behavior_hint="")]
Init = Annotated[
    Literal["identity", "neutral"] | None, arg(metavar="{identity,neutral}", help_behavior_hint="")
]
Attn2Layout = Annotated[
    Literal["diffusers", "sd-scripts"] | None, arg(metavar="{diffusers,sd-scripts}", help_behavior_hint="")
]


@dataclass(frozen=True)
class GateOptions:
    """Gated attention. Which gates there are is read from the file; these options assert it (a contradiction
    is an error), restrict it, or force it."""

    gate_type: Literal["auto", "none", "headwise", "elementwise"] = "auto"
    """What the file must hold: one gate a head, or one a channel. `none` drops the gates of a gated model,
    which does not make it the baseline: it was trained with them."""
    gate_target: Literal["joint", "attn2", "all"] = "all"
    """Which attentions' gates to use: the joint one, MMDiT-X's second one (attn2), or all that the file
    has."""
    gate_layers: Text = ""
    """Layers whose gates to use, such as 0-11,24 or "0 1 2"; all of the file's if not given, or with `all`. With
    --gate_override, the layers to force: the others keep their gates."""
    gate_activation: Literal["auto", "sigmoid", "2sigmoid"] = "auto"
    """What is applied to the gate's output. Files of other programs do not tell; `auto` is then sigmoid."""
    gate_zero_rows: ZeroRows = None
    """What layers mean whose gate rows are all zero: `off`, no gate is applied there, or `half`, the gate is
    σ(0) = 0.5. No file tells, so it must be said when such layers are met."""
    gate_init: Init = None
    """Put untrained gates of --gate_type on a model without any: `identity` is 1 everywhere, `neutral`
    σ(0) = 0.5, which halves every attention's output and is no baseline."""
    gate_override: Text = ""
    """Force gates: `open` (1, as if there were none), `closed` (0), or a number. Same weights otherwise."""
    attn2_layout: Attn2Layout = None
    """How the second attention splits its channels into heads: sd-scripts computes it with a head size that
    is the number of heads. Must be said for MMDiT-X files in the original layout of which nothing tells who wrote
    them."""


def validate_gate_options(options: GateOptions) -> None:
    """Check what can be judged without the model.

    Raises:
        ConfigError: a sentence naming the option.
    """
    parse_layers(options.gate_layers)
    forced_value(options.gate_override)
    if options.gate_init and options.gate_type not in ("headwise", "elementwise"):
        raise ConfigError(
            f"--gate_init {options.gate_init}: say with --gate_type headwise or elementwise which gates to make"
        )
    if options.gate_init == "neutral" and options.gate_activation == "2sigmoid":
        raise ConfigError("--gate_init neutral with 2sigmoid is a gate of 1: that is --gate_init identity")
    if options.gate_type == "none":
        for name in ("gate_layers", "gate_override", "gate_zero_rows"):
            if value := getattr(options, name):
                raise ConfigError(f"--gate_type none leaves no gates: leave --{name} {value} away")
