"""Slices in the dashboard, analyze, compare and xarray: layers, heads and steps are named as in the capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making.pages import frame_with, open_page
from making.stores import make_store

from sd35h5 import compare, metrics, open_store
from sd35h5.__main__ import main
from sd35h5.errors import StoreError
from sd35h5.metrics.averaging import places_of
from sd35h5.store.cutting.joining import join
from sd35h5.store.cutting.slicing import cut
from sd35h5.store.cutting.wanted_part import Wanted

PART = Wanted(layers="1,3,4", heads="2", steps="1-3")
LAYERS, HEADS, STEPS = [1, 3, 4], [2], [1, 2, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two whole runs that pair, and the same part of each in `parts/`; `one.h5` is another layer of the first."""
    made = tmp_path_factory.mktemp("cut")
    (made / "parts").mkdir()
    for name, more in (("baseline", {}), ("gated", {"sink": 1.0, "seed": 1})):
        make_store(
            made / f"{name}.h5",
            samples=2,
            layers=5,
            heads=4,
            steps=4,
            gates=True,
            rows=((0, 2), (1, 78)),
            **more,
        )
        cut(made / f"{name}.h5", made / "parts" / f"{name}.h5", PART)
    cut(made / "gated.h5", made / "one.h5", Wanted(layers="0-2", heads="2", steps="1-3"))
    return made


@pytest.mark.parametrize(
    "page",
    [
        "sinks",
        "maps",
        "compare",
        *(
            pytest.param(page, marks=pytest.mark.long)
            for page in ("overview", "tokens", "gates", "evidence", "files")
        ),
    ],
)
def test_every_page_draws_a_slice(folder, monkeypatch, page):
    test = open_page(monkeypatch, folder / "parts", page=page)
    assert not test.error, [error.value for error in test.error]


def test_the_files_page_says_what_a_slice_left_out_and_offers_to_capture_the_rest_alone(
    folder, tmp_path, monkeypatch
):
    cut(folder / "baseline.h5", tmp_path / "part.h5", Wanted(tiers=("sinks",)))
    test = open_page(monkeypatch, tmp_path, page="files")
    assert not test.error
    (said,) = [each.value for each in test.caption if each.value.startswith("Left out of this slice")]
    assert (
        said == "Left out of this slice, and in baseline.h5, of which it was cut: topk, maps, rows, images."
    )
    (offered,) = [each for each in test.multiselect if each.label == "Capture also"]
    assert offered.options == ["maps, per head", "text", "atlas", "raw"]


def test_charts_of_a_slice_say_the_true_layers_heads_and_steps(folder, monkeypatch):
    test = open_page(monkeypatch, folder / "parts" / "baseline.h5", page="sinks")
    tables = [one.table for one in test.session_state["shown"]]
    shown = next(table for table in tables if {"layer", "head", "value"} <= set(table))
    shown = shown.sort_values(["layer", "head"])
    with open_store(folder / "baseline.h5") as whole:
        values = metrics.first_token_mean(whole).sel(layer=LAYERS, head=HEADS, step=STEPS)
    assert shown["layer"].tolist() == LAYERS and set(shown["head"]) == {2}
    np.testing.assert_allclose(shown["value"], values.mean(("sample", "step")).values.ravel(), rtol=1e-5)
    assert next(table for table in tables if {"step", "mean"} <= set(table))["step"].tolist() == STEPS
    assert any("head 2 alone" in caption.value for caption in test.sidebar.caption)


def test_a_range_and_a_cell_of_a_slice_are_chosen_by_true_index(folder, monkeypatch):
    url = {"layers": "3-4", "cell": "4.2", "steps": "2-3"}
    test = open_page(monkeypatch, folder / "parts" / "baseline.h5", page="overview", url=url)
    view = test.session_state["view"]
    assert (view.layers, view.heads, view.steps, view.cell) == ((3, 4), (2,), (2, 3), (4, 2))
    tokens = open_page(monkeypatch, folder / "parts" / "baseline.h5", page="tokens", url=url)
    with open_store(folder / "baseline.h5") as whole:
        told = metrics.token_mass(whole, 0, steps=[2, 3], layers=[4], heads=[2])
    shown = frame_with(tokens, "token", "mass").set_index("token")["mass"]
    pads = told["group"].isin(["clip_pad", "t5_pad"])
    expected = told[~pads].set_index("token")["mass"]
    np.testing.assert_allclose(shown[expected.index], expected, rtol=1e-5)


def test_a_range_with_gaps_stays_one_when_the_page_is_drawn_again(folder, monkeypatch):
    test = open_page(monkeypatch, folder / "parts" / "baseline.h5", page="files")
    for layers in ((1, 4), (3, 4)):
        test.select_slider(key="layers-3-1-4").set_value(layers).run()
        test.run()
        assert not test.exception and test.session_state["view"].layers == tuple(
            layer for layer in LAYERS if layer >= layers[0]
        )


