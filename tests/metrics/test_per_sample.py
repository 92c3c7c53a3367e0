"""Two numbers of each sample against each other: the right numbers, correlations by hand, what Compare draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making.pages import frames_of, text_of
from making.stores import make_store

from sd35h5 import StoreError, metrics, open_store
from sd35h5.figures.scatter_chart import scatter as figure
from sd35h5.metrics import per_sample
from sd35h5.store.score_joining import join_scores

LAYERS, HEADS, STEPS, SAMPLES = 3, 2, 4, 5
PROMPTS = ("a red car", "a <b>blue</b> cat", "two dogs", "the sun", "a hat")
SCORES = (0.3, None, 0.25, 0.75, 0.5)


def join(run: Path, values: tuple[float | None, ...]) -> None:
    rows = [f"{i:06d},{'' if value is None else value}" for i, value in enumerate(values)]
    table = run.with_suffix(".csv")
    table.write_text("\n".join(["sample_id,clip_score", *rows]))
    join_scores(run, table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A baseline and a gated run that pair, both with scores."""
    folder = tmp_path_factory.mktemp("scatter")
    shape = {
        "layers": LAYERS, "heads": HEADS, "steps": STEPS, "samples": SAMPLES, "prompts": PROMPTS,
    }  # fmt: skip
    for name, sink, seed in (("baseline", 4.0, 1), ("gated", 2.0, 2)):
        join(make_store(folder / f"{name}.h5", sink=sink, seed=seed, **shape), SCORES[:: 3 - 2 * seed])
    return folder


def ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks, by counting."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def test_a_sample_has_its_score_or_the_mean_of_the_chosen_part(folder):
    with open_store(folder / "baseline.h5") as store:
        found = per_sample.sample_values(store, "scores/clip_score", samples=[3, 1, 0])
        np.testing.assert_array_equal(found, np.float32([0.75, np.nan, 0.3]))
        found = per_sample.sample_values(
            store, "first_token_mean", samples=[4, 2], layers=[1, 2], heads=[0], steps=[3]
        )
        mass = store.read("sinks/mass_group", branch="cond", query="image", group="clip_bos").values
    np.testing.assert_allclose(found, mass[[4, 2], 3, 1:, 0].mean(-1))


def test_a_metric_of_some_steps_takes_those_that_were_asked_for(folder):
    with open_store(folder / "baseline.h5") as store:
        found = per_sample.sample_values(store, "top_1", steps=[1, 2, 3])
        mass = store.read("topk/top_mass", branch="cond", query="image", rank=0).values
        np.testing.assert_allclose(found, mass[:, 1].mean((-1, -2)), rtol=1e-6)  # captured at steps 0 and 2
        with pytest.raises(StoreError, match="captured at the steps 0, 2: choose a range that holds one"):
            per_sample.sample_values(store, "top_1", steps=[1, 3])


def test_what_is_not_there_is_told(folder):
    with open_store(folder / "baseline.h5") as store:
        with pytest.raises(StoreError, match="^baseline has no scores/taste: join it with"):
            per_sample.sample_values(store, "scores/taste")
        with pytest.raises(StoreError, match="no metric 'depth'"):
            per_sample.sample_values(store, "depth")


def test_scores_come_first_among_what_can_be_chosen(folder):
    with open_store(folder / "baseline.h5") as store:
        names = per_sample.quantities([store])
    assert next(iter(names)) == "scores/clip_score" and names["scores/clip_score"] == "score: clip_score"
    assert names["first_token_mean"] == "attention mass (0..1)"


def test_correlations_equal_those_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12).round(1)
    y = x**3 + rng.normal(size=12).round(1)
    x[3] = x[7]  # a tie
    table = pd.DataFrame({"run": "a", "prompt_id": list("ppqqrrsstt") + ["u", "v"], "x": x, "y": y})
    table.loc[len(table)] = ["a", "w", np.nan, 100.0]
    table.loc[len(table)] = ["b", "w", 1.0, 2.0]
    first, second = per_sample.correlations(table).to_dict("records")
    assert (first["run"], first["samples"], first["prompts"]) == ("a", 12, 7)
    assert first["pearson"] == pytest.approx(pearson(x, y))
    assert first["spearman"] == pytest.approx(pearson(ranks(x), ranks(y)))
    assert second["samples"] == 1 and np.isnan(second["pearson"]) and np.isnan(second["spearman"])
    assert "Pearson r = " in per_sample.told(
        pd.Series(first)
    ) and "n = 12 samples of 7 prompts" in per_sample.told(first)
    assert per_sample.told(second) == "b: n = 1 sample of 1 prompt, a correlation needs three samples"


