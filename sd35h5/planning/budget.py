"""--budget 4GB: the richest tiers that fit so many bytes in the file. Torch-free."""

from __future__ import annotations

import re
from dataclasses import fields, replace

from sd35h5.errors import ConfigError
from sd35h5.gates.decision import Decision
from sd35h5.planning.options import CaptureConfig, Tiers
from sd35h5.planning.plan import NO_GATES, in_bytes, make_plan
from sd35h5.weights.model_facts import ModelFacts

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGT]i?B)")
_ALL_MASSES = {"text_queries": True, "no_unconditional": True}
_EVERY_STEP = {"map_steps": "all", "top_steps": "all"}
# richest first: what each step down gives up is what costs most of what is left
_LADDER: tuple[dict[str, object], ...] = (
    {"map_heads": "all", "map_pool": 1, "atlas": True, **_EVERY_STEP, **_ALL_MASSES},
    {"map_heads": "all", "map_pool": 2, "atlas": True, **_EVERY_STEP, **_ALL_MASSES},
    {"map_heads": "all", "map_pool": 2, "atlas": True, **_ALL_MASSES},
    {"map_heads": "mean", "map_pool": 1, "map_steps": "all", "atlas": True, **_ALL_MASSES},
    {"map_heads": "mean", "map_pool": 2, **_EVERY_STEP, **_ALL_MASSES},
    {"map_heads": "mean", "map_pool": 2, **_EVERY_STEP},
    {},  # the defaults
    {"map_pool": 4, "map_steps": "every:8", "top_steps": "every:8"},
    {"maps": "off", "top_steps": "every:8"},
    {"maps": "off", "topk": 0},
)
CHOSEN = tuple(dict.fromkeys(name for rung in _LADDER for name in rung))


def parse_size(text: str) -> int:
    """Bytes of 500MB, 4GB or 1.5 GiB.

    Raises:
        ConfigError: another text.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--budget {text!r} is no size: write 500MB, 4GB or 1.5GiB")
    number, unit = match[1], match[2]
    power = "kMGT".index(unit[0].replace("K", "k")) + 1
    return int(float(number) * (1024**power if "i" in unit else 1000**power))


def check_budget(config: CaptureConfig) -> None:
    """Refuse a budget that is no size, or beside options that it would choose.

    Raises:
        ConfigError: naming them.
    """
    if not config.output.budget:
        return
    parse_size(config.output.budget)
    defaults = Tiers()
    given = [name for name in CHOSEN if getattr(config.tiers, name) != getattr(defaults, name)]
    if given:
        options = ", ".join(f"--{name}" for name in given)
        raise ConfigError(f"--budget chooses {options} itself: leave it out, or leave out --budget")


def within_budget(
    config: CaptureConfig, facts: ModelFacts, samples: int, gates: Decision = NO_GATES
) -> CaptureConfig:
    """The same capture with the richest tiers of which `samples` samples fit --budget; as it is without one.

    Raises:
        ConfigError: not even the smallest fit.
    """
    if not config.output.budget:
        return config
    check_budget(config)
    budget, least = parse_size(config.output.budget), 0
    for rung in _LADDER:
        if config.tiers.words and rung.get("maps") == "off":
            continue  # these words were asked for
        tried = replace(config, tiers=replace(config.tiers, **rung))
        least = samples * make_plan(tried, facts, gates).file_bytes
        if least <= budget:
            return tried
    raise ConfigError(
        f"--budget {config.output.budget} is too small: the smallest tiers take about {in_bytes(least)} "
        f"for {samples} samples: allow that, or draw fewer or smaller images"
    )


def told_as_flags(tiers: Tiers) -> str:
    """The options that differ from the defaults, as one would write them: --map_heads all --atlas."""
    defaults, told = Tiers(), []
    for field in fields(Tiers):
        value = getattr(tiers, field.name)
        if value == getattr(defaults, field.name):
            continue
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        told.append(" ".join((f"--{field.name}", *map(str, values))))
    return " ".join(told) or "the defaults"
