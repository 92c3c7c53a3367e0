"""The Gates page shows the numbers of `gating` for the same selection, and says what has no gates or untrained ones."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from making.pages import frames_of, linked_of, open_page, text_of
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.figures import gate_charts
from sd35h5.metrics import gate_statistics, heaviest_keys

LAYERS, HEADS, STEPS = 3, 2, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    shape = {"layers": LAYERS, "heads": HEADS, "steps": STEPS}
    make_store(folder / "demo-baseline.h5", **shape)
    make_store(folder / "demo-headwise.h5", gates=True, **shape)
    return folder


@pytest.fixture
def app(monkeypatch):
    return partial(open_page, monkeypatch, page="gates")


def heatmaps_of(test) -> list[np.ndarray]:
    return [figure.cells(name).to_numpy() for figure in linked_of(test) for name in figure.panels]


def test_heatmaps_hold_the_mean_gate_of_each_stream_within_the_chosen_steps(app, folder):
    test = app(folder, url={"steps": "1-2", "layers": "1-2"})
    with open_store(folder / "demo-headwise.h5") as store:
        expected = [
            store.read("gates/mean", branch="cond", query=query, step=[1, 2], layer=[1, 2]).mean(
                ["sample", "step"]
            )
            for query in ("image", "text")
        ]
    for found, values in zip(heatmaps_of(test), expected, strict=True):
        np.testing.assert_allclose(found, values.values.ravel(), rtol=1e-6)
    assert "Without gates: demo-baseline" in text_of(test).replace("\\", "")


def test_the_gate_at_a_group_is_that_of_its_own_stream(app, folder):
    with open_store(folder / "demo-headwise.h5") as store:
        found = gate_statistics.group_gates(store)
        image = store.read("gates/mean", branch="cond", query="image")
        text = store.read("gates/group_mean", branch="cond", query="text", group="t5_pad")
    np.testing.assert_allclose(found.sel(group="image"), image, rtol=1e-6)
    np.testing.assert_allclose(found.sel(group="t5_pad"), text, rtol=1e-6)
    test = app(folder, cell=(2, 1))
    curve = next(f for f in frames_of(test) if "series" in f and "t5_pad" in set(f["series"]))
    shown = curve.loc[curve["series"] == "t5_pad", "mean"]
    np.testing.assert_allclose(shown, text[:, :, 2, 1].mean("sample"), rtol=1e-6)


def test_shares_after_the_gate_equal_a_plain_sum(app, folder):
    with open_store(folder / "demo-headwise.h5") as store:
        keys = heaviest_keys.top_keys(store)
        added = store.read("gates/contribution", branch="cond", query="image")
    found = gate_statistics.contribution_shares(keys, added).set_index("kind")
    assert found["mass"].sum() == pytest.approx(1) and found["added"].sum() == pytest.approx(1)
    is_start = keys["kind"].values == heaviest_keys.KINDS.index("clip_bos")
    assert found.loc["clip_bos", "mass"] == pytest.approx(
        keys["mass"].values[is_start].sum() / keys["mass"].values.sum()
    )
    assert found.loc["clip_bos", "added"] == pytest.approx(added.values[is_start].sum() / added.values.sum())
    bars = next(frame for frame in frames_of(app(folder)) if "added" in frame).set_index("kind")
    np.testing.assert_allclose(bars["added"], found.loc[bars.index, "added"])


def test_dead_and_open_heads_are_marked_and_counted(tmp_path, app, folder):
    import h5py

    path = make_store(tmp_path / "run.h5", layers=LAYERS, heads=HEADS, steps=STEPS, gates=True)
    with h5py.File(path, "r+") as file:
        for name, dead, opened in (("mean", 0.01, 0.99), ("below_0_1", 1.0, 0.0), ("below_0_5", 1.0, 0.0)):
            file[f"gates/{name}"][:, :, 0, :, 1, 0] = dead
            file[f"gates/{name}"][:, :, 0, :, 2, 1] = opened
    test = app(path)
    assert "image queries · 6 heads: 1 dead (✕), 1 always open (○)" in text_of(test)
    marks = linked_of(test)[0].extras["run · image queries"]["marks"]
    assert {(one["layer"], one["head"]): one["means"] for one in marks} == {(1, 0): "dead", (2, 1): "open"}
    with open_store(path) as store:
        spec = gate_charts.gate_heatmap(gate_statistics.gate_heads(store)).to_dict()
    signs = spec["datasets"][spec["layer"][1]["data"]["name"]]
    assert {(row["layer"], row["head"]): row["sign"] for row in signs} == {(1, 0): "✕", (2, 1): "○"}


def test_untrained_gates_are_warned_of_and_ungated_runs_get_one_sentence(app, folder, tmp_path):
    path = make_store(tmp_path / "run.h5", gates=True, gate_weights="untrained", gate_activation="2sigmoid")
    assert "Untrained gates: all weights are zero" in text_of(app(path))
    alone = app(folder / "demo-baseline.h5")
    assert (
        "Choose a gated run" in text_of(alone) and not alone.get("vega_lite_chart") and not linked_of(alone)
    )


def test_compare_shows_the_gates_too(app, folder):
    assert "Mean gate by layer, head and stream" in text_of(app(folder, page="compare"))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Captures of a tiny MMDiT-X: gates on attn2 alone, and on both attentions."""
    import torch
    from making.pipelines import make_pipeline

    from sd35h5 import capture
    from sd35h5.gates.modules import build_gates, install_gates

    folder = tmp_path_factory.mktemp("second")
    pipe = make_pipeline(dual_attention_layers=(0, 1))
    for target in ("attn2", "all"):
        gates = build_gates(pipe.transformer, "headwise", target=target)
        for each in (gates.modules, gates.second):
            for parameter in each.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        install_gates(pipe.transformer, gates)
        with capture(pipe, folder / f"{target}.h5") as generate:
            generate("a cat", seed=0, height=64, width=96, num_inference_steps=2, max_sequence_length=24)
    return folder


@pytest.mark.parametrize("page", ["gates", "compare"])
def test_gates_of_attn2_are_a_stream_of_their_own(app, second, page):
    test = app(second / "attn2.h5", second / "all.h5", page=page, url={"with": "all"})
    said = text_of(test)
    assert "headwise · attn2 · sigmoid · layers 0–1" in said and "Without gates" not in said
    assert "headwise · all · sigmoid · joint layers 0–2 · attn2 layers 0–1" in said
    found = heatmaps_of(test)
    for name in ("attn2", "all"):
        with open_store(second / f"{name}.h5") as store:
            assert gate_statistics.gated_streams(store) == (
                ("attn2",) if name == "attn2" else ("image", "text", "attn2")
            )
            mean = store.read("attn2/mean", branch="cond", query="image").mean(["sample", "step"]).values
        assert np.isnan(mean[2]).all()  # the last layer has no attn2
        shown = [np.allclose(each[: mean[:2].size], mean[:2].ravel(), rtol=1e-6) for each in found]
        assert sum(shown) == 1


def test_a_single_head_and_the_last_layer_s_missing_text_gate_draw(app, tmp_path):
    import h5py

    path = make_store(tmp_path / "run.h5", layers=1, heads=1, steps=1, samples=1, gates=True)
    with h5py.File(path, "r+") as file:
        for name in file["gates"]:
            if "query" in [dim[0].name.split("/")[-1] for dim in file[f"gates/{name}"].dims if len(dim)]:
                file[f"gates/{name}"][:, :, 1] = np.nan
    assert "no gate on this stream here" in text_of(app(path))
