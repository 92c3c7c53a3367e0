"""A few pairs of samples measured together: what a comparison of any size is made of, here or on a worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.comparing import paired_samples
from sd35h5.comparing.paired_samples import Pairing
from sd35h5.comparing.picture_distance import picture_rows
from sd35h5.errors import NothingMeasuredError, StoreError
from sd35h5.metrics import heaviest_keys, sink_rates
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.metrics.piecewise import few_at_a_time
from sd35h5.metrics.reduced import Reduced, joined, reduced
from sd35h5.metrics.targets import Target

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

PAIRS = 6  # of a piece: two threads hold what they read of theirs
Sides = tuple[Reduced, Reduced, Reduced]  # of the reference, of the other, of other − reference


@dataclass(frozen=True)
class Piece:
    """A few pairs, and what to measure of them.

    Args: held: the measures that both runs hold; asked: the one of which everything is kept, of others the means.
    """

    pairing: Pairing
    held: tuple[str, ...]
    asked: str
    target: Target
    branch: str


@dataclass(frozen=True)
class Part:
    """What a piece gives.

    Args:
        means: measure -> float64 (3, pair): of the reference, of the other, of other − reference.
        asked: the asked measure of both and their difference; None where nothing of it was measured.
        refused: measure -> why it could not be computed.
        rates, uniform: of both runs: float64 (pair, epsilon) and (pair).
        kinds: of both runs, of what they hold.
        pictures: a row a pair, columns of `image_differences`.
    """

    pairs: int
    means: dict[str, np.ndarray]
    asked: Sides | None
    refused: dict[str, StoreError]
    rates: tuple[np.ndarray, np.ndarray]
    uniform: tuple[np.ndarray, np.ndarray]
    kinds: tuple[xr.Dataset | None, xr.Dataset | None]
    pictures: pd.DataFrame


def pieces(pairing: Pairing, held: Sequence[str], asked: str, target: Target, branch: str) -> list[Piece]:
    """Cut the pairs into a few at a time."""
    nothing = pairing.unpaired.iloc[:0]
    return [
        Piece(
            dataclasses.replace(pairing, pairs=pairing.pairs.iloc[rows], unpaired=nothing),
            tuple(held), asked, target, branch,
        )
        for rows in few_at_a_time(range(len(pairing.pairs)), PAIRS)
    ]  # fmt: skip


def measured(stores: list[Store], piece: Piece) -> Part:
    """Measure a few pairs of two runs, the reference first; nothing of it is as large as the metrics themselves."""
    stores = [store.reading_once() for store in stores]
    means, asked, refused = {}, None, {}
    for name in piece.held:
        try:
            before, after = paired_samples.paired_values(
                *stores, piece.pairing, name, piece.target, piece.branch
            )
        except StoreError as error:
            refused[name] = error
            continue
        change = paired_samples.difference(before, after)
        if name == piece.asked:
            asked = (reduced(before), reduced(after), reduced(change))
            means[name] = np.stack([side.whole.values for side in asked])
        else:
            means[name] = np.stack([_whole(side) for side in (before, after, change)])
    columns = ("reference_sample", "other_sample")
    sides = [(store, piece.pairing.pairs[name].tolist()) for store, name in zip(stores, columns, strict=True)]
    rates, uniform = zip(*(_sink_rates(store, samples, piece) for store, samples in sides), strict=True)
    kinds = tuple(_kinds(store, samples, piece.branch) for store, samples in sides)
    pictures = picture_rows(*stores, piece.pairing)
    return Part(len(piece.pairing.pairs), means, asked, refused, rates, uniform, kinds, pictures)


def _whole(values: xr.DataArray) -> np.ndarray:
    """The mean over all but the samples, as `reduced` has it."""
    return reduced(values).whole.values


def _sink_rates(store: Store, samples: list[int], piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """Return the sink rates at all ε, and the mass under uniform attention: (sample, epsilon), (sample)."""
    uniform = sink_rates.uniform_mass(store, piece.target, piece.branch, samples).values
    try:
        mass = MEASURES["first_token_mean"].compute(store, piece.target, piece.branch, samples)
    except NothingMeasuredError:
        return np.full((len(samples), len(sink_rates.EPSILONS)), np.nan), uniform
    return sink_rates.exceeded_rates(sink_rates.exceeded(mass)), uniform


def _kinds(store: Store, samples: list[int], branch: str) -> xr.Dataset | None:
    """Return the kind of the heaviest key of every head, and how many keys of each there are; None without top-k."""
    if "topk/top_index" not in store or branch != "cond":
        return None
    try:
        keys = heaviest_keys.top_keys(store, branch, "image", samples, count=1, values=False)
    except NothingMeasuredError:
        return None
    return keys[["kind", "kind_size"]]


def whole_run(parts: Sequence[Part], name: str) -> np.ndarray | StoreError:
    """Return a measure's means of all pairs, (3, pair), or why it has none."""
    refusals = [part.refused[name] for part in parts if name in part.refused]
    found = [part.means[name] for part in parts if name in part.means]
    if not found or any(not isinstance(error, NothingMeasuredError) for error in refusals):
        return next((e for e in refusals if not isinstance(e, NothingMeasuredError)), refusals[0])
    return np.concatenate([part.means.get(name, np.full((3, part.pairs), np.nan)) for part in parts], axis=1)


def whole_asked(parts: Sequence[Part]) -> Sides:
    """Return the asked measure of all pairs; NaN where nothing was measured."""
    counts = [part.pairs for part in parts]
    return tuple(
        joined([part.asked[side] if part.asked else None for part in parts], counts) for side in range(3)
    )
