"""What a page says of runs beside each other: which samples pair, what changed in each head, and with what interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sd35h5.comparing import effects, paired_samples, telling_runs
from sd35h5.errors import StoreError
from sd35h5.metrics.averaging import finite_mean, prompt_means
from sd35h5.reports.answers import pair_answers
from sd35h5.reports.answers.sentence import as_json
from sd35h5.reports.publishing import arrow_files
from sd35h5.reports.publishing.pieces import Piece
from sd35h5.reports.publishing.published_runs import PublishedRun, without_folders

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

RESAMPLES = 9999
WHOLE = ("mean_difference", "low", "high", "p")
MOST_DIFFERENCES = 200  # characters of a setting


def pairings(stores: dict[str, Store]) -> dict[tuple[int, int], paired_samples.Pairing]:
    """Return every two runs' pairing, by their places."""
    named = list(stores.items())
    return {
        (first, second): paired_samples.pair(one, other, (name, other_name))
        for (first, (name, one)), (second, (other_name, other)) in combinations(enumerate(named), 2)
    }


def sets_of(place: int, found: dict[tuple[int, int], paired_samples.Pairing]) -> dict[str, tuple[int, ...]]:
    """Return a run's samples that pair with each other run, by that run's key; without those of which none do."""
    sets = {}
    for (first, second), pairing in found.items():
        if place in (first, second) and len(pairing.pairs):
            column = "reference_sample" if place == first else "other_sample"
            sets[f"r{second if place == first else first}"] = tuple(pairing.pairs[column].tolist())
    return sets


def listed(
    found: dict[tuple[int, int], paired_samples.Pairing], made: Sequence[telling_runs.Made]
) -> list[dict[str, Any]]:
    """Return what the page's list holds of the pairs. Args: made: what each run is made of."""
    return [
        {
            "first": f"r{first}", "second": f"r{second}", "pairs": len(one.pairs), "unpaired": len(one.unpaired),
            "tells": telling_runs.beside(made[first], made[second]).tells,
        }
        for (first, second), one in found.items()
    ]  # fmt: skip


def pair_pieces(
    runs: Sequence[PublishedRun], found: dict[tuple[int, int], paired_samples.Pairing]
) -> Iterator[Piece]:
    """Yield the pairs of every two runs, who has no partner, and each metric's change with its uncertainty."""
    if len(runs) > 1:
        yield Piece("differences.arrow", "pairs", partial(_differences, runs))
    for (first, second), pairing in found.items():
        stem, one, other = f"pairs/r{first}-r{second}", runs[first], runs[second]
        yield Piece(f"{stem}.arrow", "pairs", partial(_pairs, pairing))
        yield Piece(f"{stem}.unpaired.arrow", "pairs", partial(_unpaired, pairing))
        if pairing.pairs.empty:
            continue
        shared = [name for name in one.metrics if name in other.metrics]
        for branch in (name for name in one.store.labels("branch") if name in other.store.labels("branch")):
            for metric in shared:
                make = partial(_change, one.store, other.store, pairing, metric, branch)
                yield Piece(f"{stem}/{branch}/{metric}.arrow", "pairs", make)


def _differences(runs: Sequence[PublishedRun]) -> bytes:
    table = paired_samples.setting_differences({run.name: run.store for run in runs})
    folded = table.map(lambda text: without_folders(str(text))[:MOST_DIFFERENCES])
    return arrow_files.table(folded, runs=[run.name for run in runs])


def _pairs(pairing: paired_samples.Pairing) -> bytes:
    kept = pairing.pairs[["reference_sample", "other_sample"]].astype("int32")
    return arrow_files.table(kept)


def _unpaired(pairing: paired_samples.Pairing) -> bytes:
    kept = pairing.unpaired.astype(dict.fromkeys(("run", "prompt", "field", "value", "nearest"), str))
    return arrow_files.table(kept.astype({"sample": "int32", "seed": "int64"}))


def _change(
    reference: Store, other: Store, pairing: paired_samples.Pairing, metric: str, branch: str
) -> bytes | None:
    """What changed in each (layer, head), mean over steps, with q; in all, with its interval and a sentence."""
    try:
        means = paired_samples.step_means(reference, other, pairing, metric, branch)
    except StoreError:  # nothing was measured on this branch, or other heads in the other run
        return None
    change, before, after = (each.expand_dims("step", 1) for each in means)
    prompts = list(pairing.pairs["prompt_id"])
    cells = effects.surviving_cells(change, prompts, RESAMPLES)
    mean = finite_mean(change, ["sample", "step"]).to_series().rename("change").reset_index()
    table = cells.merge(mean[["layer", "head", "change"]], on=["layer", "head"])
    whole = effects.overall_effect(change, prompts, RESAMPLES)
    sides = [
        float(prompt_means(_of_samples(each)[:, None], prompts).mean().iloc[0]) for each in (before, after)
    ]
    told = pair_answers.Change(
        pairing.reference, pairing.other, metric, *sides, *(float(whole[name]) for name in WHOLE),
        int(whole["prompts"]), len(pairing.pairs),
    )  # fmt: skip
    return arrow_files.table(
        table[["layer", "head", "change", "q"]].astype({"layer": "int32", "head": "int32"}),
        said=as_json(pair_answers.change(told)), said_back=as_json(pair_answers.change(told.back)),
        prompts=int(whole["prompts"]), enough=effects.MIN_PROMPTS, significant=effects.SIGNIFICANT,
    )  # fmt: skip


def _of_samples(values: xr.DataArray) -> np.ndarray:
    return finite_mean(values, [dim for dim in values.dims if dim != "sample"]).values
