"""The numbers of a page: each metric as (step, layer, head), mean over samples and of some samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from sd35h5 import metrics
from sd35h5.errors import NothingMeasuredError
from sd35h5.metrics.averaging import by_layer_head, finite_mean
from sd35h5.metrics.catalogue import computed
from sd35h5.metrics.piecewise import AT_ONCE, few_at_a_time, in_pieces
from sd35h5.metrics.ready_means import mean_over_samples
from sd35h5.metrics.targets import FIRST_TOKEN, Target
from sd35h5.reports.answers import sink_answers
from sd35h5.reports.answers.sentence import Sentence, as_json
from sd35h5.reports.answers.spreads import spreads
from sd35h5.reports.publishing import arrow_files
from sd35h5.reports.publishing.pieces import Piece
from sd35h5.reports.publishing.published_runs import ALL, PublishedRun, numbers_name, uniform


def number_pieces(run: PublishedRun) -> Iterator[Piece]:
    """Yield every metric, branch and target as mean over each set of samples; the first token also sample by sample."""
    sets = {name: samples for name, samples in run.sets.items() if name == ALL or samples != run.sets[ALL]}
    for branch in run.store.labels("branch"):
        for metric in run.metrics:
            for target in run.targets_of(metric, branch):
                for chosen, samples in sets.items():
                    kind = "targets" if target != FIRST_TOKEN else "numbers" if chosen == ALL else "pairs"
                    name = numbers_name(run, branch, metric, target, chosen)
                    yield Piece(name, kind, partial(_mean, run, metric, target, branch, samples))
            yield from _samples(run, metric, branch)
        yield Piece(f"{run.key}/numbers/{branch}/groups.arrow", "numbers", partial(_groups, run, branch))


def _samples(run: PublishedRun, metric: str, branch: str) -> Iterator[Piece]:
    for place, some in enumerate(few_at_a_time(range(len(run.store)))):
        name = f"{run.key}/samples/{branch}/{metric}.{place}.arrow"
        yield Piece(name, "samples", partial(_each, run, metric, branch, some), place * AT_ONCE)


def told_steps(values: xr.DataArray) -> dict[str, list]:
    """Return the captured steps with their timesteps and sigmas, None where the file does not tell."""
    known = {
        name: np.atleast_1d(values[name].values) for name in ("timestep", "sigma") if name in values.coords
    }
    told = {
        name: [float(one) if np.isfinite(one) else None for one in those] for name, those in known.items()
    }
    return {"steps": [int(step) for step in values["step"].values], **told}


def _mean(
    run: PublishedRun, metric: str, target: Target, branch: str, samples: Sequence[int]
) -> bytes | None:
    try:
        mean = mean_over_samples(run.store, metric, target, branch, samples)
    except NothingMeasuredError:
        return None
    even = uniform(run, metric, target, branch, samples)
    said = as_json(_heads(run, metric, target, branch, samples, mean, even))
    return arrow_files.numbers(
        mean.values, exact=True, uniform=even, count=len(samples), said=said, **told_steps(mean)
    )


def _heads(
    run: PublishedRun, metric: str, target: Target, branch: str, samples: Sequence[int], mean: xr.DataArray,
    even: float | None,
) -> Sentence:  # fmt: skip
    """Say which heads have most of it; of the first token with the interval over prompts, as the dashboard does."""
    table, found = by_layer_head(mean), {}
    if metric == "first_token_mean" and target == FIRST_TOKEN:
        cells = sink_answers.leading_cells(table)[:1]
        prompts = run.store.samples["prompt_id"].iloc[list(samples)].tolist()
        if cells and len(set(prompts)) > 1:
            layer, head = cells[0]
            each = in_pieces(
                lambda some: computed(run.store, metric, target, branch, some).sel(
                    layer=[layer], head=[head]
                ),
                samples,
            )
            found = spreads(cells, each, prompts)
    return sink_answers.heads(table, metric, target, even, found)


def _each(run: PublishedRun, metric: str, branch: str, some: list[int]) -> bytes | None:
    try:
        values = computed(run.store, metric, FIRST_TOKEN, branch, some)
    except NothingMeasuredError:
        return None
    return arrow_files.numbers(values.values, exact=False, samples=some, **told_steps(values))


def _groups(run: PublishedRun, branch: str) -> bytes | None:
    """Where the mass goes: (group, layer, head), mean over samples and steps."""
    try:
        mass = metrics.mean_group_mass(run.store, branch, "image", range(len(run.store)))
    except NothingMeasuredError:
        return None
    mean = finite_mean(mass, ["step"]).transpose("group", "layer", "head")
    whole = finite_mean(mean, ["layer", "head"]).to_series()
    said = sink_answers.groups({str(name): float(value) for name, value in whole.items()})
    names = [str(name) for name in mean["group"].values]
    return arrow_files.numbers(mean.values, exact=True, groups=names, said=as_json(said or ()))
