"""Where each component of a model comes from: the base, or a file or folder of its own. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd35h5.errors import ConfigError
from sd35h5.weights.checkpoints import Entry, read_entries, read_metadata
from sd35h5.weights.configs import COMPONENT_CONFIGS, derive_config
from sd35h5.weights.layouts import COMPONENTS, HARMLESS, TITLES, Layout, describe_keys, find_layout
from sd35h5.weights.leavings import adapter_in_words, leavings, tell_leavings, told_adapter
from sd35h5.weights.model_options import Model
from sd35h5.weights.quantized import refuse_quantized
from sd35h5.weights.vae_family import check_vae
from sd35h5.weights.weight_sets import variant_of, weight_files

OPTIONS = {
    "transformer": "dit_path", "text_encoder": "clip_l_path", "text_encoder_2": "clip_g_path",
    "text_encoder_3": "t5xxl_path", "vae": "vae_path",
}  # fmt: skip
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
TOKENIZERS_HERE = Path(__file__).resolve().parents[2] / "data" / "tokenizers"  # of the published models


@dataclass(frozen=True)
class Part:
    """One component, found and read by its headers.

    Args:
        said: how it was given, for sentences: `--vae_path vae.safetensors`.
        entries: the tensors of its files that belong to it, by the files' keys.
        config: what its class is built from.
        derived: True if the config comes from the shapes and not from a config.json.
        metadata: what the file says of itself beside its tensors.
        notes: sentences on what of the file is left out.
        beside_transformer: the file holds an SD3 transformer, too.
    """

    component: str
    said: str
    path: Path
    files: tuple[Path, ...]
    layout: Layout
    entries: Mapping[str, Entry]
    config: dict[str, Any]
    derived: bool
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside_transformer: bool = False


def overrides(model: Model) -> dict[str, tuple[str, Path]]:
    """The components that --model_id need not give: component -> (how it was given, path).

    Those with a flag of their own, and what else the file of --dit_path holds where the rest would come from the hub.
    """
    told = {component: (option, getattr(model, option)) for component, option in OPTIONS.items()}
    given = {
        component: (f"--{option} {path}", Path(path).expanduser())
        for component, (option, path) in told.items()
        if path
    }
    if "transformer" in given and not Path(model.model_id).expanduser().exists():
        file = given["transformer"][1]
        keys = read_entries((file,)).keys() if file.is_file() else ()
        beside = [each for each in wanted(model) if each not in given and find_layout(each, keys)]
        given |= {component: given["transformer"] for component in beside}
    return given


def wanted(model: Model) -> tuple[str, ...]:
    """The components to load: all, without T5 if it is not wanted."""
    return tuple(each for each in COMPONENTS if each != "text_encoder_3" or not model.no_t5)


def from_base(model: Model) -> tuple[str, ...]:
    """The components and tokenizers that only --model_id can give.

    Tokenizers alone are not fetched for: the published models' are bundled.
    """
    given = overrides(model)
    components = tuple(each for each in wanted(model) if each not in given)
    is_there = Path(model.model_id).expanduser().is_dir()
    if model.tokenizer_path or not (components or is_there):
        return components
    return (*components, *TOKENIZERS[: 2 if model.no_t5 else 3])


def bundled_tokenizers() -> Path:
    """The folder of the published models' tokenizers.

    Raises:
        ConfigError: an installed package, which has no data folder.
    """
    if not (TOKENIZERS_HERE / "clip" / "vocab.json").is_file():
        raise ConfigError(
            "the bundled tokenizers are not here (they come with the repository, not with the installed package): "
            "give --tokenizer_path, a folder with tokenizer, tokenizer_2 and tokenizer_3, such as any SD3 folder in "
            "diffusers' layout"
        )
    return TOKENIZERS_HERE


def tokenizer_files(root: Path | None) -> dict[str, tuple[Path, ...]]:
    """The files of each tokenizer in a folder, {} without one."""
    found = {}
    for name in TOKENIZERS if root is not None else ():
        files = sorted(file for kind in ("json", "txt", "model") for file in (root / name).glob(f"*.{kind}"))
        found |= {name: tuple(files)} if files else {}
    return found


def find_parts(
    model: Model, base: Path | None, transformer: Path | None = None, given_only: bool = False
) -> dict[str, Part]:
    """Find all components that are wanted and not on the hub, and see that they fit each other.

    Args:
        base: the base model's folder or all-in-one file; None if it is on the hub and not fetched.
        transformer: the transformer's folder, if it is not `transformer` in the base.
        given_only: only those with a flag of their own, not the base's.

    Raises:
        ConfigError: a sentence naming the file and the key.
    """
    parts, given = {}, overrides(model)
    for component in wanted(model):
        if given_only and component not in given:
            continue
        part = find_part(component, model, base, transformer if component == "transformer" else None)
        if part is not None:
            parts[component] = part
    check_fit(parts)
    if model.variant and not given_only and parts:
        names = [file.name for part in parts.values() for file in part.files]
        if model.variant not in map(variant_of, names):
            raise ConfigError(f"--variant {model.variant}: no component of {model.model_id} has this variant")
    return parts


def find_part(component: str, model: Model, base: Path | None, folder: Path | None = None) -> Part | None:
    """Find a component and read its headers.

    Args:
        base: the base model's folder or all-in-one file; None if it is on the hub and not fetched.
        folder: the component's folder in the base, if it is not called like the component.

    Returns: None if only the hub, or nothing, has it.

    Raises:
        ConfigError: a sentence naming the file and the key.
    """
    if given := overrides(model).get(component):
        said, path = given
        base_config = _base_config(component, base)
        part = _read_part(component, said, path, base_config, model.variant)
        if component == "vae" and model.vae_path and not part.beside_transformer:
            check_vae(
                said, part.files, part.config, part.derived, part.metadata, base_config, model.vae_is_sd3
            )
        return part
    if base is None:
        return None
    if base.is_file():
        part = _read_part(component, f"--model_id {model.model_id}", base, None, optional=True)
        if part is None:
            t5 = ", or leave T5 out with --no_t5" if component == "text_encoder_3" else ""
            raise ConfigError(
                f"--model_id {model.model_id} does not hold {TITLES[component]}: "
                f"give it with --{OPTIONS[component]}{t5}"
            )
        return part
    folder = folder or base / component
    if component == "text_encoder_3" and not folder.is_dir():
        return None
    return _read_part(component, f"{folder}", folder, None, model.variant)


def _read_part(
    component: str,
    said: str,
    path: Path,
    base_config: dict | None,
    variant: str = "",
    optional: bool = False,
) -> Part | None:
    files = weight_files(path, said, variant)
    entries, metadata = read_entries(files), read_metadata(files[0])
    if what := told_adapter(entries):
        way = ": draw with it by --lora" * what.startswith(("a LoRA", "a LoKr", "a LoHa"))
        raise ConfigError(f"{said} holds {what}{way}")
    left = leavings(entries)
    held = {key: entry for key, entry in entries.items() if key not in left}
    layout = find_layout(component, held.keys())
    if layout is None:
        if optional:
            return None
        alone = "" if held else f"{next(iter(left.values()))} alone"
        what = adapter_in_words(metadata) or alone or describe_keys(held.keys())
        raise ConfigError(f"{said} holds {what}, expected {TITLES[component]}")
    if layout.gap is not None:
        raise ConfigError(f"{said} lacks block {layout.gap}: its keys tell of {layout.depth} blocks")
    _refuse_strays(said, files, held)
    own = {key: entry for key, entry in held.items() if layout.owns(key)}
    refuse_quantized(said, own, metadata)
    config = _folder_config(path) if path.is_dir() and layout.name != "original" else None
    derived = config is None
    if config is None:
        shapes = {key: entry.shape for key, entry in own.items()}
        config = derive_config(layout, shapes, base_config, files[0].name)
    _refuse_the_other_clip(component, said, config)
    notes = _notes(files[0].name, held, left)
    beside = find_layout("transformer", held.keys()) is not None
    return Part(component, said, path, files, layout, own, config, derived, metadata, notes, beside)


def _notes(name: str, entries: Mapping[str, Entry], left: Mapping[str, str]) -> tuple[str, ...]:
    wrapped = [entry.name for key, entry in entries.items() if entry.name != key]
    notes = [f"{name} was saved through a wrapper ({wrapped[0]}): read without it"] if wrapped else []
    return (*notes, *([tell_leavings(name, left)] if left else []))


def _refuse_strays(said: str, files: tuple[Path, ...], entries: Mapping[str, Entry]) -> None:
    """Refuse keys that belong to no component of an all-in-one file: something would be lost unsaid."""
    found = [layout for each in COMPONENTS if (layout := find_layout(each, entries.keys()))]
    strays = [
        key for key in entries if not HARMLESS.search(key) and not any(layout.owns(key) for layout in found)
    ]
    if strays:
        raise ConfigError(
            f"{said}: {entries[strays[0]].file.name} has the unknown key {strays[0]}"
            f"{f' and {len(strays) - 1} more' * (len(strays) > 1)}, which belongs to no component"
        )


def _refuse_the_other_clip(component: str, said: str, config: Mapping[str, Any]) -> None:
    others = {"text_encoder": "text_encoder_2", "text_encoder_2": "text_encoder"}
    if component not in others:
        return
    other = others[component]
    width, there = COMPONENT_CONFIGS[other]["hidden_size"], config.get("hidden_size")
    if there == width:
        raise ConfigError(
            f"{said} holds {TITLES[other]} ({width} channels), expected {TITLES[component]}: "
            f"give it with --{OPTIONS[other]}"
        )


def _base_config(component: str, base: Path | None) -> dict | None:
    return _folder_config(base / component) if base is not None and base.is_dir() else None


def _folder_config(folder: Path) -> dict | None:
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is no valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} is no config: it holds a {type(config).__name__}")
    return config


def check_fit(parts: Mapping[str, Part]) -> None:
    """Refuse components that belong to different models, by the sizes with which they meet.

    Raises:
        ConfigError: a sentence naming both files and sizes.
    """
    transformer = parts.get("transformer")
    if transformer is None:
        return
    config = transformer.config
    clips = [parts[each] for each in ("text_encoder", "text_encoder_2") if each in parts]
    if len(clips) == 2:
        pooled = [clip.config.get("projection_dim", 512) for clip in clips]
        if sum(pooled) != config["pooled_projection_dim"]:
            raise ConfigError(
                f"{clips[0].said} and {clips[1].said} give {pooled[0]} + {pooled[1]} pooled channels, "
                f"but {transformer.said} expects {config['pooled_projection_dim']}"
            )
    for component, width, wants in (
        ("text_encoder_3", "d_model", "joint_attention_dim"),
        ("vae", "latent_channels", "in_channels"),
    ):
        part = parts.get(component)
        if part is not None and part.config[width] != config[wants]:
            raise ConfigError(
                f"{part.said} has {width} {part.config[width]}, "
                f"but {transformer.said} expects {config[wants]} ({wants})"
            )
