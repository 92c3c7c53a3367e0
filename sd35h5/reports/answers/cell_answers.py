"""What one cell gives to a token: how much, at which step, and how it stands among the others, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from sd35h5.metrics.targets import Target
from sd35h5.reports import view_address
from sd35h5.reports.answers.sentence import (
    Part,
    Sentence,
    cell,
    counted,
    number,
    percent,
    sentence,
    times,
    told_target,
)


def mass(
    here: tuple[int, int], steps: Mapping[int, float], target: Target, uniform: float | None
) -> Sentence | None:
    """Say how much of an image query's attention a cell gives a target, and at which step most and least.

    Args: steps: step -> mass, 0..1. Returns: None where none was measured.
    """
    known = {step: value for step, value in steps.items() if math.isfinite(value)}
    if not known:
        return None
    mean = sum(known.values()) / len(known)
    over = f", {times(mean / uniform)} uniform" if uniform else ""
    told = f" gives {told_target(target)} {percent(mean)} of an image query's attention{over}"
    if len(known) == 1:
        return sentence(cell(*here, begins=True), f"{told}, at step {next(iter(known))}.")
    most, least = max(known, key=lambda step: known[step]), min(known, key=lambda step: known[step])
    return sentence(
        cell(*here, begins=True), f"{told}, mean of {len(known)} steps: most at ", _step(most),
        f", {percent(known[most])}, least at ", _step(least), f", {percent(known[least])}.",
    )  # fmt: skip


def value(here: tuple[int, int], steps: Mapping[int, float], title: str, unit: str) -> Sentence | None:
    """Say a metric that is no mass of a cell, as `mass` does."""
    known = {step: each for step, each in steps.items() if math.isfinite(each)}
    if not known:
        return None
    most, least = max(known, key=lambda step: known[step]), min(known, key=lambda step: known[step])
    return sentence(
        f"The {title} of ", cell(*here), f" is {number(sum(known.values()) / len(known))} ({unit}), largest at ",
        _step(most), f", {number(known[most])}, smallest at ", _step(least), f", {number(known[least])}.",
    )  # fmt: skip


def rank(here: tuple[int, int], table: pd.DataFrame) -> Sentence | None:
    """Say how a cell stands among the others. Args: table: layer, head, value; None where it was not measured."""
    there = table.dropna(subset=["value"])
    own = there[(there["layer"] == here[0]) & (there["head"] == here[1])]["value"]
    if own.empty or len(there) < 2:
        return None
    above = there[there["value"] > own.iloc[0]]
    count = counted(len(there), "head")
    if above.empty:
        return sentence(f"No other of {count} has more in this sample.")
    top = above.loc[above["value"].idxmax()]
    has = "has" if len(above) == 1 else "have"
    return sentence(
        f"{len(above):,} of {count} {has} more in this sample, ",
        cell(int(top["layer"]), int(top["head"])),
        " most.",
    )


def _step(step: int) -> Part:
    return Part(f"step {step}", {view_address.AT: str(step)})
