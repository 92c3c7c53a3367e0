"""Joined scores in a comparison: how they changed from run to run, and how they go with the asked metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.comparing import effects, paired_samples
from sd35h5.comparing.pair_parts import Sides
from sd35h5.metrics import per_sample

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

COLUMNS = [
    "run", "score", "samples", "prompts", "pearson", "spearman",
    "pairs", "reference_mean", "other_mean", "mean_difference", "effect", "low", "high", "p",
]  # fmt: skip
POINTS = ["run", "score", *per_sample.FACTS, "x", "y"]


def points(
    stores: Mapping[str, Store],
    reference: str,
    pairings: Mapping[str, paired_samples.Pairing],
    asked: Mapping[str, Sides],
) -> pd.DataFrame:
    """Return a row a (run, score, paired sample): columns POINTS, x the asked metric, y the score."""
    parts = []
    for name, sides in asked.items():
        runs = ((reference, "reference_sample"), (name, "other_sample"))
        for (run, column), values in zip(runs, sides[:2], strict=True):
            samples = pairings[name].pairs[column].to_numpy()
            x = values.whole.values
            for score in (one for one in stores[run].variables if one.startswith(per_sample.SCORES)):
                y = per_sample.sample_values(stores[run], score, samples=samples)
                table = per_sample.points(stores[run].samples, samples, x, y)
                parts.append(table.assign(run=run, score=score.removeprefix(per_sample.SCORES)))
    if not parts:
        return pd.DataFrame(columns=POINTS)
    found = pd.concat(parts, ignore_index=True)[POINTS]
    return found.drop_duplicates(["run", "score", "sample"], ignore_index=True)


def summary(
    table: pd.DataFrame,
    reference: str,
    pairings: Mapping[str, paired_samples.Pairing],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Return a row a (run, score): its correlation with the asked metric, and its change from the reference.

    Args: table: of `points`.
    Returns: columns COLUMNS; the change is that of the pairs in which both have the score, NaN without any.
    """
    rows = []
    for score, part in table.groupby("score", sort=False):
        for told in per_sample.correlations(part).to_dict("records"):
            row = {"score": score, **told}
            if told["run"] in pairings:
                row |= _change(part, reference, told["run"], pairings[told["run"]], resamples, seed)
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _change(
    part: pd.DataFrame, reference: str, run: str, pairing: paired_samples.Pairing, resamples: int, seed: int
) -> dict[str, float]:
    """Return the paired change of one score, over the pairs in which both runs have it."""
    sides = []
    for name, column in ((reference, "reference_sample"), (run, "other_sample")):
        own = part[part["run"] == name].set_index("sample")["y"]
        sides.append(own.reindex(pairing.pairs[column]).to_numpy(float))
    both = np.isfinite(sides[0]) & np.isfinite(sides[1])
    if not both.any():
        return {"pairs": 0}
    prompts = pairing.pairs["prompt_id"][both]
    change = xr.DataArray((sides[1] - sides[0])[both][:, None], dims=("sample", "step"))
    found = effects.overall_effect(change, list(prompts), resamples, seed=seed)
    means = [pd.Series(side[both]).groupby(prompts.to_numpy()).mean().mean() for side in sides]
    kept = {name: found[name] for name in ("mean_difference", "effect", "low", "high", "p")}
    return {"pairs": int(both.sum()), "reference_mean": means[0], "other_mean": means[1], **kept}
