"""What differs between paired runs, with intervals, in sentences: how much, in which heads, which key is heaviest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from sd35h5.comparing import effects
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.metrics.targets import FIRST_TOKEN, Target
from sd35h5.reports import view_address
from sd35h5.reports.answers.sentence import (
    Part,
    Sentence,
    capital,
    cell,
    counted,
    key_kind,
    number,
    percent,
    sentence,
    told_target,
)


@dataclass(frozen=True)
class Change:
    """A metric of paired samples in two runs: both means, and the difference over prompts as `effects` tells it."""

    reference: str
    other: str
    metric: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    prompts: int
    pairs: int
    target: Target = FIRST_TOKEN
    where: str = ""

    @property
    def back(self) -> Change:
        """The same change, seen from the other run."""
        return replace(
            self, reference=self.other, other=self.reference, before=self.after, after=self.before,
            difference=-self.difference, low=-self.high, high=-self.low,
        )  # fmt: skip


def change(one: Change) -> Sentence:
    """Say how much changed, and whether these prompts show a difference at all."""
    measure = MEASURES[one.metric]
    of = f" of {told_target(one.target)}" if measure.of_target else ""
    at = f"At {one.where}, the" if one.where else "The"
    other = Part(one.other, {view_address.RUN: one.reference, view_address.WITH: [one.other]})
    change = (
        f" ({(one.after - one.before) / one.before * 100:+.0f} %)".replace("-", "−") if one.before else ""
    )
    told = [
        f"{at} {measure.title}{of} is {number(one.before)} in {one.reference} and {number(one.after)} in ",
        other,
    ]
    count = f"{counted(one.prompts, 'prompt')}, {counted(one.pairs, 'pair')}"
    if math.isnan(one.low):
        few = f"with fewer than {effects.MIN_PROMPTS} prompts no interval and no p-value can be given"
        return sentence(*told, f"{change}, {count}; {few}.")
    interval = f"95 % interval {number(one.low)} to {number(one.high)}"
    verdict = f", no difference that these prompts show: mean difference {number(one.difference)}, {interval} covers 0"
    if one.low > 0 or one.high < 0:
        kind = "rise" if one.low > 0 else "fall"
        verdict = (
            f", a {kind} that holds across prompts: mean difference {number(one.difference)}, {interval}"
        )
    return sentence(*told, f"{change}{verdict}, p = {number(one.p)}, {count}.")


def changed_heads(cells: pd.DataFrame, other: str = "") -> Sentence:
    """Say how many heads changed, and where most.

    Args: cells: layer, head, mean_difference, reference_mean, other_mean, q; other: the run, where there are several.
    """
    ranked, of = cells.dropna(subset=["mean_difference"]), f" of {other}" if other else ""
    if ranked.empty:
        return sentence(f"No head{of} was measured in both runs.")
    sure = cells[cells["q"] <= effects.SIGNIFICANT]
    largest = ranked.loc[ranked["mean_difference"].abs().idxmax()]
    if not largest["mean_difference"]:
        return sentence(f"None of {counted(len(ranked), 'head')}{of} differs at all.")
    where = [
        "the largest change is in ",
        cell(int(largest["layer"]), int(largest["head"])),
        f", from {number(largest['reference_mean'])} to {number(largest['other_mean'])}.",
    ]
    count = counted(len(cells), "head")
    if cells["q"].isna().all():
        return sentence(f"Of {count}{of}, ", *where)
    if sure.empty:
        return sentence(f"No single one of {count}{of} survives correction for that many tests; ", *where)
    down, up = int((sure["mean_difference"] < 0).sum()), int((sure["mean_difference"] > 0).sum())
    told = f"{_verb(down, 'fall')} and {_verb(up, 'rise')} after correction for that many tests "
    return sentence(f"Of {count}{of}, {told}(q ≤ {effects.SIGNIFICANT}); ", *where)


def heaviest_kinds(shares: tuple[pd.Series, pd.Series], names: tuple[str, str]) -> Sentence:
    """Say which kind of key is the heaviest in both runs. Args: shares: kind -> share of heads, of each run."""
    first, second = shares
    also = "also " if first.idxmax() == second.idxmax() else ""
    bos = [part.get("clip_bos", 0.0) for part in shares]
    return sentence(
        "The heaviest key is most often ", key_kind(str(first.idxmax())), f", {percent(first.max())} of heads, in ",
        f"{names[0]}, and {also}", key_kind(str(second.idxmax())), f", {percent(second.max())}, in {names[1]}; ",
        f"the CLIP start token is it in {percent(bos[0])} and {percent(bos[1])}.",
    )  # fmt: skip


def above_uniform(rates: tuple[float, float], names: tuple[str, str], target: Target) -> Sentence:
    """Say in how many heads the target exceeds ten times uniform attention. Args: rates: of each run."""
    return sentence(
        f"{capital(told_target(target))} exceeds ten times uniform attention in {percent(rates[0])} of heads in "
        f"{names[0]} and in {percent(rates[1])} in {names[1]}."
    )


def _verb(count: int, verb: str) -> str:
    return f"{count:,} {verb}{'s' if count == 1 else ''}"
