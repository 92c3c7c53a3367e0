"""Sidecars of runs: samples, tokens, first-token metrics and effects as Parquet, for pandas, DuckDB and the hub's
viewer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sd35h5 import metrics
from sd35h5.comparing import comparison, paired_samples
from sd35h5.errors import NothingMeasuredError
from sd35h5.long_work import counted
from sd35h5.metrics.sample_tokens import token_mass
from sd35h5.reports.output_files import make_folder
from sd35h5.reports.parquet_files import Column, write_parquet
from sd35h5.store.schema import variable

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

_RUN = Column("run", "string", "name of the run")
_PLACE = (
    _RUN,
    Column("sample", "int32", "index of the sample in the run"),
    Column("sample_id", "string", "name of the sample"),
    Column("prompt_id", "string", "name of the prompt"),
    Column("branch", "string", "row of the guided batch: cond, uncond, skip"),
)
_MODEL = (
    Column("model", "string", "name of the model"),
    Column("gate_type", "string", "gates of the model: none, headwise, elementwise"),
    Column("intervention", "string", "what was altered in the attention, or none"),
)
TOKENS = (
    *_PLACE,
    Column("token", "int32", "position on the text axis: CLIP positions, then T5 positions"),
    Column("encoder", "string", "encoder of the text position: clip, t5, absent"),
    Column("text", "string", "text of the token, with the marks of its tokenizer"),
    Column("group", "string", "group of the token"),
    Column("word", "int32", "index of the word in the prompt, -1 for none"),
    Column("char_start", "int32", "first character of the token in the prompt, -1 for none"),
    Column("char_end", "int32", "character after the token in the prompt, -1 for none"),
    *(
        Column(f"id_{name}", "int32", f"id in the vocabulary of {name}, -1 where it has none")
        for name in ("clip_l", "clip_g", "t5")
    ),
    Column(
        "mass", "float32",
        "attention of image queries to the token, mean over steps, layers and heads: share of attention, 0..1", "1",
    ),
)  # fmt: skip
METRICS = (
    Column("first_token_mean", "float32", "mean over image queries of attention to the token: 0..1", "1"),
    Column("first_token_share", "float32", "that, as multiple of the average text token's", "1"),
    Column("text_mass_fraction", "float32", "that, as fraction of the attention on all text: 0..1", "1"),
)
FIRST_TOKEN = (
    *_PLACE,
    Column("step", "int32", "index of the denoising step"),
    Column("timestep", "float32", "timestep of the scheduler, 0..1000", "1"),
    Column("sigma", "float32", "noise level of the scheduler, 0..1", "1"),
    Column("layer", "int32", "index of the transformer block"),
    Column("head", "int32", "index of the attention head"),
    Column("token", "int32", "position of the token that the metrics are about"),
    *METRICS,
)
EFFECTS = (
    Column("reference", "string", "name of the run that is compared with"),
    _RUN,
    Column("metric", "string", "what is compared: a column of first_token.parquet, branch cond, mean over steps"),
    Column("layer", "int32", "index of the transformer block"),
    Column("head", "int32", "index of the attention head"),
    Column("prompts", "int32", "prompts of the paired samples: the units of the statistics"),
    Column("reference_mean", "float32", "mean over prompts in the reference", "1"),
    Column("other_mean", "float32", "mean over prompts in the run", "1"),
    Column("mean_difference", "float32", "mean over prompts of run - reference", "1"),
    Column("effect", "float32", "that ÷ its standard deviation over prompts (Cohen's d_z)", "1"),
    Column("low", "float32", "bootstrap interval of the mean difference at 95 %: lower end", "1"),
    Column("high", "float32", "upper end", "1"),
    Column("p", "float32", "sign-flip p-value, two-sided", "1"),
    Column("q", "float32", "Benjamini-Hochberg over the heads of this run and metric", "1"),
)  # fmt: skip


def write_sidecars(stores: Mapping[str, Store], folder: str | Path, effects: bool = True) -> list[Path]:
    """Write samples.parquet, tokens.parquet and first_token.parquet, with several runs also effects.parquet.

    Memory does not grow with the samples, but for the table of samples and what heads are in each pair.
    Args: stores: name of the run -> its store with a sample at least; effects are against the first.
    Returns: the files.
    Raises: StoreError where a run pairs with the first in no sample, before anything is written.
    """
    pairings = comparison.pairings(stores) if effects and len(stores) > 1 else {}
    out, runs = make_folder(folder), ", ".join(stores)
    columns = _sample_columns(stores)
    made = [
        write_parquet(
            _samples(stores, columns), columns, out / "samples.parquet", f"samples of {runs}"
        ),
        write_parquet(_tokens(stores), TOKENS, out / "tokens.parquet", f"tokens of {runs}"),
        write_parquet(
            _first_token(stores), FIRST_TOKEN, out / "first_token.parquet", f"first-token metrics of {runs}"
        ),
    ]  # fmt: skip
    if pairings:
        title = f"effects by layer and head: {runs}, against the first"
        made.append(write_parquet(_effects(stores, pairings), EFFECTS, out / "effects.parquet", title))
    return made


def metrics_table(store: Store, target: metrics.Target, branch: str, sample: int) -> pd.DataFrame:
    """Return the three metrics of one sample: a row a (step, layer, head).

    Returns: step, layer, head, timestep, sigma, sample, branch, token and a float64 column a metric.
    """
    named = {
        name: compute(store, target, branch, [sample]).isel(sample=0)
        for name, compute in metrics.METRICS.items()
    }
    flat = {name: values.transpose("step", "layer", "head").to_series() for name, values in named.items()}
    table = pd.DataFrame(flat).reset_index()
    values = named["first_token_mean"]
    for name in ("timestep", "sigma"):
        of_step = dict(zip(values["step"].values, values[name].values, strict=True))
        table[name] = table["step"].map(of_step)
    table["sample"], table["branch"], table["token"] = sample, branch, int(target.value)
    return table


def _sample_columns(stores: Mapping[str, Store]) -> list[Column]:
    """The columns of the samples of all runs, joined scores included."""
    held = dict.fromkeys(name for store in stores.values() for name in store.variables)
    specs = [variable(name) for name in held if variable(name).dims == ("sample",)]
    kept = [
        Column(
            spec.short_name,
            "string" if spec.is_text else spec.dtype,
            spec.long_name,
            "1" if spec.dtype == "float32" else "",
        )
        for spec in specs
        if spec.name != "samples/sealed"
    ]
    return [_RUN, _PLACE[1], *kept, *_MODEL]


def _samples(stores: Mapping[str, Store], columns: Sequence[Column]) -> Iterator[pd.DataFrame]:
    for run, store in stores.items():
        about = {
            "model": PurePath(store.attributes.get("model_id", "")).name,  # no folder of the machine that drew it
            "gate_type": store.attributes.get("gate_type"),
            "intervention": store.attributes.get("intervention"),
        }  # fmt: skip
        table = store.samples.assign(run=run, **about)
        yield table.reindex(columns=[one.name for one in columns])


def _places(stores: Mapping[str, Store]) -> list[tuple[str, dict, str]]:
    """Every run with each of its samples and branches."""
    return [
        (run, row, branch)
        for run, store in stores.items()
        for row in store.samples[["sample", "sample_id", "prompt_id"]].to_dict("records")
        for branch in store.labels("branch")
    ]


def _tokens(stores: Mapping[str, Store]) -> Iterator[pd.DataFrame]:
    for run, row, branch in counted(_places(stores), "tokens of samples"):
        yield _token_table(stores[run], row["sample"], branch).assign(run=run, branch=branch, **row)


def _token_table(store: Store, sample: int, branch: str) -> pd.DataFrame:
    """The tokens with their mass, NaN where none was measured per token."""
    if "sinks/mass_image" in store:
        with suppress(NothingMeasuredError):
            return token_mass(store, sample, branch)
    return store.tokens(sample, branch).assign(mass=np.nan)


def _first_token(stores: Mapping[str, Store]) -> Iterator[pd.DataFrame]:
    """A table a sample and branch in which anything was measured."""
    for run, row, branch in counted(_places(stores), "measuring samples"):
        try:
            table = metrics_table(stores[run], metrics.Target(), branch, row["sample"])
        except NothingMeasuredError:
            continue
        yield table.assign(run=run, **row)


def _effects(
    stores: Mapping[str, Store], pairings: Mapping[str, paired_samples.Pairing]
) -> Iterator[pd.DataFrame]:
    reference = next(iter(stores))
    asked = [(run, one.name) for run in pairings for one in METRICS]
    for run, metric in counted(asked, "effects of metrics"):
        pairing = pairings[run]
        means = paired_samples.step_means(stores[reference], stores[run], pairing, metric)
        table = comparison.cells_of(*means, list(pairing.pairs["prompt_id"]))
        yield table.assign(reference=reference, run=run, metric=metric)
