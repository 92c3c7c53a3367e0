"""What a model says about its own shape, read from its small JSON files, not its weights. Torch-free."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sd35h5.errors import CaptureError, ConfigError
from sd35h5.gates.decision import Attn2, HeldGates, Sizes
from sd35h5.weights.attn2_origin import attn2_of
from sd35h5.weights.configs import COMPONENT_CONFIGS, SCHEDULER, TRANSFORMERS
from sd35h5.weights.held_gates import gates_to_apply
from sd35h5.weights.layouts import COMPONENTS, TITLES
from sd35h5.weights.model_options import Model
from sd35h5.weights.sources import (
    OPTIONS,
    TOKENIZERS,
    Part,
    bundled_tokenizers,
    find_part,
    find_parts,
    from_base,
    overrides,
)

GATES_NAME = "gates.safetensors"
_FILES = {
    "index": "model_index.json",
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


@dataclass(frozen=True)
class ModelFacts:
    """Shape and kind of a model.

    Args:
        scale: pixels a patch: the VAE's factor times the patch size.
        second_layers: the layers that have a second, image-only attention.
        gates_file: the gates that will be put on the transformer, or None.
        revision: commit of the hub, or empty.
        held: the gates of `gates_file` or of the transformer's own file, None without any or where only the
            hub has them.
        attn2: what the transformer's own file tells of how its second attention is computed.
    """

    layers: int
    heads: int
    head_dim: int
    scale: int
    pixels: int
    scheduler: str
    has_t5: bool
    second_layers: tuple[int, ...]
    gates_file: Path | None
    revision: str
    held: HeldGates | None = None
    attn2: Attn2 = Attn2()

    @property
    def sizes(self) -> Sizes:
        """What gates depend on."""
        return Sizes(self.layers, self.heads, self.heads * self.head_dim, self.second_layers)

    @property
    def told_gates(self) -> str:
        """The gates in words, as far as headers tell."""
        if self.gates_file is not None:
            return f"gates from {self.gates_file}"
        if self.held is None:
            return "no gates"
        kind = "headwise" if next(iter(self.held.shapes.values()))[0] == self.heads else "elementwise"
        return f"{kind} gates in {len(self.held.places)} attentions of {self.held.name}"


def read_facts(model: Model, offline_guess: bool = False) -> ModelFacts:
    """Read a folder's or a hub repository's JSON files, and the headers of single files.

    Args:
        offline_guess: answer from a table of published shapes if the hub cannot be reached.

    Raises:
        ConfigError: a missing folder, or a folder or file that is no SD3 model.
        CaptureError: the hub refuses or is not there.
    """
    base = base_path(model.model_id)
    check_single_file(model, base)
    alone = find_parts(model, base, given_only=base is None or base.is_dir())
    read, revision, hub_gates = {}, "", None
    if base is not None:
        read = _from_folder(model, base) if base.is_dir() else {}
    elif from_base(model):
        try:
            revision, read, hub_gates = _from_hub(model.model_id)
        except CaptureError as error:
            if not (offline_guess and model.model_id in TRANSFORMERS):
                raise CaptureError(f"{error}{_asked_of_the_hub(model)}") from error
            read = _published(model.model_id)
    folder = None if "transformer" in alone else transformer_folder(model, base)
    if "transformer" in alone:
        shape = alone["transformer"].config
    else:
        shape = _read_json(folder / "config.json") if folder is not None else read["transformer"]
    vae = alone["vae"].config if "vae" in alone else read["vae"]
    scheduler = read.get("scheduler") or {"_class_name": "FlowMatchEulerDiscreteScheduler", **SCHEDULER}
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    beside = gates_file(model, folder or _own_folder(model)) or hub_gates
    part = alone.get("transformer") or _in_folder(model, base, folder)
    return ModelFacts(
        layers=shape["num_layers"],
        heads=shape["num_attention_heads"],
        head_dim=shape["attention_head_dim"],
        scale=factor * shape["patch_size"],
        pixels=shape["sample_size"] * factor,
        scheduler=f"{scheduler.get('_class_name')} shift={scheduler.get('shift')}",
        has_t5="text_encoder_3" in alone or (not model.no_t5 and _has_t5(read)),
        second_layers=tuple(shape.get("dual_attention_layers") or ()),
        gates_file=beside,
        revision=revision,
        held=gates_to_apply(part, beside, shape["num_layers"]),
        attn2=Attn2() if part is None else attn2_of(part),
    )


def _asked_of_the_hub(model: Model) -> str:
    """Which components are wanted from there, and how to give them, for whoever has given others as files."""
    if not overrides(model):
        return ""
    wanted = [
        f"{TITLES[each]} (--{OPTIONS[each]}{' or --no_t5' * (each == 'text_encoder_3')})"
        for each in from_base(model)
        if each in OPTIONS
    ]
    return f"; from there would come {', '.join(wanted)}"


def _own_folder(model: Model) -> Path | None:
    """The folder that --dit_path names, or None."""
    path = Path(model.dit_path).expanduser()
    return path if model.dit_path and path.is_dir() else None


def _in_folder(model: Model, base: Path | None, folder: Path | None) -> Part | None:
    """The transformer in a folder, by its headers; None where only its config is there, which is enough for a plan."""
    weights = (
        []
        if folder is None
        else [file for file in folder.glob("[!.]*.safetensors") if file.name != GATES_NAME]
    )
    return find_part("transformer", model, base, folder) if weights else None


def _has_t5(read: dict[str, dict]) -> bool:
    return (read.get("index", {}).get("text_encoder_3") or [None])[0] is not None


def _from_folder(model: Model, base: Path) -> dict[str, dict]:
    """The JSON files of a folder that are needed: only tokenizers may be asked of it."""
    asked = set(from_base(model))
    needs = ["index", "scheduler", *(["vae"] if "vae" in asked else [])]
    if not asked & set(COMPONENTS):
        needs = [name for name in needs if (base / _FILES[name]).is_file()]
    read = {name: _read_json(base / _FILES[name]) for name in needs}
    if "index" in read:
        _check_class(model.model_id, read["index"])
    return read


def _check_class(model_id: str, index: dict) -> None:
    if index.get("_class_name") != "StableDiffusion3Pipeline":
        raise ConfigError(f"{model_id} holds a {index.get('_class_name')}, not a StableDiffusion3Pipeline")


def check_single_file(model: Model, base: Path | None) -> None:
    """Refuse a single file with --transformer, and weights in files where no tokenizers are at hand.

    Raises:
        ConfigError: as said.
    """
    if base is not None and base.is_file() and model.transformer != "transformer":
        raise ConfigError(
            f"--transformer {model.transformer}: --model_id {model.model_id} is a single file, in which there are "
            "no folders; give the transformer with --dit_path"
        )
    names = TOKENIZERS[: 2 if model.no_t5 else 3]
    has_own = base is not None and all((base / name).is_dir() for name in names[:2])
    on_hub = base is None and bool(from_base(model))
    if not (model.tokenizer_path or has_own or on_hub):
        bundled_tokenizers()


def base_path(model_id: str, option: str = "--model_id") -> Path | None:
    """The folder or all-in-one file that a model is; None for a hub id.

    Raises:
        ConfigError: no such folder or file, and the name cannot be a hub id.
    """
    path = Path(model_id).expanduser()
    if path.exists():
        return path
    is_a_file = path.suffix in (".safetensors", ".ckpt", ".gguf")
    if is_a_file or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model_id):
        raise ConfigError(
            f"{option} {model_id}: there is no such folder or file, and a hub id looks like owner/name"
        )
    return None


def transformer_folder(model: Model, root: Path | None) -> Path | None:
    """Folder of the transformer, within the model's or of its own; None if it is on the hub or in a file.

    Raises:
        ConfigError: neither is there.
    """
    inside = root / model.transformer if root is not None else None
    if inside is not None and inside.is_dir():
        return inside
    if Path(model.transformer).expanduser().is_dir() and model.transformer != "transformer":
        return Path(model.transformer).expanduser()
    if (root is None or root.is_file()) and model.transformer == "transformer":
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
    except Exception as error:  # httpx's and the hub's errors have no common parent
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
    read = {name: _read_json(path) for name, path in paths.items()}
    _check_class(model_id, read["index"])
    return revision, read, gates


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} is no SD3 folder in diffusers' layout: {path.name} is missing there"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is no valid JSON: {error}") from error


def _published(model_id: str) -> dict[str, dict]:
    """The JSON files of a published model, as far as they matter here."""
    return {
        "index": {"text_encoder_3": ["transformers", "T5EncoderModel"]},
        "transformer": TRANSFORMERS[model_id], "vae": COMPONENT_CONFIGS["vae"],
    }  # fmt: skip
