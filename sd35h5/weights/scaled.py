"""Scaled fp8, as ComfyUI stores it: beside a weight one factor, by which it is multiplied. Torch-free."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from sd35h5.errors import ConfigError
from sd35h5.weights.quantized import COMFY_MARK
from sd35h5.weights.sources import Part

_FACTOR = re.compile(r"(.+\.)(?:scale_weight|weight_scale)")  # the older name and the newer
# marks (`quantized` has read what they say), and factors of the activations, which only arithmetic in fp8 needs
_ASIDE = re.compile(rf"(?:.+\.)?(?:scaled_fp8|{COMFY_MARK}|scale_input|input_scale)")


def split_factors(part: Part) -> tuple[Part, dict[str, str]]:
    """Take the factors' keys off a component. Returns: the component without them; weight's key -> its factor's.

    Raises:
        ConfigError: a factor without a weight, or more than one number for a weight.
    """
    factors: dict[str, str] = {}
    for key, entry in part.entries.items():
        if match := _FACTOR.fullmatch(key):
            weight = f"{match[1]}weight"
            if weight not in part.entries:
                raise ConfigError(f"{part.said} has {key}, and no {weight} which it could scale")
            if math.prod(entry.shape) != 1 or weight in factors:
                raise ConfigError(
                    f"{part.said}: {key} of shape {entry.shape} scales parts of {weight} apart: "
                    "only one factor a weight is read"
                )
            factors[weight] = key
    aside = {key for key in part.entries if key in factors.values() or _ASIDE.fullmatch(key)}
    left = {key: entry for key, entry in part.entries.items() if key not in aside}
    return replace(part, entries=left), factors
