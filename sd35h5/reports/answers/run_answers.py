"""Which runs are there and what can be compared, and what a file holds, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from sd35h5.reports import view_address
from sd35h5.reports.answers.sentence import Part, Sentence, counted, listed, percent, sentence
from sd35h5.reports.info import nbytes

MOST_NAMED = 4  # runs


@dataclass(frozen=True)
class Counts:
    """What a run has: samples that are there and that are planned, prompts, gates as its file tells them."""

    name: str
    samples: int
    planned: int
    prompts: int
    gates: str


@dataclass(frozen=True)
class Beside:
    """A run beside the shown one: in what they differ, and how many of its samples pair."""

    name: str
    differs: tuple[str, ...]
    pairs: int


def runs(counts: Sequence[Counts]) -> Sentence:
    """Say how many runs, samples and prompts there are, and how far those are that are not complete."""
    named = [Part(f"{one.name}", {view_address.RUN: one.name}) for one in counts[:MOST_NAMED]]
    told = [
        [part, f" (gates: {one.gates}; {counted(one.samples, 'sample')} of {counted(one.prompts, 'prompt')})"]
        for part, one in zip(named, counts, strict=False)
    ]
    more = f" and {len(counts) - len(named)} more" if len(counts) > len(named) else ""
    parts = [each for place, one in enumerate(told) for each in ([", "] if place else []) + one]
    return sentence(f"{counted(len(counts), 'run')}: ", *parts, f"{more}.")


def beside(reference: str, others: Sequence[Beside]) -> Sentence | None:
    """Say in what the runs that are shown beside the reference differ from it; None without any."""
    if not others:
        return None
    told = []
    for one in others[:MOST_NAMED]:
        what = (
            " and ".join(one.differs)
            if one.differs
            else "nothing that is known of weights, gates or interventions"
        )
        chosen = {view_address.RUN: reference, view_address.WITH: [one.name]}
        pairs = counted(one.pairs, "sample") if one.pairs else "no sample"
        differs = f" differs from {reference} in {what} and pairs in {pairs}"
        told.append([Part(one.name, chosen, page="compare"), differs])
    return sentence(
        *(each for place, one in enumerate(told) for each in (["; "] if place else []) + one), "."
    )


def unfinished(counts: Sequence[Counts]) -> Sentence | None:
    """Say which runs are not complete; None where all are."""
    short = [one for one in counts if one.samples < one.planned]
    if not short:
        return None
    named = listed([f"{one.name} ({one.samples} of {one.planned} samples)" for one in short[:MOST_NAMED]])
    more = f" and {len(short) - MOST_NAMED} more" if len(short) > MOST_NAMED else ""
    return sentence("Not complete: ", *named, f"{more}.")


def contents(run: str, on_disk: int, variables: pd.DataFrame, samples: int) -> Sentence:
    """Say how large a file is and what takes most of it. Args: variables: of `file_tables.variables`."""
    stored = int(variables["stored"].sum())
    told = f"{run} holds {counted(samples, 'sample')} in {nbytes(on_disk)}"
    if not stored:
        return sentence(f"{told}.")
    largest = variables.loc[variables["stored"].idxmax()]
    share = percent(float(largest["stored"]) / stored)
    return sentence(
        f"{told}; of {counted(len(variables), 'variable')} {largest['variable']} takes most, {share}."
    )


def tiers(table: pd.DataFrame) -> Sentence:
    """Say which tiers a file holds and lacks. Args: table: tier, held, of `missing_tiers.tiers`."""
    held, absent = (table.loc[table["held"] == is_held, "tier"].tolist() for is_held in (True, False))
    tiers = counted(len(table), "tier")
    if not absent:
        return sentence(f"All of {tiers} are in it.")
    lacking = ", ".join(f"“{name}”" for name in absent)
    return sentence(f"{len(held)} of {tiers} are in it; it lacks {lacking}.")
