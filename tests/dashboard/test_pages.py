"""Each page of the dashboard by Streamlit's AppTest: what it shows, what a click does, and what bad files do
to it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making.pages import frame_with, frames_of, linked_of, said_first, shown_table, text_of
from making.stores import make_store
from streamlit.testing.v1 import AppTest

from sd35h5 import compare, metrics, open_store
from sd35h5.comparing import effects
from sd35h5.metrics import heaviest_keys, sink_rates
from sd35h5.store.runs import running
from sd35h5.store.sharing.failures import record_failure
from sd35h5.store.writer import begin_run

ROOT = Path(__file__).resolve().parents[2]
LAYERS, HEADS, STEPS = 3, 2, 4
ALL = ("overview", "sinks", "tokens", "maps", "gates", "compare", "evidence")
# all share the sidebar: what it says of files is looked at on two of them always
ONE_OF_ALL = [
    pytest.param(page, marks=[] if page in ("overview", "maps") else pytest.mark.long) for page in ALL
]


def heatmap_of(test: AppTest) -> pd.Series:
    """What the linked figure draws, which is also what its heatmap's export holds."""
    cells = linked_of(test)[0].cells()
    exported = shown_table(test, "Layer × head").set_index(["layer", "head"])["value"].sort_index()
    pd.testing.assert_series_equal(cells, exported, rtol=1e-6, check_index_type=False)
    return cells


def expected_heatmap(path: Path, steps: slice = slice(None)) -> pd.Series:
    with open_store(path) as store:
        values = metrics.first_token_mean(store).isel(step=steps)
        return metrics.by_layer_head(values).set_index(["layer", "head"])["value"].sort_index()


def test_overview_shows_every_run_and_the_paired_images(app, folder):
    test = app(folder)
    words = text_of(test)
    assert all(name in words for name in (r"demo\-baseline", r"demo\-headwise", "other"))
    assert "gate: headwise" in words
    assert len(test.get("image")) == 4  # two samples, two runs that pair
    assert test.dataframe[0].value.set_index("field").loc["gate_type"].tolist() == ["none", "headwise"]


def test_heatmap_equals_the_metrics(app, folder):
    test = app(folder, page="sinks")
    found = heatmap_of(test)
    expected = expected_heatmap(folder / "demo-baseline.h5")
    pd.testing.assert_series_equal(found, expected, rtol=1e-6, check_index_type=False)
    # no map of patches: the start token is every head's heaviest
    assert len(test.get("vega_lite_chart")) == 4 and len(linked_of(test)) == 1


def test_the_sink_curve_and_the_kinds_of_keys_equal_the_library(app, folder):
    test = app(folder, page="sinks", cell=(2, 1))
    frames = frames_of(test)
    with open_store(folder / "demo-baseline.h5") as store:
        mass = metrics.first_token_mean(store).isel(layer=[2], head=[1])
        expected = sink_rates.sink_curve(mass, ["p0", "p1"])
        keys = heaviest_keys.top_keys(store).isel(layer=[2], head=[1])
        shares = heaviest_keys.kind_shares(keys)
    curve = next(frame for frame in frames if "epsilon" in frame.columns and "series" in frame.columns)
    cell = curve[curve["series"] == "layer 2, head 1"]
    np.testing.assert_allclose(cell["mean"], expected["mean"])
    kinds = next(frame for frame in frames if "kind" in frame.columns)
    assert set(kinds["layer"]) == {2}
    assert kinds["share"].sum() == pytest.approx(1)
    row = shares[shares["kind"] == "clip_bos"].iloc[0]
    assert f"clip\\_bos {row['share']:.0%}" in text_of(test)


def test_the_layer_profile_and_the_histogram_equal_a_plain_count(app, folder):
    test = app(folder, page="sinks", url={"steps": "1-2"})
    with open_store(folder / "demo-baseline.h5") as store:
        mass = metrics.first_token_mean(store).isel(step=[1, 2]).values
    profile = shown_table(test, "Over the layers")
    by_prompt = mass.mean((1, 3))
    np.testing.assert_allclose(profile["mean"], by_prompt.mean(0))
    low, high = linked_of(test)[0].extras["demo-baseline"]["bands"]["chosen"]["profile"]
    np.testing.assert_allclose(low, np.quantile(by_prompt, 0.1, axis=0))
    np.testing.assert_allclose(high, np.quantile(by_prompt, 0.9, axis=0))
    counts = shown_table(test, "How many heads have which mean")
    cells = mass.mean((0, 1)).ravel()
    assert counts["heads"].sum() == LAYERS * HEADS
    for row in counts.itertuples():
        assert row.heads == ((cells >= row.low) & (cells < row.high)).sum()


