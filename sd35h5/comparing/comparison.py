"""The numbers of a comparison: one reference run and any number of others, sample paired with sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr

from sd35h5.comparing import effects, paired_samples, score_changes
from sd35h5.errors import StoreError
from sd35h5.long_work import counted
from sd35h5.metrics import averaging, heaviest_keys, sink_rates
from sd35h5.metrics.catalogue import MEASURES, absent
from sd35h5.metrics.targets import FIRST_TOKEN, Target

if TYPE_CHECKING:
    from sd35h5.store.reader import Store


@dataclass(frozen=True)
class Question:
    """What is asked of the runs: a measure of a target on a branch, what may differ, how often to resample."""

    metric: str = "first_token_mean"
    target: Target = FIRST_TOKEN
    branch: str = "cond"
    allow_mismatch: tuple[str, ...] = ()
    resamples: int = effects.RESAMPLES
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """The numbers of a comparison.

    Args:
        reference: name of the reference run; stores: name -> store, the reference first.
        pairings: other run -> its pairing with the reference.
        overall: a row a (run, measure): pairs, prompts, both means, mean_difference, effect, low, high, p, q.
        cells: a row a (run, layer, head) of the asked metric, with the same columns.
        steps, rates, samples, kinds: what the figures draw, each with a column that names the run.
        skipped: a row a (run, measure) that could not be computed, with the reason.
        points, scores: the joined scores beside the asked metric, and their summary; see score_changes.
    """

    question: Question
    reference: str
    stores: dict[str, Store]
    pairings: dict[str, paired_samples.Pairing]
    overall: pd.DataFrame
    cells: pd.DataFrame
    steps: pd.DataFrame
    rates: pd.DataFrame
    samples: pd.DataFrame
    kinds: pd.DataFrame
    skipped: pd.DataFrame
    points: pd.DataFrame
    scores: pd.DataFrame

    @property
    def others(self) -> list[str]:
        """The names of the compared runs."""
        return list(self.pairings)


def measure(stores: dict[str, Store], question: Question) -> Comparison:
    """Return the numbers of the first store against each of the others, sample paired with sample."""
    if question.metric not in MEASURES:
        raise StoreError(f"there is no metric {question.metric!r}: choose one of {', '.join(MEASURES)}")
    reference = next(iter(stores))
    paired = pairings(stores, question.allow_mismatch)
    overall, skipped, asked = [], [], {}
    for name, pairing in paired.items():
        held = _held(name, (stores[reference], stores[name]), question.metric, skipped)
        for measure_name in counted(held, f"measuring {name}"):
            try:
                sides = paired_samples.paired_values(
                    stores[reference], stores[name], pairing, measure_name, question.target, question.branch
                )
            except StoreError as error:
                if measure_name == question.metric:
                    raise
                skipped.append([name, measure_name, str(error)])
                continue
            overall.append(_overall(name, measure_name, sides, pairing, question))
            if measure_name == question.metric:
                asked[name] = sides
    points = score_changes.points(stores, reference, paired, asked)
    table = pd.DataFrame(overall)
    table["q"] = effects.false_discovery(table["p"].to_numpy(float))
    return Comparison(
        question, reference, stores, paired, table,
        _cells(asked, paired, question), _steps(asked, paired, reference),
        _rates(stores, reference, paired, question), _samples(asked, paired, reference),
        _kinds(stores, reference, paired, question), pd.DataFrame(skipped, columns=["run", "measure", "reason"]),
        points, score_changes.summary(points, reference, paired, question.resamples, question.seed),
    )  # fmt: skip


def pairings(
    stores: Mapping[str, Store], allow_mismatch: tuple[str, ...] = ()
) -> dict[str, paired_samples.Pairing]:
    """Return the first store's pairing with each of the others.

    Raises: StoreError where no sample pairs, with all that would have to be allowed.
    """
    reference, *others = stores
    found = {
        name: paired_samples.pair(stores[reference], stores[name], (reference, name), allow_mismatch)
        for name in others
    }
    for name, pairing in found.items():
        if pairing.pairs.empty:
            raise StoreError(_nothing_pairs(stores[reference], stores[name], pairing, allow_mismatch))
    return found


def cells_of(
    change: xr.DataArray,
    before: xr.DataArray,
    after: xr.DataArray,
    prompts: Sequence[str],
    resamples: int = effects.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what changed in every (layer, head), and both means.

    Args: change, before, after: (sample, [step,] layer, head); prompts: the prompt_id of each sample.
    Returns: the columns of `effects.paired_effects`, reference_mean, other_mean.
    """
    table = effects.paired_effects(change, prompts, resamples, effects.LEVEL, seed)
    for column, side in (("reference_mean", before), ("other_mean", after)):
        each = side.mean([dim for dim in side.dims if dim == "step"], skipna=True)
        values = each.transpose("sample", "layer", "head").values
        table[column] = averaging.prompt_means(values.reshape(len(values), -1), prompts).mean().to_numpy()
    return table


