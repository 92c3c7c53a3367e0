"""What a model says about its own shape, read from its small JSON files, not its weights. Torch-free."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sd35h5.config import DEFAULT_MODEL, CaptureConfig, Model
from sd35h5.errors import CaptureError, ConfigError

GATES_NAME = "gates.safetensors"
_FILES = {
    "index": "model_index.json",
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
# for --dry_run where the hub cannot be asked: layers, heads, layers with a second attention
_KNOWN_SHAPES = {
    DEFAULT_MODEL: (38, 38, 0),
    "stabilityai/stable-diffusion-3.5-large-turbo": (38, 38, 0),
    "stabilityai/stable-diffusion-3.5-medium": (24, 24, 13),
    "stabilityai/stable-diffusion-3-medium-diffusers": (24, 24, 0),
}


@dataclass(frozen=True)
class ModelFacts:
    """Shape and kind of a model.

    Args:
        scale: pixels a patch: the VAE's factor times the patch size.
        gates_file: the gates that will be put on the transformer, or None.
        revision: commit of the hub, or empty.
    """

    layers: int
    heads: int
    head_dim: int
    scale: int
    pixels: int
    scheduler: str
    has_t5: bool
    second_attentions: int
    gates_file: Path | None
    revision: str


def read_facts(model: Model, offline_guess: bool = False) -> ModelFacts:
    """Read a folder's or a hub repository's JSON files.

    Args:
        offline_guess: answer from a table of published shapes if the hub cannot be reached.

    Raises:
        ConfigError: a missing folder, or a folder that is no SD3 model.
        CaptureError: the hub refuses or is not there.
    """
    if is_folder(model.model_id):
        root, revision, hub_gates = Path(model.model_id).expanduser(), "", None
        read = {name: _read_json(root / path) for name, path in _FILES.items() if name != "transformer"}
    else:
        try:
            root, (revision, read, hub_gates) = None, _from_hub(model.model_id)
        except CaptureError:
            if offline_guess and model.model_id in _KNOWN_SHAPES:
                return _guess(model)
            raise
    if read["index"].get("_class_name") != "StableDiffusion3Pipeline":
        raise ConfigError(
            f"{model.model_id} holds a {read['index'].get('_class_name')}, not a StableDiffusion3Pipeline"
        )
    folder = transformer_folder(model, root)
    shape = _read_json(folder / "config.json") if folder is not None else read["transformer"]
    scheduler = read["scheduler"]
    return ModelFacts(
        layers=shape["num_layers"],
        heads=shape["num_attention_heads"],
        head_dim=shape["attention_head_dim"],
        scale=2 ** (len(read["vae"]["block_out_channels"]) - 1) * shape["patch_size"],
        pixels=shape["sample_size"] * 2 ** (len(read["vae"]["block_out_channels"]) - 1),
        scheduler=f"{scheduler.get('_class_name')} shift={scheduler.get('shift')}",
        has_t5=(read["index"].get("text_encoder_3") or [None])[0] is not None,
        second_attentions=len(shape.get("dual_attention_layers") or ()),
        gates_file=gates_file(model, folder) or hub_gates,
        revision=revision,
    )


def check_size(config: CaptureConfig, facts: ModelFacts) -> tuple[int, int]:
    """Height and width to draw: those asked for, or the model's own.

    Raises:
        ConfigError: no multiple of the model's patch.
    """
    size = config.sampling.height or facts.pixels, config.sampling.width or facts.pixels
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels % facts.scale:
            raise ConfigError(f"--{name} {pixels}: this model draws multiples of {facts.scale} pixels")
    return size


def is_folder(model_id: str) -> bool:
    """Tell a folder from a hub id; a path that is neither is refused.

    Raises:
        ConfigError: no such folder, and the name cannot be a hub id.
    """
    path = Path(model_id).expanduser()
    if path.is_dir():
        return True
    if path.exists():
        raise ConfigError(f"--model_id {model_id} is a file: give a folder in diffusers' layout, or a hub id")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model_id):
        raise ConfigError(
            f"--model_id {model_id}: there is no such folder, and a hub id looks like owner/name"
        )
    return False


def transformer_folder(model: Model, root: Path | None) -> Path | None:
    """Folder of the transformer, within the model's or of its own; None if it stays on the hub.

    Raises:
        ConfigError: neither is there.
    """
    inside = root / model.transformer if root is not None else None
    if inside is not None and inside.is_dir():
        return inside
    if Path(model.transformer).expanduser().is_dir() and model.transformer != "transformer":
        return Path(model.transformer).expanduser()
    if root is None and model.transformer == "transformer":
        return None
    others = sorted(p.name for p in root.glob("transformer*") if p.is_dir()) if root is not None else []
    hint = f"; it has {', '.join(others)}" if others else ""
    raise ConfigError(
        f"--transformer {model.transformer}: neither in {model.model_id} nor a folder of its own{hint}"
    )


def gates_file(model: Model, folder: Path | None) -> Path | None:
    """The gates to apply: --gates, else gates.safetensors beside the transformer."""
    if model.gates:
        return Path(model.gates)
    beside = folder / GATES_NAME if folder is not None else None
    return beside if beside is not None and beside.is_file() else None


def hub_sentence(model_id: str, error: Exception) -> str:
    """Say in one sentence why a hub repository cannot be had, and what to do."""
    kind = type(error).__name__
    licence = f"accept its licence at https://huggingface.co/{model_id}, then `hf auth login`"
    if kind == "GatedRepoError":
        why = f"is shown to those only who accepted its licence: {licence}"
    elif kind == "RepositoryNotFoundError":
        why = f"is no folder here, and the hub does not show it: check the name, or {licence}"
    else:
        why = f"is no folder here, and the hub cannot be reached from here; where it can be, {licence}"
    return f"{model_id} {why}; to see the tool work without it, use --demo"


def _from_hub(model_id: str) -> tuple[str, dict[str, dict], Path | None]:
    """Return (commit, JSON files by name, the transformer's gates if the repository has them)."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    refusal = None
    try:  # one quick question first: a download that cannot be had would retry for half a minute
        get_hf_file_metadata(hf_hub_url(model_id, _FILES["index"]), timeout=10)
    except Exception as error:  # noqa: BLE001 - httpx's and the hub's errors have no common parent
        refusal = error
    options = {"local_files_only": refusal is not None}
    try:
        paths = {name: Path(hf_hub_download(model_id, path, **options)) for name, path in _FILES.items()}
    except Exception as error:
        if refusal is None and isinstance(error, EntryNotFoundError):
            raise ConfigError(
                f"{model_id} is not in diffusers' layout: it lacks one of {', '.join(_FILES.values())}"
            ) from error
        raise CaptureError(hub_sentence(model_id, refusal or error)) from error
    try:
        gates = Path(hf_hub_download(model_id, f"transformer/{GATES_NAME}", **options))
    except EntryNotFoundError:  # none there, or none cached while offline
        gates = None
    revision = paths["index"].parent.name  # snapshots/COMMIT/model_index.json
    return revision, {name: _read_json(path) for name, path in paths.items()}, gates


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} is no SD3 folder in diffusers' layout: {path.name} is missing there"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is no valid JSON: {error}") from error


def _guess(model: Model) -> ModelFacts:
    layers, heads, second = _KNOWN_SHAPES[model.model_id]
    return ModelFacts(
        layers=layers, heads=heads, head_dim=64, scale=16, pixels=1024,
        scheduler="FlowMatchEulerDiscreteScheduler shift=3.0",
        has_t5=True, second_attentions=second, gates_file=gates_file(model, None), revision="",
    )  # fmt: skip
