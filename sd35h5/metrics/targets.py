"""Which text keys a number is about, the words and token groups of a prompt, and how stores are read for numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import NothingMeasuredError, StoreError
from sd35h5.store.schema import GROUPS

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

TEXT_GROUPS = tuple(group for group in GROUPS if group != "image")
PADS = ("clip_pad", "t5_pad", "t5_absent")  # groups of positions without text
AXES = ("sample", "step", "layer", "head")
TABLES_AT_ONCE = 200  # samples
PATCH = 16  # pixels along a patch: SD3's VAE halves three times, its transformer takes 2 x 2 latents


@dataclass(frozen=True)
class Target:
    """The text keys a number is about: kind "token" (position), "group" (a name of GROUPS) or "word" (a
    string)."""

    kind: str = "token"
    value: int | str = 0

    def __post_init__(self) -> None:
        if self.kind not in ("token", "group", "word"):
            raise StoreError(f"a target is a token, a group or a word, not {self.kind!r}")
        if self.kind == "group" and self.value not in GROUPS:
            raise StoreError(f"there is no group {self.value!r}: the groups are {', '.join(GROUPS)}")

    def __str__(self) -> str:
        return {
            "token": f"token {self.value}",
            "group": f"group {self.value}",
            "word": f"word “{self.value}”",
        }[self.kind]


FIRST_TOKEN = Target("token", 0)


def parse_target(text: str) -> Target:
    """Return the target that a command line names: token:0, group:clip_pad, word:cat."""
    kind, _, value = text.partition(":")
    if kind == "token" and not value.isdigit():
        raise StoreError(f"--target {text}: a token is named by its position, as in token:0")
    if not value:
        raise StoreError(f"--target {text}: write token:0, group:clip_pad or word:cat")
    return Target(kind, int(value) if kind == "token" else value.lower())


def target_positions(store: Store, target: Target, branch: str, sample: int) -> np.ndarray:
    """Return the token positions of a target in one sample: int (n,), empty when the sample lacks it."""
    return all_positions(store, target, branch, [sample])[0]


def all_positions(store: Store, target: Target, branch: str, samples: Sequence[int]) -> list[np.ndarray]:
    """Return `target_positions` of each sample."""
    if target.kind == "token":
        return [np.array([int(target.value)])] * len(samples)
    if target.kind == "group":
        found = token_groups(store, branch, samples) == GROUPS.index(str(target.value))
    else:
        found = token_words(store, branch, samples) == target.value
    return [np.flatnonzero(row) for row in found]


def target_sizes(store: Store, target: Target, branch: str, samples: Sequence[int]) -> np.ndarray:
    """Return how many keys the target has in each sample: int (sample,)."""
    if target.kind == "token":
        return np.ones(len(samples), int)
    if target.kind == "group":
        return (token_groups(store, branch, samples) == GROUPS.index(str(target.value))).sum(axis=1)
    return np.array([positions.size for positions in all_positions(store, target, branch, samples)], int)


def with_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return the token table with `word_text`: the pieces of each word joined, lower case, "" outside
    words."""
    return table.assign(word_text=_word_texts(table["group"], table["word"], table["text"]))


def token_words(store: Store, branch: str, samples: Sequence[int]) -> np.ndarray:
    """Return the word that each token belongs to, lower case, "" outside words: str objects (sample, token)."""
    found = np.full((len(samples), store.sizes["token"]), "", object)
    for first in range(0, len(samples), TABLES_AT_ONCE):
        some = list(samples)[first : first + TABLES_AT_ONCE]
        columns = [
            store.read(f"tokens/token_{name}", sample=some, branch=branch).values
            for name in ("group", "word", "text")
        ]
        names = np.array([*GROUPS, *[""] * (256 - len(GROUPS))], object)
        for place, (groups, words, texts) in enumerate(zip(*columns, strict=True), first):
            found[place] = _word_texts(names[groups], words, texts)
    return found


def _word_texts(groups: Iterable[str], words: Iterable[int], texts: Iterable[str]) -> list[str]:
    """Return the joined pieces of the word that each token is part of."""
    keys = [
        (group, word) if group in ("clip_word", "t5_word") and word >= 0 else None
        for group, word in zip(groups, words, strict=True)
    ]
    joined: dict[tuple[str, int], str] = {}
    for key, text in zip(keys, texts, strict=True):
        if key:
            joined[key] = joined.get(key, "") + clean(text).lower()
    return [joined[key] if key else "" for key in keys]


def clean(piece: str) -> str:
    """Return a token's string without the marks tokenizers use for word borders (</w>, ▁, Ġ)."""
    return str(piece).replace("</w>", "").replace("▁", "").replace("Ġ", "").strip()


def shown_text(piece: str, group: str) -> str:
    """Return how a token's string is shown: words without border marks, special tokens by what they are
    for."""
    special = {
        "clip_bos": "<start>",
        "clip_eos": "<end>",
        "t5_eos": "<end>",
        "clip_pad": "<pad>",
        "t5_pad": "<pad>",
    }
    return special.get(group) or clean(piece) or "␣"


def key_count(store: Store) -> int:
    """Return the number of keys of the joint axis: text tokens and image patches."""
    rows, columns = patch_grid(store)
    return store.sizes["token"] + rows * columns


def patch_grid(store: Store) -> tuple[int, int]:
    """Return (rows, columns) of the image's patches: from the kept image's size, else the maps', else the config's.

    Raises: StoreError where the file has none of them.
    """
    if {"pixel_y", "pixel_x"} <= set(store.sizes):
        return store.sizes["pixel_y"] // PATCH, store.sizes["pixel_x"] // PATCH
    if "maps/image_to_text" in store:
        at = {
            name: values for name, (_, values) in store.coords("maps/image_to_text").items() if name in "yx"
        }
        rows, columns = (round(len(at[name]) * (2 * float(at[name][0]) + 1)) for name in "yx")
        return rows, columns
    if {"height", "width"} <= set(store.config):
        return int(store.config["height"]) // PATCH, int(store.config["width"]) // PATCH
    raise StoreError(f"{store.name} does not tell the size of its images: capture it with images or maps")


def group_sizes(store: Store, branch: str, samples: Sequence[int]) -> xr.DataArray:
    """Return how many keys each group has, image patches included: int (sample, group)."""
    groups = token_groups(store, branch, samples)
    names = store.labels("group")
    sizes = np.stack([(groups == GROUPS.index(name)).sum(axis=1) for name in names], axis=1)
    if "image" in names:
        rows, columns = patch_grid(store)
        sizes[:, names.index("image")] = rows * columns
    return xr.DataArray(
        sizes, dims=("sample", "group"), coords={"sample": list(samples), "group": list(names)}
    )


def chosen_samples(store: Store, samples: Sequence[int] | None) -> list[int]:
    return list(range(store.sizes["sample"])) if samples is None else [int(sample) for sample in samples]


def token_groups(store: Store, branch: str, samples: Sequence[int]) -> np.ndarray:
    """Return the group of every token as an index of GROUPS: uint8 (sample, token)."""
    return store.read("tokens/token_group", sample=list(samples), branch=branch).values


def plain(mass: xr.DataArray) -> xr.DataArray:
    keep = {"timestep", "sigma", *AXES}
    return (
        mass.drop_vars([name for name in mass.coords if name not in keep]).astype(np.float64).transpose(*AXES)
    )


def refuse_empty(values: xr.DataArray, what: str, remedy: str = "capture it again") -> None:
    if values.size == 0 or not np.isfinite(values.values).any():
        raise NothingMeasuredError(f"the store holds no {what}: {remedy}")
