"""Which heads are sinks of what, what kind of key is the heaviest, and where the mass goes, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sd35h5.metrics.catalogue import MEASURES, TIMES
from sd35h5.metrics.standing_out import leading
from sd35h5.metrics.targets import FIRST_TOKEN, Target
from sd35h5.reports.answers.sentence import (
    Part,
    Sentence,
    cell,
    counted,
    key_kind,
    listed,
    number,
    percent,
    sentence,
    times,
    told_target,
)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """The interval of a head's mean over so many prompts."""

    low: float
    high: float
    prompts: int


def heads(
    table: pd.DataFrame,
    metric: str,
    target: Target = FIRST_TOKEN,
    uniform: float | None = None,
    spreads: Mapping[tuple[int, int], Spread] | None = None,
) -> Sentence:
    """Say which heads have most of a metric.

    Args: table: layer, head, value, of `metrics.by_layer_head`; uniform: the metric under uniform attention; spreads:
        the interval over prompts of the heads of `leading_cells`.
    """
    found = leading(table["value"])
    if found is None:
        return sentence("Nothing of this was measured in the chosen layers, heads and steps.")
    if metric != "first_token_mean":
        return _largest_and_smallest(table, metric, target)
    of = told_target(target)
    if found.values[0] <= 0:
        return sentence(f"No head sends anything to {of}.")
    cells = _cells(table, found.places)
    spread = (spreads or {}).get(cells[0])
    if found.stands_out or math.isnan(found.rest):
        return _apart(cells, found.values, found.rest, of, uniform, spread)
    most = f"{percent(found.values[0])} of an image query's attention{_over(found.values[0], uniform)}"
    over = int((table["value"] > TIMES * uniform).sum()) if uniform else 0
    interval = f" ({_interval(spread)})" if spread else ""
    if over:
        sends = "sends" if over == 1 else "send"
        told = f"{over:,} of {counted(found.count, 'head')} {sends} {of} more than {TIMES} × uniform; none stands out: "
        return sentence(f"{told}the most is ", most, interval, ", from ", cell(*cells[0]), ".")
    told = f"No head stands out as a sink: the most that one sends to {of} is "
    return sentence(told, most, interval, ", from ", cell(*cells[0]), ".")


def leading_cells(table: pd.DataFrame) -> list[tuple[int, int]]:
    """Return the heads that `heads` names with a number. Args: table: layer, head, value."""
    found = leading(table["value"])
    return [] if found is None else _cells(table, found.places)


def kinds(shares: pd.DataFrame, where: str = "") -> Sentence | None:
    """Say which kind of key is the heaviest most often, beside chance; None where none was captured.

    Args: shares: kind, share, chance, of `metrics.kind_shares` with one key; where: a head, "" for all chosen.
    """
    there = shares[shares["share"] > 0].sort_values("share", ascending=False, kind="stable")
    there = there.assign(over=there["share"] / there["chance"])
    if there.empty:
        return None
    at = f"At {where}, the" if where else "The"
    most = there.iloc[0]
    parts: list[str | Part] = [f"{at} heaviest key is most often ", key_kind(most["kind"])]
    parts.append(
        f", in {percent(most['share'])} of {'steps and samples' if where else 'heads, steps and samples'}"
    )
    parts.append(f" ({percent(most['chance'])} by chance)")
    if most["share"] <= most["chance"]:
        parts.append(", which is not more than chance gives")
    if len(there) > 1:
        second = there.iloc[1:].loc[there["over"].iloc[1:].idxmax()]
        then = "; most above chance is " if second["over"] > most["over"] else "; then "
        parts += [
            then,
            key_kind(second["kind"]),
            f", {percent(second['share'])} ({percent(second['chance'])})",
        ]
    return sentence(*parts, ".")


def groups(masses: Mapping[str, float], where: str = "") -> Sentence | None:
    """Say where the mass goes: to the image, and to which group of the text most; None where nothing was measured.

    Args: masses: group -> its part of an image query's attention, 0..1.
    """
    known = {name: mass for name, mass in masses.items() if math.isfinite(mass)}
    text = {name: mass for name, mass in known.items() if name != "image"}
    if not text:
        return None
    at = f"At {where}, " if where else ""
    heaviest = max(text, key=lambda name: text[name])
    most = [f"most of it, {percent(text[heaviest])}, to ", key_kind(heaviest), "."]
    if "image" not in known:
        return sentence(
            f"{at}{percent(sum(text.values()))} of an image query's attention goes to text, ", *most
        )
    image = Part("the image", key_kind("image").selects)
    told = [f"{at}{percent(known['image'])} of an image query's attention stays on ", image]
    return sentence(*told, f" and {percent(sum(text.values()))} goes to text, ", *most)


def _apart(
    cells: Sequence[tuple[int, int]],
    values: Sequence[float],
    rest: float,
    of: str,
    uniform: float | None,
    spread: Spread | None,
) -> Sentence:
    """Say which heads stand out of all others, and how far the others come."""
    named = listed([cell(*one, begins=place == 0) for place, one in enumerate(cells)])
    shares = "".join(map(str, listed([percent(value) for value in values])))
    interval = f" ({_interval(spread)})" if spread and len(cells) == 1 else ""
    sends = "sends" if len(cells) == 1 else "send"
    told = f" {sends} {shares}{interval} of an image query's attention to {of}"
    over = "".join(map(str, listed([_multiple(value, uniform) for value in values]))) if uniform else ""
    over = f", {over} uniform" if over else ""
    others = "" if math.isnan(rest) else f"; no other head exceeds {percent(rest, up=True)}"
    return sentence(*named, f"{told}{over}{others}.")


def _largest_and_smallest(table: pd.DataFrame, metric: str, target: Target) -> Sentence:
    """Say where a metric that is no mass is largest and smallest, and its mean."""
    one, there = MEASURES[metric], table.dropna(subset=["value"])
    of = f" of {told_target(target)}" if one.of_target else ""
    largest, smallest = there.loc[there["value"].idxmax()], there.loc[there["value"].idxmin()]
    title = f"The {one.title}{of}"
    if largest["value"] == smallest["value"]:
        return sentence(f"{title} is {number(largest['value'])} in all of {counted(len(there), 'head')}.")
    ends = [
        [cell(int(row["layer"]), int(row["head"])), f", {number(row['value'])}"]
        for row in (largest, smallest)
    ]
    mean = float(np.mean(there["value"]))
    told = f"; the mean of {counted(len(there), 'head')} is {number(mean)} ({one.unit})."
    return sentence(f"{title} is largest in ", *ends[0], ", and smallest in ", *ends[1], told)


def _cells(table: pd.DataFrame, places: Sequence[int]) -> list[tuple[int, int]]:
    rows = table.iloc[list(places)]
    return [(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)]


def _over(value: float, uniform: float | None) -> str:
    return f", {_multiple(value, uniform)} uniform" if uniform else ""


def _multiple(value: float, uniform: float) -> str:
    return times(value / uniform)


def _interval(spread: Spread) -> str:
    low, high = percent(spread.low, digits=3).removesuffix(" %"), percent(spread.high, digits=3)
    return f"95 % interval {low} to {high}, {counted(spread.prompts, 'prompt')}"
