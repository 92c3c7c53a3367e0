"""Numbers made of a few samples at a time are those of all samples at once."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from making.stores import make_store

from sd35h5 import metrics, open_store
from sd35h5.errors import NothingMeasuredError, StoreError
from sd35h5.metrics import averaging, catalogue, gate_statistics, piecewise, sink_rates, targets
from sd35h5.metrics.targets import Target

SAMPLES = 7
PROMPT_IDS = ["p0", "p0", "p0", "p1", "p1", "p2", "p2"]


@pytest.fixture(autouse=True)
def three_at_once(monkeypatch):
    monkeypatch.setattr(piecewise, "AT_ONCE", 3)
    monkeypatch.setattr(targets, "TABLES_AT_ONCE", 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = make_store(
        tmp_path_factory.mktemp("pieces") / "run.h5", samples=SAMPLES, gates=True, precision="exact"
    )
    with open_store(path) as store:
        yield store


@pytest.mark.parametrize("name", ["first_token_share", "top_5", "value_norm_ratio", "gini"])
def test_a_measure_in_pieces_is_the_measure(store, name):
    whole = catalogue.computed(store, name)
    found = piecewise.in_pieces(lambda some: catalogue.computed(store, name, samples=some), range(SAMPLES))
    assert found.dtype == np.float32 and found.dims == whole.dims
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    for coord in whole.coords:
        np.testing.assert_array_equal(found[coord], whole[coord])


def test_samples_without_a_word_are_nan_and_those_with_it_are_kept(store):
    word = Target("word", "apple")  # of every third prompt
    whole = metrics.first_token_mean(store, word)
    chosen = [1, 2, 4, 0, 5]
    found = piecewise.in_pieces(lambda some: metrics.first_token_mean(store, word, samples=some), chosen)
    np.testing.assert_allclose(found, whole.sel(sample=chosen), rtol=1e-6)
    assert np.isnan(found.sel(sample=[1, 2, 4, 5])).all() and np.isfinite(found.sel(sample=0)).all()


def test_what_no_piece_has_is_refused_and_other_errors_go_through(store):
    with pytest.raises(NothingMeasuredError, match="pineapple"):
        piecewise.in_pieces(
            lambda some: metrics.first_token_mean(store, Target("word", "pineapple"), samples=some), range(5)
        )
    with pytest.raises(StoreError, match="no sample was chosen"):
        piecewise.in_pieces(lambda some: xr.DataArray(some, dims="sample"), [])
    with pytest.raises(ZeroDivisionError):
        piecewise.in_pieces(lambda some: 1 / 0, range(5))


def test_words_of_many_samples_are_those_of_each_table(store):
    found = targets.token_words(store, "cond", range(SAMPLES))
    for sample in range(SAMPLES):
        table = targets.with_words(store.tokens(sample), store.samples["prompt"][sample])
        assert found[sample].tolist() == table["word_text"].tolist()
        for row in table[table["word_text"] != ""].itertuples():  # pieces of a word lie beside each other
            own = table[(table["encoder"] == row.encoder) & (table["word"] == row.word)]
            assert row.word_text == "".join(targets.clean(text) for text in own["text"]).lower()


def test_the_mean_of_float32_is_that_of_float64_and_leaves_nan_out():
    rng = np.random.default_rng(0)
    values = xr.DataArray(rng.random((50, 40, 3), np.float32) + 1000, dims=("sample", "step", "head"))
    exact = values.values.astype(np.float64).mean((0, 1))
    np.testing.assert_allclose(averaging.finite_mean(values, ["sample", "step"]), exact, rtol=1e-14)
    values[4, :, 1] = np.nan
    kept = np.delete(values.values.astype(np.float64), 4, axis=0).mean((0, 1))
    found = averaging.finite_mean(values, ["sample", "step"]).values
    np.testing.assert_allclose(found, [exact[0], kept[1], exact[2]], rtol=1e-14)


def test_neighbours_are_looked_at_and_others_are_picked(store):
    values = metrics.text_mass(store)
    part = averaging.within(values, layers=[1, 2], heads=[0, 1], steps=[1, 2, 3])
    assert np.shares_memory(part.values, values.values)
    apart = averaging.within(values, layers=[2, 0], steps=[0, 3])
    np.testing.assert_array_equal(apart, values.values[:, [0, 3]][:, :, [2, 0]])


def test_thresholds_exceeded_are_counted_once_and_their_curve_follows_any_choice(store):
    mass = metrics.first_token_mean(store).copy()
    mass[0, 1] = np.nan
    counts = sink_rates.exceeded(mass)
    assert counts.dtype == np.uint8
    part = {"layer": [0, 2], "step": [1, 2]}
    found = sink_rates.curve_of_exceeded(counts.isel(part), PROMPT_IDS)
    for row in found.iloc[::6].itertuples():
        each = [np.mean(one[np.isfinite(one)] > row.epsilon) for one in mass.isel(part).values]
        expected = np.mean(
            [
                np.mean([r for r, p in zip(each, PROMPT_IDS, strict=True) if p == q])
                for q in ("p0", "p1", "p2")
            ]
        )
        assert row.mean == pytest.approx(expected)


def test_gates_of_groups_are_means_over_prompts_of_means_over_their_samples(store):
    whole = gate_statistics.group_gates(store)
    found = gate_statistics.mean_group_gates(store, "cond", range(SAMPLES), PROMPT_IDS)
    each = [
        whole.isel(sample=[i for i, p in enumerate(PROMPT_IDS) if p == q]).mean("sample")
        for q in ("p0", "p1", "p2")
    ]
    np.testing.assert_allclose(found, xr.concat(each, "prompt").mean("prompt"), rtol=1e-6)


def test_heads_of_some_steps_are_those_of_all_values_of_these_steps(store):
    found = gate_statistics.heads_of_steps(gate_statistics.gate_steps(store), [0, 2]).set_index(
        ["layer", "head"]
    )
    for name in ("mean", "std", "below_0_1"):
        values = store.read(f"gates/{name}", branch="cond", query="image", step=[0, 2]).mean(
            ["sample", "step"]
        )
        np.testing.assert_allclose(found[name], values.values.ravel(), rtol=1e-6)
    least = store.read("gates/min", branch="cond", query="image", step=[0, 2]).min(["sample", "step"])
    np.testing.assert_allclose(found["min"], least.values.ravel())


def test_contributions_of_pieces_add_up_to_those_of_all(store):
    keys = gate_statistics.top_keys(store)
    added = store.read("gates/contribution", branch="cond", query="image")
    whole = gate_statistics.contribution_shares(keys, added)
    found = gate_statistics.shares_of_sums(
        gate_statistics.summed_contributions(store, "cond", range(SAMPLES))
    )
    assert found["kind"].tolist() == whole["kind"].tolist()
    np.testing.assert_allclose(found[["mass", "added"]], whole[["mass", "added"]])
    at = {"layer": [1], "top_step": [0]}
    some = gate_statistics.shares_of_sums(gate_statistics.contribution_sums(keys, added).isel(at))
    np.testing.assert_allclose(
        some["mass"], gate_statistics.contribution_shares(keys.isel(at), added.isel(at))["mass"]
    )
