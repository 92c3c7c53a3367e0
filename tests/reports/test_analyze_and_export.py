"""analyze and export write exactly the files they promise, with the numbers of sd35h5.metrics."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from making.stores import make_store
from PIL import Image

from sd35h5 import metrics, open_store
from sd35h5.errors import StoreError
from sd35h5.reports import analyze, export
from sd35h5.store.writer import begin_run

LAYERS, HEADS, STEPS, SAMPLES = 3, 2, 4, 2


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_store(
        tmp_path_factory.mktemp("report") / "run.h5", samples=SAMPLES, layers=LAYERS, heads=HEADS, steps=STEPS
    )


def names(folder) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_analyze_writes_the_four_files(path, tmp_path):
    made = analyze.analyze(path, tmp_path / "out")
    expected = {"first_token_metrics.csv", "layer_head_heatmap.png", "timestep_curve.png", "group_mass.png"}
    assert names(tmp_path / "out") == expected == {file.name for file in made}
    for file in made[1:]:
        assert Image.open(file).width > 400


def test_the_csv_equals_the_metrics(path, tmp_path):
    analyze.analyze(path, tmp_path, first_token_index=4)
    table = pd.read_csv(tmp_path / "first_token_metrics.csv")
    assert list(table.columns) == [
        "timestep", "sigma", "step", "layer", "head", "sample", "prompt_id", "branch", "token",
        "first_token_mean", "first_token_share", "text_mass_fraction",
    ]  # fmt: skip
    assert len(table) == SAMPLES * STEPS * LAYERS * HEADS
    assert (table["token"] == 4).all()
    assert list(table["prompt_id"].unique()) == ["p0", "p1"]
    with open_store(path) as store:
        for name, compute in metrics.METRICS.items():
            values = compute(store, metrics.Target("token", 4))
            for row in table.sample(20, random_state=0).to_dict("records"):
                expected = float(values[row["sample"], row["step"], row["layer"], row["head"]])
                assert row[name] == pytest.approx(expected, rel=1e-8)
        timesteps = values["timestep"].values
    np.testing.assert_allclose(table.groupby("step")["timestep"].first(), timesteps, rtol=1e-6)


def test_both_branches_are_in_one_csv(path, tmp_path):
    analyze.analyze(path, tmp_path, branch="both")
    table = pd.read_csv(tmp_path / "first_token_metrics.csv")
    assert dict(table["branch"].value_counts()) == {
        name: SAMPLES * STEPS * LAYERS * HEADS for name in ("cond", "uncond")
    }


def test_per_prompt_adds_a_folder_a_prompt(path, tmp_path):
    analyze.analyze(path, tmp_path, per_prompt=True, value_col="text_mass_fraction")
    charts = {"layer_head_heatmap.png", "timestep_curve.png", "group_mass.png"}
    for prompt in ("p0", "p1"):
        assert names(tmp_path / "prompts" / prompt) == charts


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"value_col": "loudness"}, "loudness"), ({"branch": "skip"}, "skip"),
        ({"first_token_index": 4000}, "4000"), ({"first_token_index": -1}, "-1"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(path, tmp_path, options, words):
    with pytest.raises(StoreError, match=words):
        analyze.analyze(path, tmp_path, **options)


def test_out_dir_that_is_a_file_is_refused(path, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        analyze.analyze(path, tmp_path / "out")


def test_a_capture_without_a_sample_yet_is_told(tmp_path):
    begin_run(tmp_path / "live.h5", {"steps": 3}, 5)
    for command in (analyze.analyze, export.export):
        with pytest.raises(StoreError, match="no sealed sample yet"):
            command(tmp_path / "live.h5", tmp_path / "out")


def test_export_writes_images_and_tokens(path, tmp_path):
    export.export(path, tmp_path)
    assert names(tmp_path) == {"tokens.json", "images/000000.png", "images/000001.png"}
    with open_store(path) as store:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "images/000001.png")), store.image(1))
        table = store.tokens(0)
    document = json.loads((tmp_path / "tokens.json").read_text())
    assert document["prompts"][0] == "a red apple left of a cat"
    assert document["tokens"][0]["clip"] == table[table["encoder"] == "clip"]["text"].tolist()
    assert document["token_ids"][0]["t5"] == table[table["encoder"] == "t5"]["id_t5"].tolist()


def test_export_of_maps_writes_every_step_and_a_gif(path, tmp_path):
    export.export(path, tmp_path, maps=True)
    folder = tmp_path / "maps" / "000000" / "003_apple"
    assert names(folder) == {
        "step_000_map.png", "step_000_overlay.png", "step_002_map.png", "step_002_overlay.png",
        "steps.gif", "layers.png",
    }  # fmt: skip
    assert Image.open(folder / "step_000_overlay.png").size == (64, 96)
    assert Image.open(folder / "steps.gif").n_frames == 2


def test_names_from_a_file_never_leave_the_folder(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1, sample_id="../../evil", prompt_id="../p")
    export.export(path, tmp_path / "out")
    analyze.analyze(path, tmp_path / "out", per_prompt=True)
    assert {file.name for file in tmp_path.iterdir()} == {"run.h5", "out"}
    assert [file.stem[:5] for file in (tmp_path / "out" / "images").iterdir()] == ["evil-"]


def test_the_parquet_table_is_the_csv_table(path, tmp_path):
    analyze.analyze(path, tmp_path, branch="both")
    made = analyze.analyze(path, tmp_path, branch="both", format="parquet")
    assert made[0].name == "first_token_metrics.parquet"
    found, expected = pd.read_parquet(made[0]), pd.read_csv(tmp_path / "first_token_metrics.csv")
    assert list(found.columns) == list(expected.columns) and len(found) == len(expected)
    for name in found:
        if found[name].dtype.kind == "f":  # float32, as in the store
            np.testing.assert_allclose(found[name], expected[name], rtol=1.2e-7)
        else:
            assert list(found[name]) == list(expected[name])