def test_steps_without_top_keys_are_told(app, folder):
    test = app(folder, page="sinks")
    test.sidebar.slider(key=f"steps-{STEPS}").set_value((1, 1)).run()
    assert "No step with captured top keys" in text_of(test)


def test_cells_that_survive_correction_are_marked_on_compare(app, tmp_path):
    prompts = tuple(f"a {thing}" for thing in ("car", "cat", "dog", "sun", "hat", "pen", "cup"))
    for name, sink in (("base", 5.0), ("gated", 1.0)):
        make_store(
            tmp_path / f"{name}.h5",
            samples=7,
            prompts=prompts,
            layers=LAYERS,
            heads=HEADS,
            steps=2,
            sink=sink,
        )
    test = app(tmp_path, page="compare", url={"with": "gated"})
    assert "survives correction for all 6 cells" in text_of(test)
    dots = linked_of(test)[0].extras["gated − base"]["marks"]
    with open_store(tmp_path / "base.h5") as first, open_store(tmp_path / "gated.h5") as second:
        change = compare.difference(*(metrics.first_token_mean(store) for store in (first, second)))
        ids = list(first.samples["prompt_id"])
    whole, layers = frame_with(test, "low_effect"), frame_with(test, "mean_difference", "layer")
    expected = effects.overall_effect(change, ids)
    for name in ("mean_difference", "effect", "low", "high"):
        assert whole[name].item() == pytest.approx(expected[name], rel=1e-5)
        np.testing.assert_allclose(layers[name], effects.layer_effects(change, ids)[name], rtol=1e-5)
    assert f"gated: {expected['mean_difference']:+.3g} [{expected['low']:+.3g}" in text_of(test).replace(
        "\\", ""
    )
    assert {(dot["layer"], dot["head"]) for dot in dots} == {
        (a, b) for a in range(LAYERS) for b in range(HEADS)
    }


def test_too_few_prompts_mark_nothing_and_say_why(app, folder):
    assert "No cells are marked: 2 prompts" in text_of(app(folder, page="compare"))


def test_sidebar_filters_the_heatmap(app, folder):
    test = app(folder, page="sinks")
    test.sidebar.slider(key=f"steps-{STEPS}").set_value((1, 2)).run()
    test.sidebar.slider(key=f"layers-{LAYERS}").set_value((1, 2)).run()
    found = heatmap_of(test)
    assert set(found.index.get_level_values("layer")) == {1, 2}
    expected = expected_heatmap(folder / "demo-baseline.h5", slice(1, 3))
    np.testing.assert_allclose(found, expected.loc[found.index], rtol=1e-6)


def test_a_clicked_cell_filters_the_other_charts(app, folder):
    test = app(folder, page="sinks", cell=(2, 1))
    with open_store(folder / "demo-baseline.h5") as store:
        values = metrics.first_token_mean(store)[:, :, 2, 1].mean("sample")
        tokens = metrics.with_pads_averaged(metrics.token_mass(store, 0, layers=[2], heads=[1]))
        tokens = tokens.sort_values("mass", ascending=False)
    frames = frames_of(test)
    np.testing.assert_allclose(shown_table(test, "Over the denoising steps")["mean"], values, rtol=1e-12)
    figure = linked_of(test)[0]
    assert figure.chosen["pinned"] == [2, 1] and figure.chosen["layers"] is None
    np.testing.assert_allclose(figure.panels["demo-baseline"].sel(layer=2, head=1), values, rtol=1e-6)
    bars = next(frame for frame in frames if "token" in frame.columns)
    np.testing.assert_allclose(bars["mass"], tokens["mass"].head(len(bars)), rtol=1e-12)


def test_the_cell_can_be_forgotten(app, folder):
    test = app(folder, page="sinks", cell=(2, 1))
    button = next(button for button in test.sidebar.button if "layer 2" in button.label)
    button.click().run()
    assert test.session_state["cell"] is None
    assert not [button for button in test.sidebar.button if "layer 2" in button.label]


def test_a_cell_that_another_run_lacks_is_ignored(app, folder):
    app(folder, page="sinks", cell=(37, 37))


@pytest.mark.parametrize("target", ["group t5_pad", "group image", "word “apple”"])
def test_every_target_draws(app, folder, target):
    test = app(folder, page="sinks")
    test.sidebar.selectbox(key="target-demo-baseline-cond").set_value(target).run()
    assert not test.exception
    assert np.isfinite(heatmap_of(test)).all()


