"""The numbers of a comparison: one reference run and any number of others, sample paired with sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.comparing import effects, paired_samples, score_changes
from sd35h5.comparing.pair_parts import Part, Sides, measured, pieces, whole_asked, whole_run
from sd35h5.errors import StoreError
from sd35h5.metrics import averaging, heaviest_keys, sink_rates
from sd35h5.metrics.catalogue import MEASURES, absent
from sd35h5.metrics.targets import FIRST_TOKEN, Target
from sd35h5.spreading.hands import Hands, Here

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
        pictures: a row a (run, pair), columns of `image_differences`.
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
    pictures: pd.DataFrame
    skipped: pd.DataFrame
    points: pd.DataFrame
    scores: pd.DataFrame

    @property
    def others(self) -> list[str]:
        """The names of the compared runs."""
        return list(self.pairings)


def measure(stores: dict[str, Store], question: Question, hands: Hands | None = None) -> Comparison:
    """Return the numbers of the first store against each of the others, sample paired with sample.

    A few pairs at a time, so that memory does not grow with their metrics.
    Args: hands: who measures them; threads of this process when None.
    """
    if question.metric not in MEASURES:
        raise StoreError(f"there is no metric {question.metric!r}: choose one of {', '.join(MEASURES)}")
    reference = next(iter(stores))
    paired = pairings(stores, question.allow_mismatch)
    overall, skipped, asked, parts = [], [], {}, {}
    for name, pairing in paired.items():
        held = _held(name, (stores[reference], stores[name]), question.metric, skipped)
        cut = pieces(pairing, held, question.metric, question.target, question.branch)
        here = hands or Here(stores)
        parts[name] = list(here.run(measured, (reference, name), cut, f"comparing {name}"))
        for measure_name in held:
            found = whole_run(parts[name], measure_name)
            if not isinstance(found, StoreError):
                overall.append(_overall(name, measure_name, found, pairing, question))
            elif measure_name == question.metric:
                raise found
            else:
                skipped.append([name, measure_name, str(found)])
        asked[name] = whole_asked(parts[name])
    points = score_changes.points(stores, reference, paired, asked)
    table = pd.DataFrame(overall)
    table["q"] = effects.false_discovery(table["p"].to_numpy(float))
    pictures = [part.pictures.assign(run=name) for name, own in parts.items() for part in own]
    runs = _runs(stores, reference, paired, parts)
    return Comparison(
        question, reference, stores, paired, table,
        _cells(asked, paired, question), _steps(asked, paired, reference),
        _rates(runs), _samples(asked, paired, reference), _kinds(runs),
        pd.concat(pictures, ignore_index=True), pd.DataFrame(skipped, columns=["run", "measure", "reason"]),
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
    name: str, measure_name: str, means: np.ndarray, pairing: paired_samples.Pairing, question: Question
) -> dict:
    """Return the row of a measure. Args: means: (3, pair), of the reference, the other, and their difference."""
    prompts = list(pairing.pairs["prompt_id"])
    change = xr.DataArray(means[2], dims="sample")
    row = effects.overall_effect(change, prompts, question.resamples, effects.LEVEL, question.seed)
    # over prompts, so that the difference of the two is the mean difference
    sides = [float(averaging.prompt_means(each[:, None], prompts).mean().iloc[0]) for each in means[:2]]
    told = {"run": name, "measure": measure_name, "pairs": len(prompts)}
    return {**told, "reference_mean": sides[0], "other_mean": sides[1], **row.to_dict()}


def _cells(
    asked: dict[str, Sides], pairings: dict[str, paired_samples.Pairing], question: Question
) -> pd.DataFrame:
    frames = []
    for name, (before, after, change) in asked.items():
        prompts = list(pairings[name].pairs["prompt_id"])
        table = cells_of(change.cells, before.cells, after.cells, prompts, question.resamples, question.seed)
        table.insert(0, "run", name)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def _steps(
    asked: dict[str, Sides], pairings: dict[str, paired_samples.Pairing], reference: str
) -> pd.DataFrame:
    frames = []
    for name, (before, after, _) in asked.items():
        prompts = list(pairings[name].pairs["prompt_id"])
        if not frames:
            frames.append(averaging.over_steps(before.steps, prompts).assign(series=reference))
        frames.append(averaging.over_steps(after.steps, prompts).assign(series=name))
    return pd.concat(frames, ignore_index=True)


def _samples(
    asked: dict[str, Sides], pairings: dict[str, paired_samples.Pairing], reference: str
) -> pd.DataFrame:
    rows = []
    for name, sides in asked.items():
        pairs = pairings[name].pairs
        for run, side in zip((reference, name), sides[:2], strict=True):
            rows.append(
                pairs[["reference_sample", "other_sample", "prompt_id", "prompt", "seed"]].assign(
                    compared=name, run=run, sample=pairs["reference_sample"], value=side.whole.values
                )
            )
    return pd.concat(rows, ignore_index=True)


@dataclass(frozen=True)
class _Run:
    """What a run's paired samples give by themselves; the reference's are those of every pairing, each once."""

    name: str
    prompts: list[str]
    rates: np.ndarray
    uniform: np.ndarray
    kinds: xr.Dataset | None


def _runs(
    stores: dict[str, Store],
    reference: str,
    pairings: dict[str, paired_samples.Pairing],
    parts: dict[str, list[Part]],
) -> list[_Run]:
    first = [part for own in parts.values() for part in own]
    samples = np.concatenate([pairing.pairs["reference_sample"] for pairing in pairings.values()])
    found = [_run(stores, reference, samples, first, 0)]
    return found + [
        _run(stores, name, pairing.pairs["other_sample"].to_numpy(), parts[name], 1)
        for name, pairing in pairings.items()
    ]


def _run(stores: dict[str, Store], name: str, samples: np.ndarray, parts: list[Part], side: int) -> _Run:
    """Join what the parts tell of one side. Args: samples: those of the parts, one after the other."""
    places = np.unique(samples, return_index=True)[1]
    prompts = stores[name].samples["prompt_id"].iloc[samples[places]].tolist()
    rates, uniform = (np.concatenate([one[side] for one in each])[places] for each in (
        [part.rates for part in parts], [part.uniform for part in parts],
    ))  # fmt: skip
    kinds = [part.kinds[side] for part in parts if part.kinds[side] is not None]
    together = xr.concat(kinds, "sample").drop_duplicates("sample") if kinds else None
    return _Run(name, prompts, rates, uniform, together)


def _rates(runs: list[_Run]) -> pd.DataFrame:
    frames = [
        sink_rates.curve_of_rates(one.rates, one.prompts, float(one.uniform.mean())).assign(series=one.name)
        for one in runs
    ]
    return pd.concat(frames, ignore_index=True)


def _kinds(runs: list[_Run]) -> pd.DataFrame:
    """Return the kinds of the heaviest key of every run that holds top-k keys: kind, share, chance, run."""
    frames = [
        heaviest_keys.kind_shares(one.kinds).assign(run=one.name) for one in runs if one.kinds is not None
    ]
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=["kind", "share", "chance", "run"])
    )
