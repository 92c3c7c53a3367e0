"""The Evidence page goes from one cell to its curve, its tokens, a map and the image, with numbers of `metrics`."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from making.pages import frame_with, open_page, text_of
from making.stores import make_store

from sd35h5 import metrics, open_store
from sd35h5.metrics import attention_maps

LAYERS, HEADS, STEPS = 3, 2, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("evidence") / "run.h5", layers=LAYERS, heads=HEADS, steps=STEPS)


@pytest.fixture
def app(monkeypatch):
    return partial(open_page, monkeypatch, page="evidence")


def test_curve_tokens_and_map_are_of_the_cell_at_the_step(app, store):
    test = app(store, url={"cell": "2.1", "sample": "0", "target": "word:apple", "at": "3"})
    with open_store(store) as opened:
        word = metrics.first_token_mean(opened, metrics.Target("word", "apple"))[0, :, 2, 1]
        masses = metrics.token_mass(opened, 0, steps=[3], layers=[2], heads=[1])
        row = next(
            row for row in attention_maps.map_choices(opened, 0).itertuples() if row.word_text == "apple"
        )
        values = opened.read(
            "maps/image_to_text", sample=0, branch="cond", layer=2, map_token=list(row.map_tokens)
        )
    curve = frame_with(test, "series", "mean")
    np.testing.assert_allclose(curve["mean"], word, rtol=1e-9)
    chips = frame_with(test, "left", "count").set_index("token")
    assert chips.loc[3, "mass"] == pytest.approx(masses.loc[3, "mass"])
    told = text_of(test).replace("\\", "")
    assert (
        "layer 2, head 1, step 3: word “apple” gets" in told
        and f"{masses.loc[[3, 79], 'mass'].sum():.3g}" in told
    )
    shown = test.session_state["shown"][-1]
    np.testing.assert_allclose(shown.table["value"], values.isel(map_step=1).sum("map_token").values.ravel())
    assert "map at step 2 over the image" in told  # maps were captured at steps 0 and 2


def test_without_a_clicked_cell_the_heaviest_is_shown(app, store):
    test = app(store, url={"samples": "1"})
    with open_store(store) as opened:
        frame = metrics.by_layer_head(metrics.first_token_mean(opened, samples=[1]))
    top = frame.loc[frame["value"].idxmax()]
    assert f"layer {int(top['layer'])}, head {int(top['head'])}" in text_of(test)
    assert "this is the heaviest one" in text_of(test)


def test_a_token_without_a_map_is_told_with_those_that_have_one(app, store):
    words = text_of(app(store, url={"target": "group:t5_pad"})).replace("\\", "")
    assert "No map of group t5_pad was captured; there are: <start>, a, red, apple" in words


def test_a_head_s_own_map_is_preferred_to_the_mean_over_heads(store):
    import xarray as xr

    with open_store(store) as opened:
        values, own = attention_maps.cell_maps(opened, 0, [1], 2, 1)
        xr.testing.assert_identical(values, attention_maps.token_maps(opened, 0, 1).sel(layer=2, drop=True))
    assert not own and values.dims == ("map_step", "y", "x")


def test_a_step_outside_the_chosen_range_falls_back(app, store):
    test = app(store, url={"steps": "0-1", "at": "3"})
    assert test.session_state["evidence-step"] in (0, 1)
    app(store, url={"at": "none"})