def test_numbers_of_a_slice_are_those_of_the_whole(folder):
    with open_store(folder / "baseline.h5") as whole, open_store(folder / "parts" / "baseline.h5") as part:
        assert part.numbers("layer") == tuple(LAYERS) and places_of(part, "layer", [4]) == [2]
        for name in ("first_token_mean", "first_token_share", "sink_rate", "entropy", "gini"):
            both = [metrics.computed(store, name) for store in (whole, part)]
            expected = both[0].sel(layer=LAYERS, head=HEADS)
            expected = expected.sel(step=[step for step in STEPS if step in expected["step"]])
            np.testing.assert_allclose(both[1], expected, rtol=1e-6)
            for dim in ("layer", "head", "step"):
                assert both[1][dim].values.tolist() == expected[dim].values.tolist()
        one, other = (
            metrics.sample_values(store, "first_token_mean", layers=[3], heads=[2], steps=[1, 2])
            for store in (whole, part)
        )
        np.testing.assert_allclose(one, other, rtol=1e-6)
        pd.testing.assert_frame_equal(
            metrics.token_mass(whole, 1, steps=[3], layers=[1], heads=[2]),
            metrics.token_mass(part, 1, steps=[3], layers=[1], heads=[2]),
        )
        with pytest.raises(StoreError, match="holds no layer 2: it was cut to others"):
            metrics.token_mass(part, 1, layers=[2])
        keys = metrics.top_keys(part)
        assert keys["layer"].values.tolist() == LAYERS
        tree = part.to_xarray()
        assert tree["sinks/mass_group"].sel(layer=3, head=2)["step"].values.tolist() == STEPS


def test_slices_compare_with_the_same_slice_and_no_other(folder, tmp_path, capsys):
    files = [str(folder / "parts" / f"{name}.h5") for name in ("baseline", "gated")]
    assert main(["compare", *files, "--out_dir", str(tmp_path / "out"), "--resamples", "100"]) == 0
    tables = [
        path for path in (tmp_path / "out").rglob("*.csv") if "layer" in pd.read_csv(path, nrows=0).columns
    ]
    assert tables and {layer for path in tables for layer in pd.read_csv(path)["layer"]} == set(LAYERS)
    with open_store(folder / "parts" / "baseline.h5") as one, open_store(folder / "one.h5") as other:
        pairing = compare.pair(one, other)
        with pytest.raises(StoreError, match="holds the layers 1, 3, 4, one 0, 1, 2: cut both alike"):
            compare.paired_values(one, other, pairing)
    assert main(["analyze", files[0], "--out_dir", str(tmp_path / "table")]) == 0
    (table,) = (tmp_path / "table").rglob("*.csv")
    written = pd.read_csv(table)
    assert (
        set(written["layer"]) == set(LAYERS)
        and set(written["head"]) == {2}
        and set(written["step"]) == set(STEPS)
    )


def _merged(folder: Path, made: Path) -> Path:
    """Both runs as merges of their samples, those of the second one in the other order."""
    (made / "merged").mkdir()
    for name, order in (("baseline", "01"), ("gated", "10")):
        halves = [made / f"{name}-{sample}.h5" for sample in order]
        for sample, half in zip(order, halves, strict=True):
            cut(folder / f"{name}.h5", half, Wanted(samples=sample))
        join(halves, made / "merged" / f"{name}.h5")
    return made / "merged"


def test_merges_pair_wherever_their_samples_stand_and_compare_as_the_whole(folder, tmp_path):
    found = []
    for place in (folder, _merged(folder, tmp_path)):
        with open_store(place / "baseline.h5") as one, open_store(place / "gated.h5") as other:
            pairing = compare.pair(one, other)
            found.append(
                [pairing.pairs["other_sample"].tolist(), *compare.paired_values(one, other, pairing)]
            )
    assert [each[0] for each in found] == [[0, 1], [1, 0]]
    for whole, merged in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_array_equal(whole, merged)


@pytest.mark.long
def test_merges_are_analysed_compared_and_drawn_as_the_whole(folder, tmp_path, monkeypatch):
    written = []
    for place in (folder, _merged(folder, tmp_path)):
        out, files = (
            tmp_path / "out" / place.name,
            [str(place / f"{name}.h5") for name in ("baseline", "gated")],
        )
        assert main(["compare", *files, "--out_dir", str(out), "--resamples", "100"]) == 0
        assert main(["analyze", files[1], "--out_dir", str(out / "analyzed")]) == 0
        written.append({path.name: pd.read_csv(path) for path in sorted(out.rglob("*.csv"))})
    assert (
        written[0].keys() == written[1].keys()
        and {"overall.csv", "first_token_metrics.csv"} <= written[0].keys()
    )
    for name, table in written[0].items():  # a merge numbers its samples anew
        columns = [column for column in table if column not in ("sample", "other_sample")]
        keys = [column for column in columns if table[column].dtype.kind in "iO"]
        whole, merged = (each[name][columns].sort_values(keys, ignore_index=True) for each in written)
        pd.testing.assert_frame_equal(whole, merged, rtol=1e-5)
    for page in ("overview", "compare"):
        test = open_page(monkeypatch, tmp_path / "merged", page=page)
        assert not test.error, [error.value for error in test.error]
