"""What a page shows of single samples: their tokens with their mass, their pictures and the maps of words."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from sd35h5 import metrics
from sd35h5.errors import NothingMeasuredError, StoreError
from sd35h5.figures.overlays import Image
from sd35h5.metrics import attention_maps, prompt_chips, targets
from sd35h5.metrics.sample_tokens import token_means, token_sums
from sd35h5.reports.publishing import arrow_files
from sd35h5.reports.publishing.pieces import Piece
from sd35h5.reports.publishing.published_runs import PublishedRun, names_of
from sd35h5.store.showable import showable

PICTURE, THUMB = 768, 240  # pixels of the longer side
LOSSLESS = 320  # pixels up to which a picture is kept as it is
QUALITY = 86  # of WebP


def sample_pieces(run: PublishedRun) -> Iterator[Piece]:
    """Yield the table of samples and everything of each of them."""
    yield Piece(f"{run.key}/samples.arrow", "index", partial(_table, run))
    yield Piece(f"{run.key}/prompts.arrow", "index", partial(_prompts, run))
    sums = _last_one(partial(_sums, run))
    for sample in range(len(run.store)):
        for branch in run.store.labels("branch"):
            stem = f"{run.key}/tokens/{branch}/{sample:06d}"
            yield Piece(f"{stem}.arrow", "tokens", partial(_tokens, run, sums, sample, branch), sample)
            for part in ("heads", "steps"):
                make = partial(_token_part, sums, sample, branch, part)
                yield Piece(f"{stem}.{part}.arrow", "cells", make, sample)
        if "images/image" in run.store:
            for folder, longest in (("thumbs", THUMB), ("pictures", PICTURE)):
                name = f"{run.key}/{folder}/{sample:06d}.webp"
                yield Piece(name, "pictures", partial(_picture, run, sample, longest), sample)
        yield from _map_pieces(run, sample)


# ---- tables ------------------------------------------------------------------------------------------------


def _table(run: PublishedRun) -> bytes:
    table = run.store.samples
    kept = table[["sample", "sample_id", "prompt_id", "seed", "tags"]].assign(name=names_of(run.store))
    return arrow_files.table(kept.astype({"sample": "int32"}))


def _prompts(run: PublishedRun) -> bytes:
    return arrow_files.table(run.store.samples[["prompt", "negative_prompt"]])


# ---- tokens ------------------------------------------------------------------------------------------------


def _last_one(function):
    """Keep the last answer of a function: what is asked for one sample is asked in a row."""
    kept: dict[tuple, object] = {}

    def ask(*args):
        if args not in kept:
            kept.clear()
            kept[args] = function(*args)
        return kept[args]

    return ask


def _sums(run: PublishedRun, sample: int, branch: str) -> tuple[np.ndarray, ...] | None:
    """Return the sums of masses and how many there are over steps, (layer, head, token), and the means of each step,
    (step, token); None where nothing was measured of single tokens."""
    if "sinks/mass_image" not in run.store:
        return None
    total, count, steps = np.zeros(()), np.zeros((), np.int64), []
    for step in range(run.store.sizes["step"]):
        sums, counts = token_sums(run.store, sample, branch, [step])
        total, count = total + sums, count + counts
        measured = counts.sum((0, 1))
        steps.append(sums.sum((0, 1)) / np.where(measured > 0, measured, np.nan))
    return (total, count, np.stack(steps)) if count.any() else None


def _tokens(run: PublishedRun, sums, sample: int, branch: str) -> bytes:
    """The tokens with their words and their mean mass over all steps, layers and heads, NaN where none was measured."""
    text = targets.branch_texts(run.store, branch, [sample])[0]
    table = targets.with_words(run.store.tokens(sample, branch), text)
    found = sums(sample, branch)
    table = table.assign(mass=np.nan) if found is None else token_means(table, branch, *found[:2])
    shown = [targets.shown_text(*row) for row in zip(table["text"], table["group"], strict=True)]
    kept = pd.DataFrame({
        "token": table["token"].astype("int32"), "encoder": table["encoder"], "group": table["group"],
        "text": shown, "word": table["word_text"], "mass": table["mass"].astype("float32"),
    })  # fmt: skip
    return arrow_files.table(kept, unseen=prompt_chips.truncation(run.store, sample, branch))


def _token_part(sums, sample: int, branch: str, part: str) -> bytes | None:
    found = sums(sample, branch)
    if found is None:
        return None
    total, count, steps = found
    if part == "steps":
        return arrow_files.numbers(steps, exact=False)
    return arrow_files.numbers(total / np.where(count > 0, count, np.nan), exact=False)


# ---- pictures and maps -------------------------------------------------------------------------------------


def _picture(run: PublishedRun, sample: int, longest: int) -> bytes | None:
    pixels = run.store.image(sample)
    if pixels is None:
        return None
    picture = Image.fromarray(pixels)
    if max(picture.size) > longest:
        height, width = attention_maps.fit(pixels.shape[:2], longest)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", lossless=max(pixels.shape[:2]) <= LOSSLESS, quality=QUALITY)
    return out.getvalue()


def _map_pieces(run: PublishedRun, sample: int) -> Iterator[Piece]:
    for branch in run.store.labels("branch"):
        choices = map_choices(run, sample, branch)
        if choices is None:
            continue
        stem = f"{run.key}/maps/{branch}/{sample:06d}"
        yield Piece(f"{stem}.arrow", "maps", partial(_maps, run, sample, branch), sample)
        for place, row in enumerate(choices.itertuples()):
            make = partial(_layers, run, sample, branch, row.map_tokens)
            yield Piece(f"{stem}.w{place}.arrow", "layers", make, sample)


def map_choices(run: PublishedRun, sample: int, branch: str) -> pd.DataFrame | None:
    """Return the words and tokens whose maps are shown, rows of `attention_maps.map_choices`; None without any."""
    if attention_maps.MAPS not in run.store:
        return None
    try:
        choices = attention_maps.map_choices(run.store, sample, branch)
    except StoreError:  # maps are of the cond branch
        return None
    choices = choices[choices["kind"] != "piece"]
    if run.words:
        choices = choices[choices["word_text"].isin(run.words)]
    return choices.reset_index(drop=True) if len(choices) else None


def _maps(run: PublishedRun, sample: int, branch: str) -> bytes:
    """The maps of all words: (word, map_step, y, x), mean over layers."""
    choices, made = map_choices(run, sample, branch), []
    for row in choices.itertuples():
        values = metrics.token_maps(run.store, sample, row.map_tokens, branch)
        made.append(values.mean("layer", skipna=True))
    words = [
        {"label": showable(row.label), "text": showable(row.text), "word": showable(row.word_text),
         "tokens": ".".join(map(str, row.tokens))}
        for row in choices.itertuples()
    ]  # fmt: skip
    steps = [int(step) for step in made[0]["map_step"].values]
    first = attention_maps.first_thing(choices)
    return arrow_files.numbers(
        np.stack([one.values for one in made]), exact=False, words=words, steps=steps, first=first
    )


def _layers(run: PublishedRun, sample: int, branch: str, map_tokens: tuple[int, ...]) -> bytes | None:
    """The maps of a word: (map_step, layer, y, x)."""
    try:
        values = metrics.token_maps(run.store, sample, map_tokens, branch)
    except NothingMeasuredError:
        return None
    return arrow_files.numbers(
        values.values, exact=False, steps=[int(one) for one in values["map_step"].values]
    )
