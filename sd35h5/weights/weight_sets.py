"""Which files of a folder or a repository are one set of weights: whole or in shards, plain or a variant. Torch-free.

Variants stand between the dots, in any of the spellings that diffusers and transformers have had:
`model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`, `model-00001-of-00002.fp16.safetensors`,
and of their indices `model.safetensors.index.fp16.json`, `model.fp16.safetensors.index.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sd35h5.errors import ConfigError
from sd35h5.weights.checkpoints import PICKLED_SUFFIXES, pickled_sentence

_PREFERRED = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' own names
_NOT_WEIGHTS = ("gates.safetensors",)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")


@dataclass(frozen=True)
class WeightSet:
    """One set of weights among some files.

    Args:
        variant: `fp16`, say; empty for the plain weights.
        files: their names, in order.
        index: the file that lists the shards, or empty.
    """

    name: str
    variant: str
    files: tuple[str, ...]
    index: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Shards that their names tell of, and that are not there."""
        match = _SHARD.search(self.files[0]) if self.files else None
        if match is None:
            return ()
        first = self.files[0]
        names = (
            f"{first[: match.start(1)]}{number:05}{first[match.end(1) :]}"
            for number in range(1, int(match[2]) + 1)
        )
        return tuple(name for name in names if name not in self.files)


def _identity(file: str) -> tuple[str, str] | None:
    """(name, variant) of the set that a file belongs to; None for a file that is neither weights nor an index."""
    plain = _SHARD.sub("", file)
    name, *rest = plain.split(".")
    if rest[-1:] == ["safetensors"] and file not in _NOT_WEIGHTS and file[0] != ".":
        return name, ".".join(rest[:-1])
    if rest[-1:] == ["json"] and "safetensors" in rest and "index" in rest:
        return name, ".".join(part for part in rest[:-1] if part not in ("safetensors", "index"))
    return None


def weight_sets(files: Collection[str]) -> list[WeightSet]:
    """The sets of weights among the files of one folder, the libraries' own names first, the plain one before its
    variants."""
    found: dict[tuple[str, str], list[str]] = {}
    indices: dict[tuple[str, str], str] = {}
    for file in sorted(files):
        if (identity := _identity(file)) is None:
            continue
        if file.endswith(".json"):
            indices[identity] = file
            found.setdefault(identity, [])
        else:
            found.setdefault(identity, []).append(file)

    def order(identity: tuple[str, str]) -> tuple[int, str, str]:
        name, variant = identity
        return (_PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED), name, variant)

    sets = []
    for identity in sorted(found, key=order):
        whole = [file for file in found[identity] if not _SHARD.search(file)]
        shards = tuple(file for file in found[identity] if _SHARD.search(file))
        index = "" if whole else indices.get(identity, "")
        if whole or shards or index:
            sets.append(WeightSet(*identity, (whole[0],) if whole else shards, index))
    return sets


def choose_set(sets: Collection[WeightSet], variant: str, option: str) -> WeightSet:
    """The one to read: of the variant that was asked for, else the plain one, else the only one.

    Args:
        sets: one or more, as `weight_sets` orders them.

    Raises:
        ConfigError: several to choose from, or only other variants.
    """
    variants = sorted({each.variant for each in sets if each.variant})
    for wanted in dict.fromkeys(
        (variant, "")
    ):  # a component without the variant comes plain, as in diffusers
        fitting = [each for each in sets if each.variant == wanted]
        own = [each for each in fitting if each.name in _PREFERRED]
        if own or len(fitting) == 1:
            return (own or fitting)[0]
        if fitting:
            names = ", ".join((each.files or (each.index,))[0] for each in fitting[:4])
            raise ConfigError(f"{option} holds several weight files ({names}): give one of them")
    if variant:
        raise ConfigError(f"{option} holds no --variant {variant}: it has {' and '.join(variants)}")
    if len(variants) > 1:
        raise ConfigError(
            f"{option} holds several variants of its weights ({', '.join(variants)}): ask for one with "
            f"--variant {variants[0]}"
        )
    fitting = list(sets)
    if len(fitting) > 1:
        names = ", ".join((each.files or (each.index,))[0] for each in fitting[:4])
        raise ConfigError(f"{option} holds several weight files ({names}): give one of them")
    return fitting[0]


def weight_files(path: Path, option: str, variant: str = "") -> tuple[Path, ...]:
    """The safetensors files behind a path: the file itself, or those of a component's folder.

    Args:
        option: how the path was given, for the sentence: `--vae_path vae.safetensors`.
        variant: `fp16`, say; a folder without it gives its plain weights.

    Raises:
        ConfigError: nothing there, pickled weights only, or several files to choose from.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise ConfigError(f"{option}: there is no such file or folder")
    there = [
        file.name for file in path.iterdir() if file.is_file() and file.name[0] != "."
    ]  # macOS leaves ._x
    if sets := weight_sets(there):
        chosen = choose_set(sets, variant, option)
        names = _listed(path / chosen.index) if chosen.index else chosen.files
        told_by = chosen.index or chosen.files[0]
        missing = [name for name in names if name not in there] if chosen.index else list(chosen.missing)
        if missing:
            raise ConfigError(f"{path} is incomplete: {missing[0]}, named in {told_by}, is missing")
        return tuple(path / name for name in names)
    if pickled := sorted(name for name in there if Path(name).suffix in PICKLED_SUFFIXES):
        raise ConfigError(pickled_sentence(path / pickled[0]))
    raise ConfigError(f"{option} holds no weights: there is no .safetensors file in it")


def variant_of(file: str) -> str:
    """The variant that a file's name tells, or nothing."""
    identity = _identity(file)
    return identity[1] if identity else ""


def _listed(index: Path) -> tuple[str, ...]:
    """The names of the files that an index lists."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        strange = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is no index of weight files: it has no weight_map") from error
    if strange or not names:
        raise ConfigError(f"{index} names no files of its own folder: {strange[:1] or 'none'}")
    return tuple(names)


def files_to_fetch(listed: Collection[str], subfolders: Collection[str], variant: str) -> list[str]:
    """Which files of a repository are needed: of each subfolder one set of weights, and all that is no weights.

    Args:
        listed: the repository's files, by their paths.

    Raises:
        ConfigError: a subfolder with several sets to choose from.
    """
    wanted = [name for name in listed if name == "model_index.json"]
    folders: Mapping[str, list[str]] = {name: [] for name in sorted(subfolders)}
    for path in map(PurePosixPath, listed):
        if len(path.parts) == 2 and path.parts[0] in folders:
            folders[path.parts[0]].append(path.name)
    for folder, names in folders.items():
        sets = weight_sets(names)
        chosen = choose_set(sets, variant, f"{folder} of the repository") if sets else None
        for name in names:
            is_set = _identity(name) is not None
            of_chosen = chosen is not None and _identity(name) == (chosen.name, chosen.variant)
            if of_chosen or not (
                is_set or PurePosixPath(name).suffix in (*PICKLED_SUFFIXES, ".msgpack", ".h5")
            ):
                wanted.append(f"{folder}/{name}")
    return wanted