def test_uncond_without_token_masses_says_what_is_missing(app, tmp_path):
    import h5py

    path = make_store(tmp_path / "run.h5", layers=LAYERS, heads=HEADS, steps=STEPS)
    with h5py.File(path, "r+") as file:
        file["sinks/mass_image"][:, 1] = np.nan
    test = app(path, page="sinks", **{"branch-run": "uncond"})
    assert "cond branch only" in text_of(test)
    assert np.isfinite(heatmap_of(test)).all()


def test_maps_shows_the_words_of_both_runs(app, folder):
    test = app(folder, page="maps")
    assert len(test.get("image")) >= 4
    assert not test.info
    words = next(box for box in test.main.selectbox if box.label == "Word or token")
    assert any("apple" in option for option in words.options)
    test.select_slider[1].set_value(0).run()
    assert not test.exception
    test.main.toggle(key="plays").set_value(True).run()
    assert not test.exception


def test_maps_follow_the_clicked_layer(app, folder):
    test = app(folder, page="maps", cell=(2, 1))
    assert next(box for box in test.main.selectbox if box.label == "Layer").value == 2


def test_compare_difference_is_other_minus_reference(app, folder):
    test = app(folder, page="compare")
    with open_store(folder / "demo-baseline.h5") as first, open_store(folder / "demo-headwise.h5") as second:
        pairing = compare.pair(first, second)
        sides = compare.paired_values(first, second, pairing)
        expected = (
            metrics.by_layer_head(compare.difference(*sides))
            .set_index(["layer", "head"])["value"]
            .sort_index()
        )
    figure = linked_of(test)[0]
    assert list(figure.panels) == ["demo-baseline", "demo-headwise", "demo-headwise − demo-baseline"]
    np.testing.assert_allclose(figure.cells("demo-headwise − demo-baseline"), expected, rtol=1e-6)
    for side, name in zip(sides, ("demo-baseline", "demo-headwise"), strict=True):
        cells = metrics.by_layer_head(side).set_index(["layer", "head"])["value"].sort_index()
        np.testing.assert_allclose(figure.cells(name), cells, rtol=1e-6)
    assert len({one["scale"] for one in figure.facts["panels"][:2]}) == 1
    assert figure.facts["scales"]["differences"]["symmetric"]
    means = [float(side.mean()) for side in sides]
    said = f"is {means[0]:.3g} in demo-baseline and {means[1]:.3g} in demo-headwise"
    assert (
        said in said_first(test)[0] and "2 prompts, 2 pairs; with fewer than 6 prompts" in said_first(test)[0]
    )


def test_compare_lists_what_cannot_be_paired_with_the_field(app, folder):
    test = app(folder, page="compare")
    test.sidebar.multiselect(key="others-demo-baseline").set_value(["demo-headwise", "other"]).run()
    assert not test.exception
    table = test.dataframe[0].value
    assert set(table["run"]) == {"demo-baseline", "other"}
    assert table["field that differs"].str.contains("steps").all()


def test_compare_without_another_run_says_what_to_do(app, folder, tmp_path):
    again = shutil.copy(folder / "demo-baseline.h5", tmp_path / "again.h5")
    test = app(folder / "demo-baseline.h5", again, page="compare")
    assert test.session_state["view"].others == () and not linked_of(test)
    said = text_of(test).replace("\\", "")
    assert (
        "Compare with" in said and "tells anything beside demo-baseline: again is not known to differ" in said
    )


