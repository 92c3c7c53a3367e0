"""A metric of an attn2 with heads of its own: those are chosen, charts of the joint attention show all of theirs."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
from making.pages import linked_of, open_page, shown_table, text_of
from making.stores import make_store

from sd35h5 import metrics, open_store
from sd35h5.metrics import gate_statistics, per_sample

LAYERS, HEADS, OWN, STEPS = 3, 2, 5, 4
CHOSEN = {"metric": "attn2_entropy", "heads": "3-4", "cell": "1.4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    shape = {"layers": LAYERS, "heads": HEADS, "steps": STEPS, "gates": True, "atlas": True}
    for seed, name in enumerate(("demo-baseline", "other")):
        make_store(folder / f"{name}.h5", second_heads=OWN, seed=seed, **shape)
    return folder


@pytest.fixture
def app(monkeypatch):
    return partial(open_page, monkeypatch)


def by_heads(values) -> np.ndarray:
    return values.mean(["sample", "step"]).values


def test_the_heads_of_the_sidebar_are_those_of_the_metric(app, folder):
    test = app(folder, page="sinks", url=CHOSEN)
    assert test.slider(key=f"heads-{OWN}").value == (3, 4)
    assert "layer 1, head 4" in [button.label for button in test.sidebar.button]
    said = text_of(test)
    assert "heads 3–4 of attn2" in said and "Heads are those of attn2" in said
    with open_store(folder / "demo-baseline.h5") as store:
        expected = by_heads(metrics.computed(store, "attn2_entropy"))
        tokens = metrics.token_mass(store, 0)
    np.testing.assert_allclose(linked_of(test)[0].cells(), expected[:, 3:].ravel(), rtol=1e-5, equal_nan=True)
    shown = shown_table(test, "Heaviest text tokens")
    np.testing.assert_allclose(
        shown["mass"], tokens["mass"], rtol=1e-5
    )  # of both heads of the joint attention
    assert "Heaviest text tokens** · layer" not in said and linked_of(test)[0].chosen["pinned"] == [1, 4]
    joint = app(folder, page="sinks", url={**CHOSEN, "metric": "top_1", "heads": "1"})
    assert joint.slider(key=f"heads-{HEADS}").value == (1, 1) and "attn2" not in text_of(joint).split("\n")[0]


@pytest.mark.parametrize(
    "page",
    [
        "sinks",
        "compare",
        *(pytest.param(page, marks=pytest.mark.long) for page in ("gates", "tokens", "maps", "evidence")),
    ],
)
def test_every_page_draws_and_its_recipes_give_the_numbers(app, folder, page, monkeypatch):
    test = app(folder, page=page, url={"with": "other", **CHOSEN, "scatter-y": "gini"})
    if page == "evidence":
        assert "choose another metric" in text_of(test)
        return
    monkeypatch.chdir(folder)
    shown = [one for one in test.session_state["shown"] if one.code]
    assert shown or page == "maps"
    for one in shown:
        names: dict = {}
        exec(one.code, names)
        found = names["table"]
        for column in set(found.columns) & set(one.table.columns):
            if pd.api.types.is_float_dtype(one.table[column]):
                np.testing.assert_allclose(
                    np.sort(found[column].astype(float)), np.sort(one.table[column].astype(float)), rtol=1e-4,
                    err_msg=f"{one.name}: {column}",
                )  # fmt: skip


def test_gates_keep_the_heads_of_the_model(app, folder):
    test = app(folder / "demo-baseline.h5", page="gates", url=CHOSEN)
    with open_store(folder / "demo-baseline.h5") as store:
        expected = by_heads(gate_statistics.gate_statistic(store, "mean"))
    figure = linked_of(test)[0]
    np.testing.assert_allclose(figure.cells("demo-baseline · image queries"), expected.ravel(), rtol=1e-5)
    assert figure.chosen["pinned"] is None and not figure.facts["tells"]  # the sidebar's heads are others


def test_runs_whose_attn2_has_other_heads_are_not_subtracted(app, folder, tmp_path):
    os.link(folder / "demo-baseline.h5", tmp_path / "demo-baseline.h5")
    shape = {"layers": LAYERS, "heads": HEADS, "steps": STEPS}
    make_store(tmp_path / "usual.h5", second=True, **shape)
    test = app(tmp_path, page="compare", url={"with": "usual", "metric": "attn2_entropy"})
    assert "usual measured this with other heads than demo-baseline" in text_of(test).replace("\\", "")


def test_a_sample_s_number_is_over_all_heads_where_none_are_named(folder):
    with open_store(folder / "other.h5") as store:
        found = per_sample.sample_values(store, "attn2_entropy", heads=[4], layers=[0])
        every = metrics.computed(store, "attn2_entropy").sel(head=4, layer=0).mean("step")
        np.testing.assert_allclose(found, every, rtol=1e-6)
