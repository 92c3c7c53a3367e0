"""Weights that are no plain numbers: which ways of storing them are read, and the others called by name. Torch-free.

ComfyUI puts a tensor `comfy_quant` beside each quantized weight, JSON as bytes, whose `format` says how it is stored;
or the same for all layers into the file's metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from sd35h5.errors import ConfigError
from sd35h5.weights.checkpoints import DTYPE_NAMES, FLOATS, Entry
from sd35h5.weights.layouts import HARMLESS
from sd35h5.weights.quantised_files.gguf_header import BLOCKS

COMFY_MARK = "comfy_quant"
_READ = ("float8_e4m3fn", "float8_e5m2")  # one factor a weight, which `scaled` multiplies by
_OTHERS = (  # how a key ends -> the format; bitsandbytes', GPTQ's and AWQ's, SVDQuant's
    (r"\.quant_state\.bitsandbytes__nf4$", "bitsandbytes nf4"),
    (r"\.quant_state\.bitsandbytes__fp4$", "bitsandbytes fp4"),
    (r"\.weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map)$", "bitsandbytes"),
    (r"\.(?:SCB|weight_format)$", "bitsandbytes int8"),
    (r"\.(?:smooth_factor|smooth_orig|wscales|proj_down)$", "SVDQuant"),
    (r"\.(?:qzeros|g_idx)$", "GPTQ or AWQ"),
)


def refuse_quantized(said: str, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Refuse formats that are not read, by name, and weights that are integers.

    Raises:
        ConfigError: naming the format and a key.
    """
    for key, stored in _comfy_formats(said, entries, metadata):
        if stored not in _READ:
            raise ConfigError(
                f"{said} holds {key} in ComfyUI's format {stored}, which is not read: give the file in one of "
                f"{', '.join(_READ)}, or in 16 or 32 bits"
            )
    for pattern, stored in _OTHERS:
        if key := next((key for key in entries if re.search(pattern, key)), None):
            raise ConfigError(
                f"{said} is quantized ({stored}, as {key} tells), which is not read: give the file in fp8, or in 16 "
                "or 32 bits"
            )
    for key, entry in entries.items():
        is_mark = key.endswith(f".{COMFY_MARK}") or HARMLESS.search(key)
        if entry.dtype not in (*FLOATS, *BLOCKS) and not is_mark:
            raise ConfigError(
                f"{said} holds {key} as {entry.dtype}: give weights of {', '.join(DTYPE_NAMES.values())}"
            )


def _comfy_formats(
    said: str, entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """(layer, its format), by the marks beside the weights and by the file's metadata."""
    for key, entry in entries.items():
        if key.endswith(f".{COMFY_MARK}"):
            yield key.removesuffix(f".{COMFY_MARK}"), _told(said, key, entry.read())
    if text := metadata.get("_quantization_metadata"):
        told = _parsed(said, "_quantization_metadata", text)
        layers = told.get("layers")
        for layer, each in layers.items() if isinstance(layers, dict) else ():
            yield layer, str(each.get("format")) if isinstance(each, dict) else str(each)


def _told(said: str, key: str, raw: bytes) -> str:
    return str(_parsed(said, key, raw).get("format"))


def _parsed(said: str, where: str, text: str | bytes) -> dict:
    try:
        told = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{said}: {where} does not tell the format of its weights: {error}") from error
    if not isinstance(told, dict):
        raise ConfigError(f"{said}: {where} does not tell the format of its weights: it is no table")
    return told
