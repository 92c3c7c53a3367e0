"""How layers and forced gates are written, in options and in a store's attributes: `0-11,24`, `open`; and what is
asked of the user. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import groupby

from sd35h5.errors import ConfigError
from sd35h5.gates.kinds import JOINT, SECOND, Place

_FORCED = {"open": 1.0, "closed": 0.0}


def parse_layers(text: str) -> tuple[int, ...]:
    """Read `0-11,24`, or `0 1 2` as sd-scripts writes it, as layers, ascending; nothing or `all` as none.

    Raises:
        ConfigError: another text.
    """
    if text.strip() == "all":
        return ()
    layers: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()) if text.strip() else ():
        match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"--gate_layers {text!r} is not understood: write layers such as 0-11,24, or all"
            )
        layers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))


def tell_layers(layers: Iterable[int]) -> str:
    """Layers as people write them: 0-11,24."""
    runs = [list(run) for _, run in groupby(enumerate(sorted(layers)), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else f"{run[0][1]}" for run in runs)


def forced_value(text: str) -> float | None:
    """The gate that --gate_override asks for; None if it is not given.

    Raises:
        ConfigError: neither open, closed nor a number from 0 on.
    """
    if not text:
        return None
    try:
        value = _FORCED[text] if text in _FORCED else float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 <= value <= 2):
        raise ConfigError(f"--gate_override {text!r} is no gate: use open, closed, or a number from 0 to 2")
    return value


def tell_forced(value: float) -> str:
    """A forced gate as --gate_override writes it."""
    return next((name for name, known in _FORCED.items() if known == value), f"{value:g}")


def tell_places(places: Iterable[Place]) -> str:
    """(layer, attention) for people: joint layers 3-5, attn2 layers 0."""
    told, places = [], sorted(places)
    for name, attention in (("joint", JOINT), ("attn2", SECOND)):
        if layers := [layer for layer, where in places if where == attention]:
            told.append(f"{name} layer{'s' * (len(layers) > 1)} {tell_layers(layers)}")
    return " and ".join(told)


def attn2_question(name: str, gated: bool) -> str:
    """What to say of a file of which nothing tells how its attn2 is computed."""
    return (
        f"{name} is {'a gated' if gated else 'an'} MMDiT-X in the original layout, whose second attention (attn2) "
        "some trainers compute with other heads: say --attn2_layout sd-scripts if it was trained with sd-scripts, "
        "--attn2_layout diffusers if not"
    )


def zeros_question(name: str, zeros: tuple[Place, ...]) -> str:
    """What to say of gates whose rows are all zero."""
    return (
        f"{name}: the gate rows of {tell_places(zeros)} are all zero, which can mean that no gate is applied there, "
        "or a gate of 0.5, and no file tells: say --gate_zero_rows off or --gate_zero_rows half"
    )