def test_what_does_not_vary_correlates_with_nothing():
    table = pd.DataFrame({"run": "a", "prompt_id": list("pqrs"), "x": 1.0, "y": [1.0, 2.0, 3.0, 4.0]})
    (row,) = per_sample.correlations(table).to_dict("records")
    assert np.isnan(row["pearson"]) and "needs values that differ" in per_sample.told(row)


def test_the_figure_leaves_out_what_has_no_number_and_rings_the_shown_sample():
    frame = pd.DataFrame(
        {"run": ["a", "a", "b"], "sample": [0, 1, 0], "seed": 0, "prompt": "x", "x": [1, np.nan, 2], "y": 1.0}
    )
    drawn = figure(frame, "one", "two", chosen=0, select="sample")
    assert len(drawn.layer) == 2 and drawn.data["sample"].tolist() == [0, 0]
    assert len(figure(frame, "one", "two", chosen=1).layer) == 1


def test_compare_draws_the_scores_of_the_pairs_and_says_how_they_correlate(app, folder):
    test = app(folder, page="compare", url={"cell": "2.1", "with": "gated"})
    points = next(frame for frame in frames_of(test) if {"x", "y", "prompt"} <= set(frame.columns))
    with open_store(folder / "gated.h5") as store:
        mass = store.read("sinks/mass_group", branch="cond", query="image", group="clip_bos").values
        scores = store.samples["clip_score"].to_numpy()
    own = points[points["run"] == "gated"]
    there = np.isfinite(scores)
    np.testing.assert_allclose(own["x"], mass[there, :, 2, 1].mean(-1))
    np.testing.assert_allclose(own["y"], scores[there])
    r = pearson(mass[there, :, 2, 1].mean(-1), scores[there].astype(float))
    assert f"gated: Pearson r = {r:.2f}".replace("-", "−") in text_of(test).replace("\\", "")
    assert "n = 4 samples of 4 prompts" in text_of(test)


def test_any_two_numbers_can_be_chosen_and_the_url_keeps_them(app, folder):
    test = app(folder, page="compare", url={"scatter-x": "gini", "scatter-y": "entropy"})
    points = next(frame for frame in frames_of(test) if {"x", "y", "prompt"} <= set(frame.columns))
    with open_store(folder / "baseline.h5") as store:
        expected = metrics.entropy(store, normalised=True).mean(["step", "layer", "head"])
    np.testing.assert_allclose(points.loc[points["run"] == "baseline", "y"], expected)
    assert test.query_params["scatter-x"] == "gini"


def test_one_run_alone_has_its_scatter(app, folder):
    test = app(folder / "baseline.h5", page="compare")
    assert "Choose at least one run" in text_of(test)
    points = next(frame for frame in frames_of(test) if {"x", "y", "prompt"} <= set(frame.columns))
    assert sorted(points["sample"]) == [0, 2, 3, 4]


def test_a_run_without_the_score_is_told_and_the_other_is_drawn(app, folder, tmp_path):
    for name in ("baseline", "gated"):
        (tmp_path / f"{name}.h5").write_bytes((folder / f"{name}.h5").read_bytes())
    table = tmp_path / "table.csv"
    table.write_text("sample_id,taste\n000000,1\n000001,2\n000002,4\n")
    join_scores(tmp_path / "baseline.h5", table)
    test = app(tmp_path, page="compare", url={"scatter-y": "scores/taste", "with": "gated"})
    points = next(frame for frame in frames_of(test) if {"x", "y", "prompt"} <= set(frame.columns))
    assert set(points["run"]) == {"baseline"} and sorted(points["y"]) == [1, 2, 4]
    assert "gated has no scores/taste: join it with" in text_of(test).replace("\\", "")


def test_scores_that_are_joined_while_the_page_is_open_appear(app, folder, tmp_path):
    run = tmp_path / "baseline.h5"
    run.write_bytes((folder / "baseline.h5").read_bytes())
    test = app(run, page="compare")
    (tmp_path / "table.csv").write_text("sample_id,taste\n000000,1\n000003,2\n")
    join_scores(run, tmp_path / "table.csv")
    test.run()
    assert "score: taste" in next(box for box in test.selectbox if box.label == "y axis").options
