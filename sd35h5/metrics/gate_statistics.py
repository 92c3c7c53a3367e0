"""What the gates of a store do: statistics by layer and head, dead and open heads, what a key adds after the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics.averaging import of_numbers
from sd35h5.metrics.heaviest_keys import KINDS, UNKNOWN, top_keys
from sd35h5.metrics.piecewise import few_at_a_time, weighted_mean
from sd35h5.metrics.targets import chosen_samples, plain
from sd35h5.store.schema import GATE_STATISTICS

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

STREAMS = ("image", "text", "attn2")  # attn2: the image's queries in MMDiT-X's second attention
_JOIN = {"min": np.fmin, "max": np.fmax}  # the others are summed, and divided in the end
DEAD, OPEN = (
    0.99,
    0.01,
)  # share of gates under 0.1 from which a head counts as dead; under 0.5 up to which as open


def gated_streams(store: Store) -> tuple[str, ...]:
    """Return those of STREAMS that a store has gates of; none of a model without gates."""
    joint = STREAMS[:2] if "gates/mean" in store else ()
    return joint + STREAMS[2:] * ("attn2/mean" in store)


def gate_statistic(
    store: Store,
    name: str = "mean",
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
) -> xr.DataArray:
    """Return a statistic of the gate over a stream's queries (and channels): one of GATE_STATISTICS.

    Formula: mean, std, min, max of g, or the share of g below 0.1 or 0.5, over queries and, in elementwise
    gates, the head's channels.
    Units: 1 (g = σ(…) is 0..1, 2σ(…) 0..2; shares 0..1).  Source: gates/*, of the query `attn2` attn2/*, exact
    float32, every branch.
    Caveat: of the stream the gate is on; the last layer's text gate is never applied and is NaN. Untrained
    gates have numbers too.
    Args: query: `image`, `text`, or `attn2`, the image's queries in MMDiT-X's second attention.
    Returns: float64 (sample, step, layer, head).
    """
    if name not in GATE_STATISTICS:
        raise StoreError(f"there is no gate statistic {name!r}: choose one of {', '.join(GATE_STATISTICS)}")
    group, of = ("attn2", "image") if query == "attn2" else ("gates", query)
    if f"{group}/{name}" not in store:
        where = " on attn2" if query == "attn2" else ""
        raise StoreError(f"{store.name} is of a model without gates{where}: it has no gate statistics")
    return plain(
        store.read(f"{group}/{name}", sample=chosen_samples(store, samples), branch=branch, query=of)
    )


def gate_heads(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return a row a (layer, head): the gate's statistics and whether the head is dead, open or varying.

    Formula: dead when at least 99 % of its gates are below 0.1, open when at most 1 % are below 0.5, else
    varying; shares are means over samples and steps, min and max are over them.
    Units: 1.  Source: gates/*, of the query `attn2` attn2/*.
    Caveat: with a gate of 2σ, open means above 0.5 of a range of 2. NaN where the gate is not applied.
    Returns: layer, head, mean, std, min, max, below_0_1, below_0_5, state.
    """
    return heads_of_steps(gate_steps(store, branch, query, samples), steps)


def gate_steps(
    store: Store, branch: str = "cond", query: str = "image", samples: Sequence[int] | None = None
) -> xr.Dataset:
    """Return the gate's statistics over samples at each step, from which `gate_heads` is made for any steps.

    Returns: min, max, and of the others the sum over samples, and `measured`, how many there are: float64 (step,
        layer, head).
    """
    reduced: dict[str, xr.DataArray] = {}
    for some in few_at_a_time(chosen_samples(store, samples)):
        values = {name: gate_statistic(store, name, branch, query, some) for name in GATE_STATISTICS}
        parts = {
            name: _JOIN[name].reduce(each.values, 0) if name in _JOIN else np.nansum(each.values, 0)
            for name, each in values.items()
        }
        parts["measured"] = values["mean"].notnull().values.sum(0)
        for name, part in parts.items():
            reduced[name] = _JOIN.get(name, np.add)(reduced[name], part) if name in reduced else part
    dims, first = values["mean"].dims[1:], values["mean"].isel(sample=0, drop=True)
    return xr.Dataset({name: (dims, each) for name, each in reduced.items()}, coords=first.coords)


def heads_of_steps(found: xr.Dataset, steps: Sequence[int] | None = None) -> pd.DataFrame:
    """Return the table of `gate_heads` from what `gate_steps` returns."""
    part = found if steps is None else found.isel(step=of_numbers(found, "step", steps))
    measured = part["measured"].sum("step")
    reduced = {
        name: part[name].reduce(_JOIN[name].reduce, "step")
        if name in _JOIN
        else (part[name].sum("step") / measured).where(measured > 0)
        for name in GATE_STATISTICS
    }
    columns = {name: values.transpose("layer", "head").to_series() for name, values in reduced.items()}
    table = pd.DataFrame(columns).reset_index().astype({"layer": int, "head": int})
    dead, opened = table["below_0_1"] >= DEAD, table["below_0_5"] <= OPEN
    table["state"] = np.select(
        [table["mean"].isna(), dead, opened], ["not applied", "dead", "open"], "varying"
    )
    return table


def group_gates(store: Store, branch: str = "cond", samples: Sequence[int] | None = None) -> xr.DataArray:
    """Return the mean gate of the queries at each token group and of the image's patches.

    Formula: mean of g over the group's queries and, in elementwise gates, the head's channels; text groups from
    the text stream's gate, `image` from the image stream's.
    Units: 1 (g = σ(…) is 0..1, 2σ(…) 0..2).  Source: gates/group_mean, exact float32, every branch.
    Caveat: this is the gate of the queries *at* a token, on what they read; a key that others read (a sink) is
    weakened by their gates: see `contribution_shares`.
    Returns: float64 (sample, group, step, layer, head); NaN where a group has no token or a gate is not applied.
    """
    if "gates/group_mean" not in store:
        raise StoreError(f"{store.name} holds no gate means of token groups")
    values = store.read("gates/group_mean", sample=chosen_samples(store, samples), branch=branch)
    is_image = values["group"] == "image"
    found = values.sel(query="image", drop=True).where(is_image, values.sel(query="text", drop=True))
    return found.astype(np.float64).transpose("sample", "group", "step", "layer", "head")


def mean_group_gates(
    store: Store, branch: str, samples: Sequence[int], prompts: Sequence[str]
) -> xr.DataArray:
    """Return `group_gates` as the mean over prompts, samples of a prompt averaged first; a few samples are read at a
    time.

    Args: prompts: the prompt_id of each sample.
    Returns: float64 (group, step, layer, head); NaN where no sample has a value.
    """
    each = pd.Series(prompts).groupby(prompts).transform("size").to_numpy()
    return weighted_mean(lambda some: group_gates(store, branch, some), samples, 1.0 / each)


def summed_contributions(store: Store, branch: str, samples: Sequence[int]) -> xr.Dataset:
    """Return `contribution_sums` of what these samples have captured; a few are read at a time."""
    total = None
    for some in few_at_a_time(samples):
        added = store.read("gates/contribution", sample=some, branch=branch, query="image")
        sums = contribution_sums(top_keys(store, branch, "image", some), added)
        total = sums if total is None else total + sums
    return total


def contribution_shares(keys: xr.Dataset, gated: xr.DataArray) -> pd.DataFrame:
    """Return, by kind of key, its part of the heaviest keys' mass and its part of what they add after the gate.

    Formula: Σ over the kind's keys ÷ Σ over all captured heaviest keys, of mass and of mass × ‖v‖ × mean gate.
    Units: 1 (0..1; both sum to 1 over the kinds).  Source: `top_keys` and gates/contribution, exact float32.
    Caveat: of the captured top-k only; norms of what is added, which may cancel each other.
    Args: gated: gates/contribution of the same keys, (sample, top_step, layer, head, rank).
    Returns: kind, mass, added; only kinds that are there.
    """
    return shares_of_sums(contribution_sums(keys, gated))


def contribution_sums(keys: xr.Dataset, gated: xr.DataArray) -> xr.Dataset:
    """Return the sums over samples and ranks of which `contribution_shares` are the shares.

    Returns: mass and added, float64 (kind, top_step, layer, head).
    """
    dims = ("top_step", "layer", "head")
    kinds = keys["kind"].transpose("sample", "rank", *dims).values
    added = gated.transpose("sample", "rank", *dims).values
    shape = kinds.shape[2:]
    cell = kinds * np.int64(np.prod(shape)) + np.arange(np.prod(shape)).reshape(shape)
    there = (kinds != UNKNOWN) & np.isfinite(added)
    sums = {}
    for name, values in (("mass", keys["mass"].transpose("sample", "rank", *dims).values), ("added", added)):
        summed = np.bincount(cell[there], np.nan_to_num(values[there]), len(KINDS) * np.prod(shape))
        sums[name] = (("kind", *dims), summed.reshape(len(KINDS), *shape))
    return xr.Dataset(sums, coords={"top_step": keys["top_step"].values})


def shares_of_sums(found: xr.Dataset) -> pd.DataFrame:
    """Return the table of `contribution_shares` from `contribution_sums`, all or a part of their cells."""
    sums = [found[name].sum(["top_step", "layer", "head"]).values for name in ("mass", "added")]
    shares = [values / values.sum() if values.sum() > 0 else values * np.nan for values in sums]
    table = pd.DataFrame({"kind": KINDS, "mass": shares[0], "added": shares[1]})
    return table[sums[0] > 0].reset_index(drop=True)


def contribution(keys: xr.Dataset, gate: xr.DataArray | None = None) -> xr.DataArray:
    """Return what each of the heaviest keys adds to the output, after the gate when one is given.

    Formula: mass × ‖v‖ [× mean gate of that (step, layer, head)].  Units: those of the value vectors.
    Source: `top_keys`, and `gate_statistic(…, "mean")` of the same query stream.
    Caveat: a product of means: exact for a key whose A[q,k] and gate do not vary together over queries; an
    elementwise gate is taken at its mean over channels.
    Returns: float64 (sample, top_step, layer, head, rank).
    """
    added = keys["mass"].astype(np.float64) * keys["value_norm"]
    if gate is None:
        return added
    at = gate.sel(step=keys["top_step"].values).rename(step="top_step")
    return added * at.drop_vars([name for name in ("timestep", "sigma") if name in at.coords])
