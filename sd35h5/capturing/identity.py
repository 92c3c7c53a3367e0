"""Which model and machine drew a sample: what the file tells of them, and whether two samples have one model."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sd35h5.errors import CaptureError, ConfigError
from sd35h5.measuring.compiled import bare
from sd35h5.weights.checkpoints import sha256_of
from sd35h5.weights.in_memory.held_adapters import adapters_of
from sd35h5.weights.in_memory.held_tensors import computing_dtype, stored_dtypes_of
from sd35h5.weights.model_facts import ModelFacts, base_path, transformer_folder
from sd35h5.weights.model_options import Model
from sd35h5.weights.sources import TOKENIZERS, find_parts, tokenizer_files, wanted

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

_SHORT = 8  # hex digits of a fingerprint in a sentence


def environment(device: torch.device) -> dict[str, str]:
    """Versions and machine that the numbers come from; no host or user name."""
    packages = ("sd35h5", "torch", "diffusers", "transformers", "peft", "tokenizers", "numpy", "h5py")
    found = {name: _version(name) for name in packages}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **found,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": f"{device.type} {name}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a bare checkout has no metadata
        return "not installed"


def components(
    pipe: StableDiffusion3Pipeline,
    sources: Mapping[str, dict],
    fingerprints: Mapping[str, str],
    compiled: Mapping[str, object],
) -> dict[str, dict]:
    """Class, dtypes (in which it computes, in which its weights are stored), size, adapters and fingerprint of every
    model of the pipeline, and where its weights came from if that is known; how the transformer is compiled; class and
    settings of the scheduler."""
    found = {}
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            found[name] = model_record(component, sources.get(name, {}))
        elif name in fingerprints:
            found[name] = {"class": type(component).__name__, **sources.get(name, {})}
    found["transformer"] |= {"compiled": dict(compiled)} if compiled else {}
    if "gates" in sources or "gates" in fingerprints:
        found["gates"] = dict(sources.get("gates", {}))
    if "lora" in sources:
        found["lora"] = dict(sources["lora"])
    for name, digest in fingerprints.items():
        found[name]["fingerprint"] = digest
    scheduler = pipe.scheduler
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    found["scheduler"] = {"class": type(scheduler).__name__, **json.loads(json.dumps(settings, default=str))}
    return found


def model_record(model: nn.Module, source: Mapping[str, Any]) -> dict[str, Any]:
    """Class, dtype, size and adapters of a model, and where its weights came from."""
    stored, count = stored_dtypes_of(model)
    return {
        "class": type(bare(model)).__name__,
        "dtype": str(computing_dtype(model)).removeprefix("torch."),
        "stored_dtype": stored,
        "parameters": count,
        **source,
        **_adapters(model, source.get("adapters", {})),
    }


def _adapters(model: nn.Module, files: Mapping[str, Mapping[str, object]]) -> dict[str, list[dict]]:
    """The adapters that a model has, with their files; those that are in its weights by their files alone."""
    held = {told["name"]: told for told in adapters_of(model)}
    named = {name: {"name": name, **held.get(name, {}), **files.get(name, {})} for name in (*files, *held)}
    return {"adapters": [named[name] for name in sorted(named)]} if named else {}


def refuse_another_model(known: Sequence[Mapping[str, Any]], now: Mapping[str, Any], out: Path) -> None:
    """Refuse to go on with samples of another model.

    Args:
        known: `provenance/components` of the samples that are there.
        now: the same of the model that draws, or of a part of its components.
    Raises:
        CaptureError: naming the components that differ.
    """
    for there in known:
        if told := differing_models(there, now):
            raise CaptureError(
                f"{out.name} holds samples of another model ({'; '.join(told)}): capture into another file, "
                "draw with the model of those samples, or overwrite the file (--overwrite, overwrite=True)"
            )


def differing_models(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which components are another model's, in words: by their fingerprints, or where earlier versions kept none by the
    sha256 of their files."""
    told = []
    is_told = any("fingerprint" in each for each in there.values())
    for name in dict.fromkeys((*now, *there)):
        before, after = there.get(name, {}), now.get(name, {})
        if is_told and not (before.get("fingerprint") or after.get("fingerprint")):
            continue  # a scheduler: the pairing key compares it
        if is_told:
            what, pair = "fingerprint", [each.get("fingerprint", "none") for each in (before, after)]
        else:
            what, pair = "sha256", [" ".join(hashes(each)) for each in (before, after)]
        if pair[0] != pair[1] and (is_told or all(pair)):
            told.append(f"{name} has {what} {pair[0][:_SHORT]} there, {pair[1][:_SHORT]} now")
    return told


def hashes(component: Mapping[str, Any]) -> list[str]:
    """Hashes of the files of a component, as its record tells them, whatever their names."""
    own = [component["sha256"]] if "sha256" in component else []
    return sorted([*own, *(file["sha256"] for file in component.get("files", ()))])


def are_files_unchanged(
    model: Model, facts: ModelFacts, known: Sequence[Mapping[str, Any]], revision: str,
    adapters: Sequence[Path] = (),
) -> bool:  # fmt: skip
    """Whether a model's files are, by size and sha256, those that all sealed samples were drawn with.

    False also where that cannot be told without loading them: what was loaded then tells.

    Args:
        known: `provenance/components` of the sealed samples.
        revision: the hub's commit of which they tell; what comes from the same one is the same.
        adapters: files, each of which has its own scale, so that their order counts.
    """
    base = base_path(model.model_id)
    try:
        parts = find_parts(model, base, transformer_folder(model, base), given_only=base is None)
    except ConfigError:
        return False
    files = {name: part.files for name, part in parts.items()}
    if facts.gates_file is not None:
        files["gates"] = (facts.gates_file,)
    tokenizers = tokenizer_files(Path(model.tokenizer_path).expanduser() if model.tokenizer_path else base)
    for there in known:
        if [file["sha256"] for file in there.get("lora", {}).get("files", ())] != [*map(sha256_of, adapters)]:
            return False
        needed = {name for name in (*wanted(model), *TOKENIZERS, "gates") if hashes(there.get(name, {}))}
        files |= {
            name: tokenizers[name] for name in needed & tokenizers.keys()
        }  # earlier versions kept no hashes
        elsewhere = needed - files.keys()
        if elsewhere and not (base is None and revision and facts.revision == revision):
            return False
        if not all(_are_those(of, there.get(name, {})) for name, of in files.items()):
            return False
    return bool(known)


def _are_those(files: Sequence[Path], component: Mapping[str, Any]) -> bool:
    """Whether files are those of a component: by size, which tells most others, then by sha256."""
    told = [component] if "sha256" in component else component.get("files", [])
    sizes = sorted(file["size"] for file in told)
    if sizes != sorted(file.stat().st_size for file in files):
        return False
    return hashes(component) == sorted(map(sha256_of, files))
