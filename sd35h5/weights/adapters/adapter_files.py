"""Adapters in safetensors files, by their headers: what each changes, and files that are none. Torch-free."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd35h5.errors import ConfigError
from sd35h5.weights.adapters.adapter_changes import Adapter, Change
from sd35h5.weights.adapters.adapter_places import Target, find_target, transformer_targets
from sd35h5.weights.checkpoints import Entry, read_entries, read_metadata
from sd35h5.weights.layouts import describe_keys
from sd35h5.weights.leavings import told_adapter
from sd35h5.weights.weight_sets import weight_files

_KEY = re.compile(
    r"(?P<name>.+?)(?:\.lora_(?P<peft>[AB])(?:\.\w+)?\.weight"  # an adapter's name may stand in the middle
    r"|\.lora(?:_|\.|_linear_layer\.)(?P<matrix>down|up)\.weight"
    r"|\.(?P<beside>alpha|dora_scale)|\.lora_(?P<magnitude>magnitude_vector)(?:\.\w+)*"
    r"|\.(?P<lycoris>(?:lokr|hada)_w[12](?:_[ab])?))"
)
_BESIDE = {"alpha", "dora_scale", "magnitude_vector"}
_KINDS = (  # what a change has, one of each tuple -> how it is called
    ("LoRA", ({"down", "up"},)),
    ("LoHa", ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},)),
    ("LoKr", tuple(
        {*first, *second}
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
    )),
)  # fmt: skip
_MADE_FOR = (  # in names -> the models that have it
    (r"single_(?:transformer_)?blocks|double_blocks", "FLUX"),
    (r"(?:down|up|input|output)_blocks|mid(?:dle)?_block", "Stable Diffusion 1, 2 or XL"),
)
_METADATA = "lora_adapter_metadata"  # peft's config, as diffusers saves it
_PEFT = "base_model.model."  # before the names of a file that peft saved, with its config beside it


def read_adapters(given: Sequence[str], depth: int) -> tuple[Adapter, ...]:
    """Read the headers of the files of --lora, each `FILE` or `FILE:SCALE`.

    Args:
        depth: number of the transformer's blocks.

    Raises:
        ConfigError: no such file, pickled weights, a file that is no adapter, one that changes another model, or of a
            kind that is not read.
    """
    targets = transformer_targets(depth) if given else {}
    return tuple(_read(*split_scale(each), targets, depth) for each in given)


def split_scale(given: str) -> tuple[str, float]:
    """`FILE:SCALE` in parts; the scale is 1 where it is not given.

    Raises:
        ConfigError: a scale that is not finite.
    """
    file, _, scale = given.rpartition(":")
    try:
        number = float(scale)
    except ValueError:
        return given, 1.0
    if not file or Path(given).expanduser().exists():
        return given, 1.0
    if not math.isfinite(number):
        raise ConfigError(f"--lora {given}: {scale} is no scale, which is a number such as 0.7")
    return file, number


def _read(given: str, scale: float, targets: Mapping[str, Target], depth: int) -> Adapter:
    said = f"--lora {given}"
    files = weight_files(Path(given).expanduser(), said)
    if len(files) > 1:
        raise ConfigError(f"{said} holds its weights in {len(files)} files: give an adapter in one file")
    entries, metadata = read_entries(files), read_metadata(files[0])
    parts = _parts(said, entries)
    configs = _configs(files[0], metadata, parts)
    changes = [_change(said, name, tensors, targets, depth, configs) for name, tensors in parts.items()]
    for name, count in Counter(module for change in changes for module in _told_places(change)).items():
        if count > 1:
            raise ConfigError(f"{said} changes {name} twice, under names of two layouts")
    return Adapter(said, files[0], scale, tuple(changes))


def _parts(said: str, entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """The tensors by the names of what they change, then by what they are."""
    parts: dict[str, dict[str, Entry]] = {}
    for key, entry in entries.items():
        match = _KEY.fullmatch(key)
        if match is None:
            what = told_adapter(entries)
            if what is None:
                raise ConfigError(
                    f"{said} holds {describe_keys(entries.keys())}, expected a LoRA, DoRA, LoHa or LoKr: whole models "
                    "are given with --model_id or --dit_path"
                )
            raise ConfigError(
                f"{said} has the key {key}, which is not applied: the matrices of LoRA, DoRA, LoHa and LoKr are, "
                f"and the file looks like {what}"
            )
        found = match.groupdict()
        part = {"A": "down", "B": "up"}.get(found["peft"]) or next(
            found[each] for each in ("matrix", "beside", "magnitude", "lycoris") if found[each]
        )
        parts.setdefault(found["name"], {})[part] = entry
    return parts


def _change(
    said: str, name: str, tensors: Mapping[str, Entry], targets: Mapping[str, Target], depth: int,
    configs: Mapping[str, Mapping[str, Any]],
) -> Change:  # fmt: skip
    target = find_target(name, targets)
    if target is None:
        other = next((model for pattern, model in _MADE_FOR if re.search(pattern, name)), None)
        raise ConfigError(
            f"{said} changes {name}, which an SD3 model with a transformer of {depth} blocks does not have"
            + f": it was made for {other}" * bool(other)
        )
    own = tensors.keys() - _BESIDE
    kind = next((kind for kind, wholes in _KINDS if own in wholes), None)
    if kind is None or {"dora_scale", "magnitude_vector"} <= tensors.keys():
        raise ConfigError(f"{said} has of {name} only {', '.join(sorted(tensors))}: the file is incomplete")
    change = Change(target, name, kind, tensors, *_alpha(configs.get(target.component, {}), target))
    if not change.is_whole:
        shapes = ", ".join(f"{part} {entry.shape}" for part, entry in tensors.items())
        raise ConfigError(f"{said}: the matrices of {name} do not fit each other: {shapes}")
    return change


def _configs(
    file: Path, metadata: Mapping[str, str], parts: Mapping[str, object]
) -> dict[str, dict[str, Any]]:
    """What peft's config, in the file or beside it, says of each component's adapter.

    Raises:
        ConfigError: a config that cannot be read, or none beside a file of peft's own, which has no alpha.
    """
    if _METADATA in metadata:
        told = _parsed(file, metadata[_METADATA])
        prefixed = {key.split(".", 1)[0] for key in told if "." in key} & {
            "transformer",
            "text_encoder",
            "text_encoder_2",
        }
        return {
            component: {key.removeprefix(f"{component}."): value for key, value in told.items()
                        if key.startswith(f"{component}.")}
            for component in prefixed
        } or {"transformer": told}  # fmt: skip
    beside = file.with_name("adapter_config.json")
    if not any(name.startswith(_PEFT) for name in parts):
        return {}
    if not beside.is_file():
        raise ConfigError(
            f"{file} was saved by peft, which keeps alpha in {beside.name}: put that beside it, as it was saved"
        )
    return {"transformer": _parsed(beside, beside.read_text(encoding="utf-8"))}


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{file}: the adapter's config is no valid JSON: {error}") from error
    if not isinstance(told, dict):
        raise ConfigError(f"{file}: the adapter's config is no table")
    return told


def _alpha(config: Mapping[str, Any], target: Target) -> tuple[float | None, bool]:
    """A layer's alpha by peft's config, and whether it is divided by the rank's root."""
    alpha = config.get("lora_alpha", config.get("alpha"))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", target.modules[0]):
            alpha = value
            break
    return None if alpha is None else float(alpha), bool(config.get("use_rslora"))


def _told_places(change: Change) -> list[str]:
    return [f"{change.target.component}.{module}" for module in change.target.modules]