def _nothing_pairs(
    reference: Store, other: Store, pairing: paired_samples.Pairing, allowed: tuple[str, ...]
) -> str:
    """Return the sentence for runs of which no sample pairs: what differs, and all that would have to be allowed."""
    own = pairing.unpaired[pairing.unpaired["run"] == pairing.other].itertuples()
    why = "; ".join(dict.fromkeys(f"{row.field}: {row.value}, {row.nearest} in the other" for row in own))
    fields = paired_samples.must_be_allowed(reference, other, pairing, allowed)
    allow = f", or allow what differs: --allow_mismatch {' '.join(fields)}" if fields else ""
    return (
        f"no sample of {pairing.other} pairs with one of {pairing.reference} ({why[:300]}): "
        f"compare runs with equal prompts, seeds and settings{allow}"
    )


def _held(run: str, stores: tuple[Store, Store], asked: str, skipped: list[list[str]]) -> list[str]:
    """Return the measures that both runs hold, and the asked one; note the others, attn2's only where one has it."""
    missing = absent(stores[0]) | absent(stores[1])
    second = any(name.startswith("attn2") for store in stores for name in store.variables)
    for name, remedy in missing.items():
        if name != asked and (second or not name.startswith("attn2_")):
            skipped.append([run, name, remedy])
    return [name for name in MEASURES if name == asked or name not in missing]


def _overall(
    name: str, measure_name: str, sides, pairing: paired_samples.Pairing, question: Question
) -> dict:
    change = paired_samples.difference(*sides)
    row = effects.overall_effect(
        change, list(pairing.pairs["prompt_id"]), question.resamples, effects.LEVEL, question.seed
    )
    means_of = {
        f"{side}_mean": _prompt_mean(values, pairing)
        for side, values in zip(("reference", "other"), sides, strict=True)
    }
    return {"run": name, "measure": measure_name, "pairs": len(pairing.pairs), **means_of, **row.to_dict()}


def _prompt_mean(values, pairing: paired_samples.Pairing) -> float:
    """Return the mean over prompts of a run's value, so that the difference of two is the mean difference."""
    each = values.mean([dim for dim in values.dims if dim != "sample"], skipna=True).values[:, None]
    return float(averaging.prompt_means(each, list(pairing.pairs["prompt_id"])).mean().iloc[0])


def _cells(asked: dict, pairings: dict[str, paired_samples.Pairing], question: Question) -> pd.DataFrame:
    frames = []
    for name, (before, after) in asked.items():
        change = paired_samples.difference(before, after)
        prompts = list(pairings[name].pairs["prompt_id"])
        table = cells_of(change, before, after, prompts, question.resamples, question.seed)
        table.insert(0, "run", name)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def _steps(asked: dict, pairings: dict[str, paired_samples.Pairing], reference: str) -> pd.DataFrame:
    frames = []
    for name, (before, after) in asked.items():
        prompts = list(pairings[name].pairs["prompt_id"])
        if not frames:
            frames.append(averaging.over_steps(before, prompts).assign(series=reference))
        frames.append(averaging.over_steps(after, prompts).assign(series=name))
    return pd.concat(frames, ignore_index=True)


def _samples(asked: dict, pairings: dict[str, paired_samples.Pairing], reference: str) -> pd.DataFrame:
    rows = []
    for name, sides in asked.items():
        pairs = pairings[name].pairs
        for run, values in zip((reference, name), sides, strict=True):
            each = values.mean([dim for dim in values.dims if dim != "sample"], skipna=True).values
            rows.append(
                pairs[["reference_sample", "other_sample", "prompt_id", "prompt", "seed"]].assign(
                    compared=name, run=run, sample=pairs["reference_sample"], value=each
                )
            )
    return pd.concat(rows, ignore_index=True)


def _rates(stores: dict, reference: str, pairings: dict, question: Question) -> pd.DataFrame:
    frames = []
    for run, samples in _paired_samples(reference, pairings):
        mass = MEASURES["first_token_mean"].compute(stores[run], question.target, question.branch, samples)
        prompts = list(stores[run].samples["prompt_id"].iloc[samples])
        uniform = float(
            sink_rates.uniform_mass(stores[run], question.target, question.branch, samples).mean()
        )
        frames.append(sink_rates.sink_curve(mass, prompts, uniform).assign(series=run))
    return pd.concat(frames, ignore_index=True)


def _kinds(stores: dict, reference: str, pairings: dict, question: Question) -> pd.DataFrame:
    """Return the kinds of the heaviest key of every run that holds top-k keys: kind, share, chance, run."""
    frames = []
    for run, samples in _paired_samples(reference, pairings):
        if "topk/top_index" in stores[run] and question.branch == "cond":
            keys = heaviest_keys.top_keys(stores[run], question.branch, "image", samples)
            frames.append(heaviest_keys.kind_shares(keys).assign(run=run))
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=["kind", "share", "chance", "run"])
    )


def _paired_samples(
    reference: str, pairings: dict[str, paired_samples.Pairing]
) -> list[tuple[str, list[int]]]:
    first = sorted({int(s) for pairing in pairings.values() for s in pairing.pairs["reference_sample"]})
    return [(reference, first)] + [
        (n, [int(s) for s in p.pairs["other_sample"]]) for n, p in pairings.items()
    ]
