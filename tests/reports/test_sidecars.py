"""Sidecars: what pandas and DuckDB read in them is what the store, read with h5py, holds."""

from __future__ import annotations

from pathlib import Path

import duckdb
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.__main__ import main
from sd35h5.comparing import comparison
from sd35h5.errors import StoreError
from sd35h5.reports import parquet_files, sidecars

LAYERS, HEADS, STEPS, SAMPLES, TEXT = 3, 2, 4, 6, 77 + 8
DOCS = Path(__file__).parents[2] / "docs" / "using-metrics.md"
PROMPTS = tuple(f"{colour} {thing}" for colour in ("red", "blue") for thing in ("cat", "dog", "car", "hat"))
SHAPE = {
    "layers": LAYERS,
    "heads": HEADS,
    "steps": STEPS,
    "prompts": PROMPTS,
    "height": 48,
    "width": 32,
    "t5_length": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sidecars")


@pytest.fixture(scope="module")
def runs(folder):
    plain = make_store(folder / "plain.h5", samples=SAMPLES, model_id="/home/someone/models/base", **SHAPE)
    gated = make_store(folder / "gated.h5", samples=SAMPLES, gates=True, sink=1.0, seed=5, **SHAPE)
    return plain, gated


@pytest.fixture(scope="module")
def one(folder, runs):
    with open_store(runs[0]) as store:
        sidecars.write_sidecars({store.name: store}, folder / "one")
    return folder / "one"


@pytest.fixture(scope="module")
def both(folder, runs):
    assert main(["export", "--parquet", *map(str, runs), "--out_dir", str(folder / "both")]) == 0
    return folder / "both"


def test_one_run_has_three_tables_and_two_have_effects_too(one, both):
    three = {"samples.parquet", "tokens.parquet", "first_token.parquet"}
    assert {file.name for file in one.iterdir()} == three
    assert {file.name for file in both.iterdir()} == {*three, "effects.parquet"}


def test_the_first_token_has_its_mass_of_the_file_in_every_cell(one, runs):
    table = pd.read_parquet(one / "first_token.parquet")
    assert len(table) == SAMPLES * 2 * STEPS * LAYERS * HEADS
    assert not table.duplicated(["sample", "branch", "step", "layer", "head"]).any()
    with h5py.File(runs[0]) as file:
        mass = file["sinks/mass_group"][:, :, 0].astype(np.float64)  # sample branch group step layer head
        sigma = file["sigma"][:]
    branch = table["branch"].map({"cond": 0, "uncond": 1})
    where = (table["sample"], branch, slice(None), table["step"], table["layer"], table["head"])
    groups = mass[where]  # row, group
    text = groups[:, :8].sum(1)
    np.testing.assert_array_equal(table["first_token_mean"], groups[:, 0].astype(np.float32))
    np.testing.assert_allclose(table["text_mass_fraction"], groups[:, 0] / text, rtol=1e-6)
    np.testing.assert_allclose(table["first_token_share"], groups[:, 0] / (text / TEXT), rtol=1e-6)
    np.testing.assert_array_equal(table["sigma"], sigma[table["step"]])


def test_the_query_of_the_docs_finds_the_heads_that_the_file_holds(one, runs):
    query = DOCS.read_text(encoding="utf-8").split("```sql\n")[1].split("```")[0]
    asked = duckdb.sql(query.replace("tables/", f"{one}/")).fetchall()
    with h5py.File(runs[0]) as file:
        mass = file["sinks/mass_group"][:, 0, 0, 0].astype(np.float64).mean(1)  # sample layer head
    order = np.argsort(-mass, axis=None)[: len(asked)]
    places = zip(*np.unravel_index(order, mass.shape), strict=True)
    assert [row[:3] for row in asked] == [(PROMPTS[sample], layer, head) for sample, layer, head in places]
    np.testing.assert_allclose([row[3] for row in asked], np.take(mass, order), rtol=1e-6)


def test_tokens_have_their_texts_and_masses_of_the_file(one, runs):
    table = pd.read_parquet(one / "tokens.parquet")
    assert len(table) == SAMPLES * 2 * TEXT
    own = table[(table["sample"] == 3) & (table["branch"] == "cond")]
    with h5py.File(runs[0]) as file:
        text = [each.decode() for each in file["tokens/token_text"][3, 0]]
        mass = file["sinks/mass_image"][3, 0].astype(np.float64).mean((0, 1, 2))
        ids = file["tokens/token_id"][3, 0]
        words, starts = file["tokens/token_word"][3, 0], file["tokens/token_char_start"][3, 0]
    assert own["text"].tolist() == text and own["token"].tolist() == list(range(TEXT))
    np.testing.assert_allclose(own["mass"], mass, rtol=1e-6)
    np.testing.assert_array_equal(own[["id_clip_l", "id_clip_g", "id_t5"]].to_numpy().T, ids)
    np.testing.assert_array_equal(own["word"], words)
    np.testing.assert_array_equal(own["char_start"], starts)
    other = duckdb.sql(
        f"select count(mass), count(*) from '{one}/tokens.parquet' where branch = 'uncond'"
    ).fetchall()[0]
    assert other == (0, SAMPLES * TEXT)  # not measured per token: null, not 0 and not NaN


def test_effects_are_those_of_compare(both, runs):
    table = pd.read_parquet(both / "effects.parquet")
    assert len(table) == 3 * LAYERS * HEADS and set(table["run"]) == {"gated"}
    with open_store(runs[0]) as plain, open_store(runs[1]) as gated:
        expected = comparison.measure({"plain": plain, "gated": gated}, comparison.Question()).cells
    own = table[table["metric"] == "first_token_mean"].reset_index(drop=True)
    for name in expected.columns.drop("run"):
        np.testing.assert_allclose(own[name], expected[name], rtol=2e-5, err_msg=name)
    assert (own["prompts"] == SAMPLES).all() and own["q"].notna().all()


def test_several_runs_lie_below_each_other(both):
    counts = duckdb.sql(
        f"select run, count(*) from '{both}/first_token.parquet' group by run order by run"
    ).fetchall()
    assert counts == [(run, SAMPLES * 2 * STEPS * LAYERS * HEADS) for run in ("gated", "plain")]
    samples = pd.read_parquet(both / "samples.parquet")
    assert samples.groupby("run")["gate_type"].first().to_dict() == {
        "gated": "headwise",
        "plain": "none",
    }


def test_a_model_is_named_without_the_folder_it_was_in(one):
    assert set(pd.read_parquet(one / "samples.parquet")["model"]) == {"base"}


def test_columns_are_numbers_and_texts_that_say_what_they_are(both):
    for file in both.iterdir():
        schema = pq.read_schema(file)
        assert {str(field.type) for field in schema} <= {"string", "int32", "int64", "float"}
        assert schema.metadata[b"title"] and all(field.metadata[b"long_name"] for field in schema)
        assert all(field.metadata[b"units"] == b"1" for field in schema if str(field.type) == "float")


def test_joined_scores_are_columns_of_the_samples(tmp_path, capsys):
    path = make_store(tmp_path / "run.h5", samples=2)
    (tmp_path / "scores.csv").write_text("sample_id,clip\n000001,0.25\n")
    assert main(["scores", str(path), str(tmp_path / "scores.csv")]) == 0
    assert main(["export", "--parquet", str(path), "--out_dir", str(tmp_path / "out")]) == 0
    found = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    assert found["clip"].isna().tolist() == [True, False] and found["clip"][1] == 0.25


def test_what_was_not_measured_has_no_row(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1, nan="all", t5_length=8)
    with open_store(path) as store:
        sidecars.write_sidecars({"run": store}, tmp_path / "out")
    assert len(pd.read_parquet(tmp_path / "out" / "first_token.parquet")) == 0
    assert len(pd.read_parquet(tmp_path / "out" / "tokens.parquet")) == 2 * TEXT


def test_runs_that_pair_in_nothing_are_refused_before_anything_is_written(runs, tmp_path):
    other = make_store(tmp_path / "other.h5", samples=1, prompts=("something else",))
    with open_store(runs[0]) as first, open_store(other) as second:
        with pytest.raises(StoreError, match="no sample of other pairs with one of plain"):
            sidecars.write_sidecars({"plain": first, "other": second}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_are_of_one_run(runs, tmp_path, capsys):
    assert main(["export", *map(str, runs), "--out_dir", str(tmp_path / "out")]) == 1
    assert "--parquet" in capsys.readouterr().err


def test_a_row_group_holds_whole_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "ROWS", 25)
    columns = [parquet_files.Column("sample", "int32", "sample")]
    tables = (pd.DataFrame({"sample": [n] * 10}) for n in range(7))
    path = parquet_files.write_parquet(tables, columns, tmp_path / "t.parquet", "t")
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(n)["sample"].to_pylist() for n in range(file.num_row_groups)]
    assert [sorted(set(group)) for group in groups] == [[0, 1, 2], [3, 4, 5], [6]]
    assert sum(groups, []) == [n for n in range(7) for _ in range(10)]
