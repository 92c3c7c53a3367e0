"""What a slice keeps: asked for in words, resolved to positions in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from sd35h5.errors import StoreError
from sd35h5.index_lists import choose_among
from sd35h5.store import schema
from sd35h5.store.schema import SCALES, variable
from sd35h5.store.words import is_told

#: what is asked for -> the dimensions whose scales hold its true indices; `token` itself stays whole
ALONG = {
    "steps": ("step", "top_step", "map_step", "raw_step"),
    "layers": ("layer", "raw_layer"),
    "heads": ("head", "raw_head"),
    "tokens": ("raw_token",),
}
TABLES = ("samples", "tokens")  # which every file has, and every slice keeps whole
MAP_INDEX = "maps/map_token_index"
KEPT_SCALES = (  # readers go by them whatever a file holds; all others go with what they are of
    "sample", "branch", "step", "layer", "head", "token", "query", "group", "encoder", "rgb", "pixel_y", "pixel_x",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What a slice keeps, as the command line spells it; by default everything."""

    samples: str = "all"  # by their index in the capture
    prompts: str = ""  # that hold this text, in any case
    tags: tuple[str, ...] = ()  # that have all of these
    branches: tuple[str, ...] = ()
    layers: str = "all"
    heads: str = "all"
    steps: str = "all"
    tokens: str = "all"
    tiers: tuple[str, ...] = ()  # groups of the file, or single variables

    def told(self) -> dict[str, object]:
        """What was asked for, without what was left at its default."""
        asked = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != each.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}


@dataclass(frozen=True)
class Cut:
    """Which positions of a file a slice holds.

    Args:
        samples: positions of samples, ascending.
        places: dimension -> positions, of the dimensions that are cut.
        variables: in the file's order.
        scales: those of the slice, but `sample`.
        tokens: bool (token,), whose values stay; None for all.
        left_out: variable -> why it is not there although its tier is.
    """

    samples: np.ndarray
    places: Mapping[str, np.ndarray]
    variables: tuple[str, ...]
    scales: Mapping[str, np.ndarray]
    tokens: np.ndarray | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def is_of_token(self, index: np.ndarray) -> np.ndarray:
        """Whether maps are of chosen tokens: bool, as `maps/map_token_index`."""
        return (index >= 0) & np.isin(index, np.flatnonzero(self.tokens))


def resolve(
    wanted: Wanted, indices: np.ndarray, table: Mapping[str, np.ndarray], scales: Mapping[str, np.ndarray],
    variables: Sequence[str], mapped: np.ndarray | None,
) -> Cut:  # fmt: skip
    """Find what is wanted in a file.

    Args:
        indices: the scale `sample` of the file.
        table: its columns prompt, prompt_id and tags.
        mapped: `maps/map_token_index` of all samples.
    Raises:
        StoreError: nothing is left, or a tier or branch that is not there; ConfigError for a list of indices.
    """
    samples = _samples(wanted, indices, table)
    places: dict[str, np.ndarray] = {}
    tokens = None
    for what, dims in ALONG.items():
        known = scales[what.removesuffix("s")]
        chosen = choose_among(what, getattr(wanted, what), known.tolist(), what.removesuffix("s"))
        if len(chosen) == len(known):
            continue
        if what == "tokens":
            tokens = np.isin(known, chosen)
        places |= {dim: np.flatnonzero(np.isin(scales[dim], chosen)) for dim in dims if dim in scales}
    if wanted.branches:
        places["branch"] = _branches(wanted.branches, scales["branch"])
    if tokens is not None and mapped is not None:  # a place stays if a sample has the map of a token there
        of_tokens = (mapped >= 0) & np.isin(mapped, np.flatnonzero(tokens))
        there = of_tokens[samples][:, places.get("branch", slice(None))]
        places["map_token"] = np.flatnonzero(there.any((0, 1)))
    names = _of_tiers(wanted.tiers, variables)
    left_out = {name: empty for name in names if (empty := _nothing_of(name, places))}
    for group in ("maps", "rows"):  # a list of tokens or queries of which nothing is told
        of_group = [name for name in names if name.startswith(f"{group}/") and name not in left_out]
        if not any("layer" in variable(name).dims for name in of_group):
            left_out |= dict.fromkeys(of_group, f"nothing of {group} is left")
    kept = tuple(name for name in names if name not in left_out)
    used = {dim for name in kept for dim in variable(name).dims} | set(KEPT_SCALES)
    own = {
        name: values[places[SCALES[name].along]] if SCALES[name].along in places else values
        for name, values in scales.items()
        if SCALES[name].along in used
    }
    return Cut(samples, places, kept, own, tokens, left_out)


def _samples(wanted: Wanted, indices: np.ndarray, table: Mapping[str, np.ndarray]) -> np.ndarray:
    chosen = choose_among("samples", wanted.samples, sorted(indices.tolist()), "sample")
    keep = np.isin(indices, chosen)
    for place, (prompt, name, tags) in enumerate(
        zip(table["prompt"], table["prompt_id"], table["tags"], strict=True)
    ):
        keep[place] &= is_told(wanted.prompts, prompt, name) and set(wanted.tags) <= set(tags.split(","))
    if not keep.any():
        asked = [f"--prompts {wanted.prompts!r}"] * bool(wanted.prompts)
        asked += [f"--tags {' '.join(wanted.tags)}"] * bool(wanted.tags)
        raise StoreError(
            f"no sample of --samples {wanted.samples} has {' and '.join(asked)}: nothing is left"
        )
    return np.flatnonzero(keep)


def _branches(names: Sequence[str], flags: np.ndarray) -> np.ndarray:
    there = [schema.BRANCHES[flag] for flag in flags.tolist() if flag < len(schema.BRANCHES)]
    for name in names:
        if name not in there:
            raise StoreError(f"--branches {name}: the branches there are {', '.join(there)}")
    return np.flatnonzero(np.isin(flags, [schema.BRANCHES.index(name) for name in names]))


def _of_tiers(tiers: Sequence[str], variables: Sequence[str]) -> tuple[str, ...]:
    """The variables of some tiers; the tables of samples and tokens are always kept."""
    kept = {name for name in variables if not tiers or _tier(name) in TABLES}
    for tier in tiers:
        found = {name for name in variables if tier in (name, _tier(name))}
        if not found:
            there = dict.fromkeys(_tier(name) for name in variables if _tier(name) not in TABLES)
            raise StoreError(
                f"--tiers {tier}: there are {', '.join(there)}, and variables such as sinks/mass_group"
            )
        kept |= found
    return tuple(name for name in variables if name in kept)


def _tier(name: str) -> str:
    """The group of a variable: attn2 is one, whosever heads it has."""
    return name.partition("/")[0].removesuffix("_regrouped")


def _nothing_of(name: str, places: Mapping[str, np.ndarray]) -> str:
    """Say along which dimension nothing of a variable is left, "" if something is."""
    empty = next((dim for dim in variable(name).dims if dim in places and not len(places[dim])), "")
    return f"none of its {empty.rpartition('_')[2]}s was chosen" if empty else ""
