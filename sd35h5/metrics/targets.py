"""Which text keys a number is about, the words and token groups of a prompt, and how stores are read for numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import NothingMeasuredError, StoreError
from sd35h5.store.schema import GROUPS, REGROUPED
from sd35h5.store.showable import showable
from sd35h5.store.words import find_phrase, same_word, word_spans, words_of

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
            "word": f"word “{showable(self.value)}”",
        }[self.kind]


FIRST_TOKEN = Target("token", 0)


def parse_target(text: str) -> Target:
    """Return the target that a command line names: token:0, group:clip_pad, word:cat."""
    kind, _, value = text.partition(":")
    if kind == "token" and not value.isdigit():
        raise StoreError(f"--target {text}: a token is named by its position, as in token:0")
    if not value:
        raise StoreError(f"--target {text}: write token:0, group:clip_pad or word:cat")
    return Target(kind, int(value) if kind == "token" else same_word(value))


def target_positions(store: Store, target: Target, branch: str, sample: int) -> np.ndarray:
    """Return the token positions of a target in one sample: int (n,), empty when the sample lacks it."""
    return all_positions(store, target, branch, [sample])[0]


def all_positions(store: Store, target: Target, branch: str, samples: Sequence[int]) -> list[np.ndarray]:
    """Return `target_positions` of each sample."""
    if target.kind == "token":
        return [np.array([int(target.value)])] * len(samples)
    if target.kind == "group":
        found = token_groups(store, branch, samples) == GROUPS.index(str(target.value))
    elif word_spans(word := str(target.value)) == [(0, len(word))]:
        found = token_words(store, branch, samples) == word
    else:  # several words, or a part of one in a script without spaces
        return _phrase_positions(store, word, branch, samples)
    return [np.flatnonzero(row) for row in found]


def target_sizes(store: Store, target: Target, branch: str, samples: Sequence[int]) -> np.ndarray:
    """Return how many keys the target has in each sample: int (sample,)."""
    if target.kind == "token":
        return np.ones(len(samples), int)
    if target.kind == "group":
        return (token_groups(store, branch, samples) == GROUPS.index(str(target.value))).sum(axis=1)
    return np.array([positions.size for positions in all_positions(store, target, branch, samples)], int)


def with_words(table: pd.DataFrame, text: str) -> pd.DataFrame:
    """Return the token table with `word_text`: the word that each token is part of, lower case, "" outside words.

    Args: text: what the table is of, as `branch_texts` reads it.
    """
    columns = (table[name] for name in ("group", "word", "char_start", "char_end"))
    return table.assign(word_text=_word_texts(text, *columns))


def branch_texts(store: Store, branch: str, samples: Sequence[int]) -> list[str]:
    """Return the text that each sample's branch reads."""
    name = "negative_prompt" if branch == "uncond" else "prompt"
    return store.read(f"samples/{name}", sample=list(samples)).values.tolist()


def token_words(store: Store, branch: str, samples: Sequence[int]) -> np.ndarray:
    """Return the word that each token belongs to, lower case, "" outside words: str objects (sample, token)."""
    found = np.full((len(samples), store.sizes["token"]), "", object)
    names = np.array([*GROUPS, *[""] * (256 - len(GROUPS))], object)
    for first, texts, (groups, *columns) in _tables(
        store, branch, samples, ("group", "word", "char_start", "char_end")
    ):
        for place, text in enumerate(texts):
            row = (column[place] for column in columns)
            found[first + place] = _word_texts(text, names[groups[place]], *row)
    return found


def _phrase_positions(store: Store, phrase: str, branch: str, samples: Sequence[int]) -> list[np.ndarray]:
    """Return the tokens of each sample that read a part of a phrase, wherever it stands."""
    found = []
    for _, texts, columns in _tables(store, branch, samples, ("char_start", "char_end")):
        for text, starts, ends in zip(texts, *columns, strict=True):
            inside = np.zeros(len(starts), bool)
            for start, end in find_phrase(text, phrase):
                inside |= (starts >= 0) & (starts < end) & (ends > start)
            found.append(np.flatnonzero(inside))
    return found


def _tables(
    store: Store, branch: str, samples: Sequence[int], names: Sequence[str]
) -> Iterator[tuple[int, list[str], list[np.ndarray]]]:
    """Yield columns of the token tables of some samples at a time: the place of the first, their texts, the columns."""
    for first in range(0, len(samples), TABLES_AT_ONCE):
        some = list(samples)[first : first + TABLES_AT_ONCE]
        columns = [store.read(f"tokens/token_{name}", sample=some, branch=branch).values for name in names]
        yield first, branch_texts(store, branch, some), columns


def _word_texts(
    text: str, groups: Iterable[str], words: Iterable[int], starts: Iterable[int], ends: Iterable[int]
) -> list[str]:
    """Return the word that each token is part of."""
    is_word = [
        group in ("clip_word", "t5_word") and word >= 0 for group, word in zip(groups, words, strict=True)
    ]
    named = words_of(text, compress(zip(words, starts, ends, strict=True), is_word))
    return [named[word] if inside else "" for word, inside in zip(words, is_word, strict=True)]


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
    return special.get(group) or showable(clean(piece)) or "␣"


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
    """Return (sample, step, layer, head) in float64; heads of an attn2 that has its own are numbered as its own."""
    keep = {"timestep", "sigma", *AXES}
    mass = mass.rename(head_attn2="head") if "head_attn2" in mass.dims else mass
    return (
        mass.drop_vars([name for name in mass.coords if name not in keep]).astype(np.float64).transpose(*AXES)
    )


def held_name(store: Store, name: str) -> str:
    """Return the name under which a store holds a variable: that of attn2 is another where its heads are its own."""
    other = REGROUPED.get(name, name)
    return other if other in store else name


def refuse_empty(values: xr.DataArray, what: str, remedy: str = "capture it again") -> None:
    if values.size == 0 or not np.isfinite(values.values).any():
        raise NothingMeasuredError(f"the store holds no {what}: {remedy}")
