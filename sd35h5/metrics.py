"""Numbers that need only what is in a store: each has one definition, here, without torch.

Words. A[q,k] = softmax(q·kᵀ/√d) over the whole joint key axis, image and text together. The *mass* of key k
is the mean of A[q,k] over the queries of one stream (image queries unless said otherwise); the mass of
several keys is the sum of theirs. A `Target` says which keys: one token position, a group of the token table,
or a word by its string. Every function returns all layers, heads and steps: filters are `.isel` on the
result, means are at the end of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.schema import GROUPS

if TYPE_CHECKING:
    from sd35h5.reader import Store

TEXT_GROUPS = tuple(group for group in GROUPS if group != "image")
AXES = ("sample", "step", "layer", "head")
PER_TOKEN = "masses per token are of the cond branch only, unless captured with --branches cond uncond"
#: metric name -> (what a chart's axis says, short name)
LABELS = {
    "first_token_mean": "mass: share of an image query's attention (0..1)",
    "first_token_share": "× average text token",
    "text_mass_fraction": "fraction of the attention on text (0..1)",
}


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


# ---- the three metrics -------------------------------------------------------------------------------------


def first_token_mean(
    store: Store, target: Target = FIRST_TOKEN, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the mass of the target: mean over image queries of A[q,k], summed over the target's keys.

    Formula: Σ_{k ∈ target} mean_q A[q,k].  Units: 1 (share of a query's attention, 0..1).
    Source: sinks/mass_group for a group and for the start token (exact float32, every branch); else
    sinks/mass_image (rounded to 10 mantissa bits: relative error ≤ 0.05 %; only the branches that were
    captured per token).
    Caveat: A spans image keys too, so a text-rich model and an image-rich one differ in what is left for
    text.
    Returns: float64 (sample, step, layer, head); NaN where the target is absent or nothing was captured.
    """
    chosen = _samples(store, samples)
    group = _whole_group(store, target, branch, chosen)
    if group is not None:
        return _group(store, group, branch, chosen)
    return _tokens(store, target, branch, chosen)


