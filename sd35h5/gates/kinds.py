"""The kinds of gates and where they sit: names that files, options, decisions and modules share. Torch-free."""

from __future__ import annotations

GATE_TYPES = ("headwise", "elementwise")
ACTIVATIONS = {"sigmoid": 1.0, "2sigmoid": 2.0}  # name -> factor on the sigmoid
JOINT, SECOND = "attn", "attn2"  # the two attentions of a block, as diffusers names them
TARGETS = {"joint": (JOINT,), "attn2": (SECOND,), "all": (JOINT, SECOND)}
LAYOUTS = ("diffusers", "sd-scripts")  # of attn2: how its channels are split into heads

Place = tuple[int, str]  # (layer, JOINT or SECOND)
