"""A prompt as its real tokens, for a chart: padding folded, what truncation cut off, a token across prompts."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr

from sd35h5.metrics.averaging import finite_mean
from sd35h5.metrics.targets import PADS, shown_text
from sd35h5.store.schema import ENCODERS

if TYPE_CHECKING:
    from sd35h5.store.reader import Store


def token_chips(table: pd.DataFrame) -> pd.DataFrame:
    """Return the tokens in their order, each run of padding folded into one row.

    Args: table: of `metrics.token_mass`.
    Returns: token (the run's first position), last, count, encoder, group, text (as shown), mass (mean of the run's
        tokens), total (their sum); masses are shares of an image query's attention, 0..1.
    """
    rows = []
    places = zip(table["encoder"], table["group"], table["token"], strict=True)
    runs = groupby(places, key=lambda place: (place[0], place[1], None if place[1] in PADS else place[2]))
    start = 0
    for (encoder, group, _), run in runs:
        part = table.iloc[start : start + sum(1 for _ in run)]
        start += len(part)
        first, mass = part.iloc[0], part["mass"]
        total = float(mass.sum(min_count=1))
        text = shown_text(str(first["text"]), group)
        text = f"{len(part)} × <pad>" if group in PADS and len(part) > 1 else text
        rows.append(
            [
                int(first["token"]),
                int(part["token"].iloc[-1]),
                len(part),
                encoder,
                group,
                text,
                mass.mean(),
                total,
            ]
        )
    return pd.DataFrame(rows, columns=["token", "last", "count", "encoder", "group", "text", "mass", "total"])


def word_chips(table: pd.DataFrame) -> pd.DataFrame:
    """Return the prompt's words, each once an encoder, at the place where it is first, with all its tokens.

    What is no word stays as `token_chips` gives it.

    Args: table: of `metrics.token_mass`, with the words of `targets.with_words`.
    Returns: as `token_chips`; count is the tokens of all places of the word.
    """
    is_word = table["word_text"] != ""
    rest = token_chips(table[~is_word])
    words = (
        table[is_word]
        .groupby(["encoder", "word_text"], sort=False)
        .agg(
            token=("token", "first"), last=("token", "last"), count=("token", "size"), group=("group", "first"),
            mass=("mass", "mean"), total=("mass", lambda mass: mass.sum(min_count=1)),
        )
        .reset_index()
        .rename(columns={"word_text": "text"})
    )  # fmt: skip
    return pd.concat([rest, words[rest.columns]]).sort_values("token", ignore_index=True)


def group_totals(table: pd.DataFrame) -> pd.DataFrame:
    """Return the tokens' groups, heaviest first: group, tokens, mass (sum over its tokens), each (mean a token).

    Args: table: of `metrics.token_mass`.
    """
    totals = table.groupby("group", sort=False)["mass"].agg(
        tokens="size", mass=lambda mass: mass.sum(min_count=1), each="mean"
    )
    return totals.reset_index().sort_values("mass", ascending=False, ignore_index=True)


def truncation(store: Store, sample: int, branch: str = "cond") -> dict[str, str]:
    """Return what encoders did not see of the text: encoder -> the end that was cut off, where one was."""
    row = store.samples.iloc[sample]
    text = str(row["negative_prompt"] if branch == "uncond" else row["prompt"]).rstrip()
    kept = store.read("samples/kept_chars", sample=sample, branch=branch).values
    return {
        name: text[count:].strip()
        for name, count in zip(ENCODERS, kept.tolist(), strict=True)
        if 0 <= count < len(text) and text[count:].strip()
    }


def sample_means(values: xr.DataArray, samples: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over steps, layers and heads of each sample: sample, prompt, value, heaviest first.

    Args: values: of a metric (sample, step, layer, head); samples: `Store.samples` of the same samples, in order.
    """
    means = finite_mean(values, [dim for dim in values.dims if dim != "sample"]).values
    table = pd.DataFrame(
        {"sample": samples["sample"].to_numpy(), "prompt": samples["prompt"].to_numpy(), "value": means}
    )
    return table.sort_values("value", ascending=False, ignore_index=True)