def first_token_share(
    store: Store, target: Target = FIRST_TOKEN, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return how many times the average text token's mass the target's tokens get.

    Formula: (first_token_mean ÷ keys in target) ÷ (Σ_{k ∈ text} mass[k] ÷ number of text tokens).
    Units: 1, a ratio to the average text token (≥ 0, no upper bound of 1). The name is inherited from the
    tool people come from; it is not a fraction.  Source: as first_token_mean, and sinks/mass_group for the
    denominator.
    Caveat: grows with the number of padding tokens, since they lower the average: compare equal text lengths
    only.
    Returns: float64 (sample, step, layer, head).
    """
    chosen = _samples(store, samples)
    _refuse_image(target, "first_token_share")
    keys = target_sizes(store, target, branch, chosen)
    count = xr.DataArray(np.where(keys > 0, keys, np.nan), dims="sample", coords={"sample": chosen})
    mean = first_token_mean(store, target, branch, chosen) / count
    return mean / (text_mass(store, branch, chosen) / store.sizes["token"])


def text_mass_fraction(
    store: Store, target: Target = FIRST_TOKEN, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the target's part of all the mass that falls on text.

    Formula: first_token_mean ÷ Σ_{k ∈ text} mass[k].  Units: 1 (a true fraction, 0..1).
    Source: as first_token_mean, and sinks/mass_group for the denominator.
    Caveat: a ratio of means over queries, not the mean of per-query ratios.
    Returns: float64 (sample, step, layer, head).
    """
    chosen = _samples(store, samples)
    _refuse_image(target, "text_mass_fraction")
    return first_token_mean(store, target, branch, chosen) / text_mass(store, branch, chosen)


METRICS = {
    "first_token_mean": first_token_mean,
    "first_token_share": first_token_share,
    "text_mass_fraction": text_mass_fraction,
}


# ---- what they are made of ---------------------------------------------------------------------------------


def text_mass(store: Store, branch: str = "cond", samples: Sequence[int] | None = None) -> xr.DataArray:
    """Return the mass on all text keys: Σ over the text groups of mass_group, image queries.

    Units: 1 (0..1; 1 minus it is the image's self-mass). Source: sinks/mass_group, exact float32.
    Returns: float64 (sample, step, layer, head).
    """
    chosen = _samples(store, samples)
    there = [group for group in TEXT_GROUPS if group in store.labels("group")]
    return sum(
        (_group(store, group, branch, chosen) for group in there[1:]), _group(store, there[0], branch, chosen)
    )


def group_mass(
    store: Store, branch: str = "cond", query: str = "image", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the mass of every group: sum over the group's keys of mean_q A[q,k], q over `query`'s stream.

    Units: 1; over all groups, image included, it sums to 1 (the store's row_sum_error says how nearly).
    Source: sinks/mass_group, exact float32, every branch.
    Caveat: a sum, so groups with many keys (t5_pad, image) get more under uniform attention.
    Returns: float64 (sample, group, step, layer, head), group labels as coordinates.
    """
    mass = store.read("sinks/mass_group", sample=_samples(store, samples), branch=branch, query=query)
    _refuse_empty(mass, f"group masses of branch {branch!r}")
    return mass.astype(np.float64).transpose("sample", "group", "step", "layer", "head")


def mean_group_mass(
    store: Store, branch: str = "cond", query: str = "image", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return `group_mass` as the mean over samples, read one sample at a time: memory does not grow with
    them.

    Returns: float64 (group, step, layer, head); NaN where no sample has a value.
    """
    total, count = None, None
    for sample in _samples(store, samples):
        mass = group_mass(store, branch, query, [sample]).isel(sample=0, drop=True)
        there = mass.notnull()
        total = mass.fillna(0) if total is None else total + mass.fillna(0)
        count = there.astype(float) if count is None else count + there
    if total is None:
        raise StoreError(f"no sample of {store.name} was chosen: choose one at least")
    return total / count.where(count > 0)


def token_mass(
    store: Store,
    sample: int,
    branch: str = "cond",
    steps: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return one sample's text tokens with their mass, mean over the chosen steps, layers and heads.

    Units: 1 (share of an image query's attention). Source: sinks/mass_image (rounded, ≤ 0.05 %).
    Returns: the token table (token, encoder, text, group, word …) plus a float64 column `mass`.
    """
    where = {"step": steps, "layer": layers, "head": heads}
    chosen = {name: list(places) for name, places in where.items() if places is not None}
    mass = store.read("sinks/mass_image", sample=sample, branch=branch, **chosen)
    _refuse_empty(mass, f"masses per token of branch {branch!r}", PER_TOKEN)
    table = store.tokens(sample, branch).copy()
    table["mass"] = mass.astype(np.float64).mean(["step", "layer", "head"], skipna=True).values
    return table


def with_pads_averaged(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `token_mass` with one row for all padding tokens of an encoder: the mean of their
    masses.

    The row's `token` is the first padding position, its `text` says how many tokens it stands for.
    """
    is_pad = table["group"].isin(["clip_pad", "t5_pad", "t5_absent"])
    rows = []
    for _, pads in table[is_pad].groupby("group", sort=False):
        text = f"<mean of {len(pads)} pads>"
        rows.append(pads.iloc[0].to_dict() | {"text": text, "mass": pads["mass"].mean()})
    return pd.concat([table[~is_pad], pd.DataFrame(rows)], ignore_index=True) if rows else table


def target_positions(store: Store, target: Target, branch: str, sample: int) -> np.ndarray:
    """Return the token positions of a target in one sample: int (n,), empty when the sample lacks it."""
    if target.kind == "token":
        return np.array([int(target.value)])
    table = store.tokens(sample, branch)
    column = "group" if target.kind == "group" else "word_text"
    if target.kind == "word":
        table = with_words(table)
    return table.loc[table[column] == target.value, "token"].to_numpy()


def target_sizes(store: Store, target: Target, branch: str, samples: Sequence[int]) -> np.ndarray:
    """Return how many keys the target has in each sample: int (sample,)."""
    if target.kind == "token":
        return np.ones(len(samples), int)
    if target.kind == "group":
        return (_token_groups(store, branch, samples) == GROUPS.index(str(target.value))).sum(axis=1)
    return np.array([target_positions(store, target, branch, sample).size for sample in samples], int)


def with_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return the token table with `word_text`: the pieces of each word joined, lower case, "" outside
    words."""
    table = table.copy()
    table["word_text"] = ""
    is_word = table["group"].isin(["clip_word", "t5_word"]) & (table["word"] >= 0)
    for _, pieces in table[is_word].groupby(["encoder", "word"]):
        text = "".join(clean(piece) for piece in pieces["text"])
        table.loc[pieces.index, "word_text"] = text.lower()
    return table


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


# ---- means for charts --------------------------------------------------------------------------------------


def by_layer_head(values: xr.DataArray) -> pd.DataFrame:
    """Return layer, head, value: the mean over samples and steps (every sample and step weighs the same)."""
    frame = values.mean([dim for dim in values.dims if dim not in ("layer", "head")], skipna=True)
    table = frame.transpose("layer", "head").to_series().rename("value").reset_index()
    return table.astype({"layer": int, "head": int})


def over_steps(
    values: xr.DataArray, prompts: Sequence[str], band: tuple[float, float] = (0.1, 0.9)
) -> pd.DataFrame:
    """Return step, timestep, sigma, mean, low, high, prompts: one row a step, mean over layers and heads.

    Samples of one prompt are averaged first; `mean` is over prompts, `low`..`high` the quantiles `band`
    across prompts (NaN with a single prompt: there is no spread to show).
    Args: prompts: the prompt_id of each sample of `values`, in its order.
    """
    per_sample = values.mean(["layer", "head"], skipna=True).transpose("sample", "step")
    table = pd.DataFrame(per_sample.values, index=list(prompts)).groupby(level=0, sort=False).mean()
    several = len(table) > 1
    steps = pd.DataFrame({"step": np.asarray(values["step"].values, int)})
    for name in ("timestep", "sigma"):
        steps[name] = np.asarray(values[name].values, float) if name in values.coords else np.nan
    steps["mean"] = table.mean(axis=0).to_numpy()
    steps["low"] = table.quantile(band[0]).to_numpy() if several else np.nan
    steps["high"] = table.quantile(band[1]).to_numpy() if several else np.nan
    steps["prompts"] = len(table)
    return steps


def groups_over_layers(values: xr.DataArray) -> pd.DataFrame:
    """Return group, layer, value from `mean_group_mass`: the mean over steps and heads too."""
    mean = values.mean(["step", "head"], skipna=True).transpose("layer", "group")
    table = mean.to_series().rename("value").reset_index()
    return table.astype({"layer": int})[["group", "layer", "value"]]


# ---- reading -----------------------------------------------------------------------------------------------


def _samples(store: Store, samples: Sequence[int] | None) -> list[int]:
    return list(range(store.sizes["sample"])) if samples is None else [int(sample) for sample in samples]


def _group(store: Store, group: str, branch: str, samples: list[int]) -> xr.DataArray:
    mass = store.read("sinks/mass_group", sample=samples, branch=branch, query="image", group=group)
    _refuse_empty(mass, f"group masses of branch {branch!r}")
    return _plain(mass)


def _tokens(store: Store, target: Target, branch: str, samples: list[int]) -> xr.DataArray:
    tokens = store.sizes["token"]
    if target.kind == "token" and not 0 <= int(target.value) < tokens:
        raise StoreError(
            f"token {target.value} is not in {store.name}: its text has the tokens 0..{tokens - 1}"
        )
    rows = []
    for sample in samples:
        positions = target_positions(store, target, branch, sample)
        first = int(positions[0]) if positions.size else 0
        span = slice(first, int(positions[-1]) + 1) if positions.size else slice(0, 1)
        mass = store.read("sinks/mass_image", sample=[sample], branch=branch, token=span).astype(np.float64)
        picked = mass.isel(token=positions - first).sum("token", skipna=False)
        rows.append(picked if positions.size else picked * np.nan)
    found = xr.concat(rows, "sample")
    _refuse_empty(found, f"masses of {target} for branch {branch!r}", PER_TOKEN)
    return _plain(found)


def _whole_group(store: Store, target: Target, branch: str, samples: list[int]) -> str | None:
    """Return the group whose mass is the target's own, if any: the group asked for, or the start token's."""
    if target.kind == "group":
        return str(target.value)
    if target.kind == "word" or not 0 <= int(target.value) < store.sizes["token"]:
        return None
    groups = _token_groups(store, branch, samples)
    is_start = groups == GROUPS.index("clip_bos")
    return "clip_bos" if is_start[:, int(target.value)].all() and (is_start.sum(axis=1) == 1).all() else None


def _token_groups(store: Store, branch: str, samples: Sequence[int]) -> np.ndarray:
    """Return the group of every token as an index of GROUPS: uint8 (sample, token)."""
    return store.read("tokens/token_group", sample=list(samples), branch=branch).values


def _plain(mass: xr.DataArray) -> xr.DataArray:
    keep = {"timestep", "sigma", *AXES}
    return (
        mass.drop_vars([name for name in mass.coords if name not in keep]).astype(np.float64).transpose(*AXES)
    )


def _refuse_image(target: Target, metric: str) -> None:
    if target == Target("group", "image"):
        raise StoreError(
            f"{metric} compares with the text tokens and the image is none: use first_token_mean"
        )


def _refuse_empty(values: xr.DataArray, what: str, remedy: str = "capture it again") -> None:
    if values.size == 0 or not np.isfinite(values.values).any():
        raise StoreError(f"the store holds no {what}: {remedy}")
