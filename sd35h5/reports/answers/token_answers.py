"""Which token, group and word of a prompt gets most of the attention, in sentences."""

from __future__ import annotations

import math

import pandas as pd

from sd35h5.figures.prompt_names import folded
from sd35h5.metrics.prompt_chips import group_totals
from sd35h5.metrics.standing_out import leading
from sd35h5.metrics.targets import FIRST_TOKEN, PADS, Target, shown_text
from sd35h5.reports import view_address
from sd35h5.reports.answers.sentence import (
    KINDS,
    Part,
    Sentence,
    capital,
    counted,
    key_kind,
    listed,
    percent,
    sentence,
    times,
)
from sd35h5.store.showable import showable

ROOM = 30  # letters of a word


def heaviest_tokens(masses: pd.DataFrame, uniform: float | None, by_word: bool, where: str = "") -> Sentence:
    """Say which text token stands out.

    Args: masses: of `metrics.token_mass` with `word_text`; uniform: a key's mass under uniform attention; by_word:
        words are chosen in place of single tokens, as where several samples are; where: of which the masses are.
    """
    found = leading(masses["mass"])
    if found is None:
        return sentence("Nothing was measured of these tokens in the chosen layers, heads and steps.")
    if found.values[0] <= 0:
        return sentence("No text token gets any attention here.")
    named = listed([_token(masses.iloc[place].to_dict(), by_word) for place in found.places])
    at = f"At {where}, " if where else ""
    told = [at, *named] if where else [_begin(named[0]), *named[1:]]
    shares = "".join(map(str, listed([percent(value) for value in found.values])))
    if len(found.places) == 1:
        over = f", {times(found.values[0] / uniform)} uniform" if uniform else ""
        told.append(f" gets {shares} of an image query's attention{over}")
    else:
        told.append(f" get {shares} of an image query's attention")
    if math.isnan(found.rest):
        return sentence(*told, ".")
    count = counted(found.count, "text token")
    if not found.stands_out:
        return sentence(
            *told, f", the most of {count}; none stands out, the next gets {percent(found.rest)}."
        )
    return sentence(*told, f"; no other of {count} exceeds {percent(found.rest, up=True)}.")


def heaviest_group(masses: pd.DataFrame) -> Sentence | None:
    """Say how much all text gets, and which group most; None where nothing was measured."""
    totals = group_totals(masses).dropna(subset=["mass"])
    if totals.empty or totals["mass"].sum() <= 0:
        return None
    most = totals.iloc[0]
    each = f", {percent(most['each'])} each over {most['tokens']} tokens" if most["tokens"] > 1 else ""
    return sentence(
        f"All text together gets {percent(float(totals['mass'].sum()))}, most of it ",
        key_kind(most["group"]), f" with {percent(most['mass'])}{each}.",
    )  # fmt: skip


def heaviest_word(masses: pd.DataFrame) -> Sentence | None:
    """Say which of the prompt's words gets most and least, all its tokens together; None for fewer than two."""
    words = (
        masses[masses["word_text"] != ""].groupby("word_text", sort=False)["mass"].sum(min_count=1).dropna()
    )
    if len(words) < 2:
        return None
    most, least = words.idxmax(), words.idxmin()
    return sentence(
        f"Of {len(words)} words ", word(str(most)), f" gets most, {percent(words[most])} with all its tokens, and ",
        word(str(least)), f" least, {percent(words[least])}.",
    )  # fmt: skip


def word(text: str) -> Part:
    """Name a word, and select it."""
    return Part(f"“{folded(showable(text), ROOM)}”", {view_address.TARGET: f"word:{text}"})


def _token(row: dict, by_word: bool) -> Part:
    """Name a token, and select what a click on its chip does."""
    group, position = row["group"], int(row["token"])
    if group == "clip_bos":
        target, text = FIRST_TOKEN, KINDS["clip_bos"]
    elif group in PADS or (by_word and not row["word_text"]):
        target, text = Target("group", group), f"a position of {KINDS[group]} (token {position})"
    else:
        target = Target("word", row["word_text"]) if by_word else Target("token", position)
        shown = folded(showable(shown_text(str(row["text"]), group)), ROOM)
        text = f"“{shown}” ({row['encoder'].upper()} token {position})"
    return Part(text, {view_address.TARGET: f"{target.kind}:{target.value}"})


def _begin(part: str | Part) -> str | Part:
    return Part(capital(part.text), part.selects) if isinstance(part, Part) else capital(part)