@pytest.mark.parametrize("page", ONE_OF_ALL)
def test_bad_files_get_one_sentence_without_server_paths(app, folder, tmp_path, page):
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "foreign.h5").write_text("a shopping list")
    whole = (folder / "other.h5").read_bytes()
    (tmp_path / "half.h5").write_bytes(whole[: len(whole) // 2])
    test = app(tmp_path, tmp_path / "missing.h5", page=page)
    words = text_of(test)
    for name in ("empty", "foreign", "half", "missing"):
        assert len(re.findall(rf"\*\*{name}\.h5\*\*: .+", words)) == 1, words
    assert str(tmp_path) not in words
    assert "There is no run to show yet" in words


@pytest.mark.parametrize("page", ONE_OF_ALL)
def test_good_files_are_shown_beside_bad_ones(app, folder, tmp_path, page):
    (tmp_path / "foreign.h5").write_text("a shopping list")
    test = app(folder, tmp_path, page=page)
    assert "foreign" in text_of(test)
    assert test.sidebar.selectbox(key="run").value == "demo-baseline"


def test_a_running_capture_is_shown_with_its_progress(app, tmp_path):
    out = tmp_path / "live.h5"
    parts = make_store(out, packed=False, planned=5)
    os.utime(parts / "run.json", (1_000, 1_000))
    for number, path in enumerate(sorted(parts.glob("*.h5")), 1):
        os.utime(path, (1_000 + 90 * number,) * 2)  # 40 an hour
    record_failure(parts, 3, "p003", 3, "not <b>finite</b>")
    with running(out):
        test = app(tmp_path)
    assert test.get("progress")[0].proto.text == "capturing: 2 of 5 samples · 40 an hour, 4 min left"
    assert "sample 3 could not be drawn: not " in text_of(test)
    assert len(test.get("image")) == 2
    assert " · the last one " in app(tmp_path).get("progress")[0].proto.text  # nobody draws it


def test_a_capture_without_a_sample_yet_is_told(app, tmp_path):
    begin_run(tmp_path / "live.h5", {"steps": 3}, 5)
    assert "0 of 5 samples" in text_of(app(tmp_path))


def test_an_empty_folder_says_what_to_do(app, tmp_path):
    assert "holds no .h5 store" in text_of(app(tmp_path)).replace("\\", "")


def test_without_a_path_runs_and_the_examples_are_opened(folder, tmp_path, monkeypatch):
    from dashboard import run_list

    (tmp_path / "data").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "data" / "example-baseline.h5").write_bytes((folder / "other.h5").read_bytes())
    (tmp_path / "runs" / "mine.h5").write_bytes((folder / "other.h5").read_bytes())
    monkeypatch.chdir(folder)
    found = run_list.find((), tmp_path)
    assert [run.name for run in found.runs] == ["mine", "example-baseline"]


def test_links_out_of_the_folder_are_refused(app, folder, tmp_path):
    inside, linked = tmp_path / "inside", tmp_path / "parts"
    make_store(inside / "mine.h5", layers=LAYERS, heads=HEADS, steps=STEPS)
    (inside / "link.h5").symlink_to(folder / "other.h5")
    make_store(linked / "run.h5", packed=False, planned=5)
    (inside / "folder.h5.parts").symlink_to(linked / "run.h5.parts")
    make_store(inside / "live.h5", packed=False, planned=5)
    (inside / "live.h5.parts" / "000004.h5").symlink_to(folder / "other.h5")
    make_store(inside / "told.h5", packed=False, planned=5)
    (inside / "told.h5.parts" / "run.json").unlink()
    (inside / "told.h5.parts" / "run.json").symlink_to(linked / "run.h5.parts" / "run.json")
    test = app(inside)
    words = text_of(test).replace("\\", "")
    for name in ("link.h5", "folder.h5.parts", "live.h5.parts", "told.h5.parts"):
        assert f"**{name}**: It is a link, or holds one, that leads out of the folder" in words
    assert test.sidebar.selectbox(key="run").options == ["mine"]


def test_a_link_that_was_given_by_name_is_opened(app, folder, tmp_path):
    (tmp_path / "link.h5").symlink_to(folder / "other.h5")
    assert app(tmp_path / "link.h5").sidebar.selectbox(key="run").value == "link"


def test_a_rewritten_file_is_read_anew(app, tmp_path):
    path = make_store(tmp_path / "run.h5", layers=LAYERS, heads=HEADS, steps=STEPS, seed=1)
    test = app(path, page="sinks")
    before = heatmap_of(test)
    path.unlink()
    make_store(path, layers=LAYERS, heads=HEADS, steps=STEPS, seed=2)
    test.run()
    assert not test.exception
    pd.testing.assert_series_equal(
        heatmap_of(test), expected_heatmap(path), rtol=1e-6, check_index_type=False
    )
    assert not np.allclose(before, heatmap_of(test))


def test_text_of_a_file_is_shown_as_text(app, tmp_path):
    path = make_store(tmp_path / "run.h5", prompts=("<b>bold</b> **stars** :red[red] $x$",), samples=1)
    for page in ("overview", "sinks", "tokens", "maps"):
        words = text_of(app(path, page=page))
        assert r"\*\*stars\*\*" in words
        assert "**stars**" not in words
        assert "<b>" not in words


@pytest.mark.parametrize(
    "pages",
    [
        ("sinks", "gates"),
        pytest.param(("overview", "tokens", "maps", "compare", "evidence", "files"), marks=pytest.mark.long),
    ],
    ids=["cells", "others"],
)
def test_a_large_model_draws(app, tmp_path, pages):
    path = make_store(tmp_path / "wide.h5", layers=38, heads=38, steps=2, samples=1, height=32, width=32)
    for page in pages:
        app(path, page=page)
