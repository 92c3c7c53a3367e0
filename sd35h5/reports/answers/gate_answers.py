"""How open the gates of a run are, which heads they close, and what passes them, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sd35h5.metrics import gate_statistics
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
)

MOST_NAMED = 3  # heads that are dead or open


def openness(run: str, heads: pd.DataFrame, query: str = "image") -> Sentence:
    """Say how open a run's gates are on a stream, and which head is most closed and most open.

    Args: heads: layer, head, mean, state, of `gate_statistics.gate_heads`.
    """
    there = heads.dropna(subset=["mean"])
    if there.empty:
        return sentence(
            f"In {run} no gate on {query} queries was measured in the chosen layers, heads and steps."
        )
    low, high = there.loc[there["mean"].idxmin()], there.loc[there["mean"].idxmax()]
    told = f"In {run} the mean gate on {query} queries is {number(float(there['mean'].mean()))}"
    if low["mean"] == high["mean"]:
        return sentence(f"{told}, the same in all of {counted(len(there), 'head')}.")
    return sentence(
        f"{told}; ", _cell(low), f" is the most closed, {number(low['mean'])}, and ", _cell(high),
        f" the most open, {number(high['mean'])}.",
    )  # fmt: skip


def dead_and_open(heads: pd.DataFrame, query: str = "image") -> Sentence | None:
    """Say which heads are dead and which always open. Args: heads: as in `openness`; None where none was measured."""
    there = heads.dropna(subset=["mean"])
    if there.empty:
        return None
    told: list[str | Part] = [f"Of {counted(len(there), 'head')} on {query} queries "]
    for state, name in (("dead", "dead"), ("open", "always open")):
        own = there[there["state"] == state]
        verb = "is" if len(own) == 1 else "are"
        told.append(f"{len(own) or 'none'} {verb} {name}")
        told += _named([row for _, row in own.head(MOST_NAMED).iterrows()], len(own))
        told.append(" and " if state == "dead" else "")
    limits = f"dead: {percent(gate_statistics.DEAD)} of gates below 0.1"
    return sentence(*told, f" ({limits}; open: {percent(gate_statistics.OPEN)} at most below 0.5).")


def passing(run: str, shares: pd.DataFrame) -> Sentence | None:
    """Say what the heaviest kind of key holds of the mass, and of what is added after the gate; None without any.

    Args: shares: kind, mass, added, of `gate_statistics.shares_of_sums`.
    """
    there = shares.dropna(subset=["mass", "added"]) if len(shares) else shares
    if there.empty:
        return None
    most = there.loc[there["mass"].idxmax()]
    return sentence(
        f"In {run} ", key_kind(str(most["kind"])), f" holds {percent(most['mass'])} of the heaviest keys' mass and "
        f"{percent(most['added'])} of what they add after the gate.",
    )  # fmt: skip


def _named(rows: Sequence[pd.Series], count: int) -> list[str | Part]:
    if not rows:
        return []
    more = [f"{count - len(rows)} more"] if count > len(rows) else []
    return [" (", *listed([*map(_cell, rows), *more]), ")"]


def _cell(row: pd.Series) -> Part:
    return cell(int(row["layer"]), int(row["head"]))
