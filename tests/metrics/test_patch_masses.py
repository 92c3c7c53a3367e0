"""Numbers over image keys against loops over the stored patches; which measures a file holds, and what is said else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from making.pages import linked_of, text_of
from making.stores import make_store

from sd35h5 import StoreError, compare, open_store
from sd35h5.comparing import comparison
from sd35h5.metrics import catalogue, patch_masses, per_sample
from sd35h5.metrics.catalogue import MEASURES

LAYERS, HEADS, STEPS, ROWS, COLUMNS = 3, 2, 4, 6, 4
TOP_STEPS = [0, 2]
NEW = ("entropy_all", "patch_top", "patch_gini", "border_share")
OF_SECOND = ("attn2_top_1", "attn2_entropy", "attn2_patch_gini", "attn2_border_share")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    shape = {"layers": LAYERS, "heads": HEADS, "steps": STEPS}
    make_store(folder / "atlas.h5", atlas=True, second=True, precision="exact", **shape)
    make_store(folder / "plain.h5", **shape)
    return folder


@pytest.fixture
def store(folder):
    with open_store(folder / "atlas.h5") as opened:
        yield opened


@pytest.fixture(scope="module")
def regrouped(tmp_path_factory):
    """A store whose attn2 has five heads of its own, of two of the joint attention."""
    path = tmp_path_factory.mktemp("regrouped") / "regrouped.h5"
    shape = {"layers": LAYERS, "heads": HEADS, "steps": STEPS}
    with open_store(make_store(path, atlas=True, second_heads=5, precision="exact", **shape)) as opened:
        yield opened


def gini_by_pairs(mass: np.ndarray) -> float:
    flat = mass.ravel()
    return float(np.abs(flat[:, None] - flat[None]).mean() / (2 * flat.mean()))


def ring(mass: np.ndarray) -> float:
    inner = sum(mass[y, x] for y in range(1, ROWS - 1) for x in range(1, COLUMNS - 1))
    return float(1 - inner / mass.sum())


BY_HAND = {"patch_top": np.max, "patch_gini": gini_by_pairs, "border_share": ring}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("attention", ["joint", "attn2"])
def test_numbers_over_patches_equal_loops_over_the_stored_masses(store, name, attention):
    found = getattr(patch_masses, name)(store, samples=[1, 0], attention=attention)
    group = "atlas" if attention == "joint" else "attn2"
    stored = store.read(f"{group}/mass_patch", branch="cond", query="image").values
    assert found.dims == ("sample", "step", "layer", "head") and found["step"].values.tolist() == TOP_STEPS
    assert found["sample"].values.tolist() == [1, 0]
    layers = LAYERS if attention == "joint" else LAYERS - 1
    for sample, step, layer, head in np.ndindex(2, 2, layers, HEADS):
        expected = BY_HAND[name](stored[1 - sample, step, layer, head].astype(float))
        assert float(found[sample, step, layer, head]) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(found[:, :, :layers]).all() and np.isnan(found[:, :, layers:]).all()


@pytest.mark.parametrize(
    ("attention", "keys"), [("joint", 77 + 16 + ROWS * COLUMNS), ("attn2", ROWS * COLUMNS)]
)
def test_entropy_over_all_keys_is_that_of_the_captured_steps(store, attention, keys):
    name = "sinks/entropy_all" if attention == "joint" else "attn2/entropy_all"
    stored = store.read(name, branch="cond", query="image").values
    found = patch_masses.entropy_all(store, attention=attention)
    np.testing.assert_allclose(found, stored[:, TOP_STEPS], rtol=1e-6)
    share = patch_masses.entropy_all(store, normalised=True, attention=attention)
    np.testing.assert_allclose(share, stored[:, TOP_STEPS] / np.log(keys), rtol=1e-6)
    assert float(share.max()) < 1


def test_measures_of_an_attn2_with_heads_of_its_own_are_over_those(regrouped):
    read = {"branch": "cond", "query": "image"}
    stored = regrouped.read("attn2_regrouped/mass_patch", **read).values
    named = {"patch_gini": gini_by_pairs, "border_share": ring}
    for name, by_hand in named.items():
        found = catalogue.computed(regrouped, f"attn2_{name}")
        assert found.dims == ("sample", "step", "layer", "head") and found["head"].values.tolist() == [
            *range(5)
        ]
        for place in [(0, 1, 0, 4), (1, 0, 1, 3)]:
            assert float(found[place]) == pytest.approx(by_hand(stored[place].astype(float)), rel=1e-6)
    entropy = regrouped.read("attn2_regrouped/entropy_all", **read).values[:, TOP_STEPS]
    found = catalogue.computed(regrouped, "attn2_entropy")
    np.testing.assert_allclose(found, entropy / np.log(ROWS * COLUMNS), rtol=1e-6)
    heaviest = stored.reshape(*stored.shape[:4], -1).max(-1)
    np.testing.assert_allclose(catalogue.computed(regrouped, "attn2_top_1"), heaviest, rtol=1e-6)
    assert not set(OF_SECOND) & set(catalogue.absent(regrouped))
    assert set(OF_SECOND) <= set(per_sample.quantities([regrouped]))
    assert catalogue.computed(regrouped, "patch_top").sizes["head"] == HEADS


def test_attn2_of_other_heads_is_not_compared(store, regrouped):
    pairing = compare.pair(store, regrouped)
    assert len(pairing.pairs) == 2  # a file made by hand: captures of another layout pair by no key
    with pytest.raises(StoreError, match=r"= \(2, 3, 2\), .* has \(2, 3, 5\)"):
        compare.paired_values(store, regrouped, pairing, "attn2_entropy")
    found = comparison.measure({"one": store, "other": regrouped}, comparison.Question(resamples=9))
    assert set(OF_SECOND) <= set(found.skipped["measure"]) and "patch_gini" in set(found.overall["measure"])


def test_masses_of_patches_sum_to_the_image_self_mass(store):
    total = store.read("atlas/mass_patch", branch="cond", query="image").sum(("patch_y", "patch_x"))
    self_mass = catalogue.computed(store, "image_self_mass").sel(step=TOP_STEPS)
    np.testing.assert_allclose(total, self_mass.values, rtol=1e-5)


def test_the_heaviest_patch_of_the_second_attention_is_its_heaviest_key(store):
    np.testing.assert_allclose(
        catalogue.computed(store, "attn2_top_1"), patch_masses.patch_top(store, attention="attn2"), rtol=1e-6
    )


def test_uniform_attention_is_told_for_each_measure(store):
    keys = store.sizes["token"] + ROWS * COLUMNS
    assert catalogue.uniform_value(store, "patch_top") == pytest.approx(1 / keys)
    assert catalogue.uniform_value(store, "attn2_top_1") == pytest.approx(1 / (ROWS * COLUMNS))
    assert catalogue.uniform_value(store, "border_share") == pytest.approx(ring(np.ones((ROWS, COLUMNS))))
    assert (
        catalogue.uniform_value(store, "patch_gini") == 0
        and catalogue.uniform_value(store, "entropy_all") == 1
    )
    assert catalogue.uniform_value(store, "text_mass_fraction") == pytest.approx(1 / store.sizes["token"])
    assert catalogue.uniform_value(store, "sink_rate") is None


def test_what_a_file_lacks_is_known_and_refused_with_what_to_do(folder):
    with open_store(folder / "plain.h5") as plain:
        assert set(catalogue.absent(plain)) == {*NEW, *OF_SECOND}
        for name, words in (("patch_gini", "--atlas"), ("attn2_entropy", "second, image-only attention")):
            with pytest.raises(StoreError, match=f"^plain does not tell the .*{words}"):
                catalogue.computed(plain, name)
        with pytest.raises(StoreError, match="no attention 'third'"):
            patch_masses.patch_top(plain, attention="third")
    with open_store(folder / "atlas.h5") as store:
        assert catalogue.absent(store) == {}
        with pytest.raises(StoreError, match="no masses of patches of branch 'uncond'"):
            catalogue.computed(store, "patch_top", branch="uncond")


def test_every_measure_that_both_runs_hold_is_compared_and_the_others_are_told(folder):
    with open_store(folder / "atlas.h5") as first, open_store(folder / "plain.h5") as second:
        found = comparison.measure({"atlas": first, "again": first}, comparison.Question(resamples=100))
        assert set(found.overall["measure"]) == set(MEASURES) and found.skipped.empty
        found = comparison.measure({"atlas": first, "plain": second}, comparison.Question(resamples=100))
        assert set(found.skipped["measure"]) == {*NEW, *OF_SECOND}
        with pytest.raises(StoreError, match="^plain does not tell the Gini coefficient over patches"):
            comparison.measure({"a": first, "b": second}, comparison.Question("patch_gini", resamples=100))


@pytest.mark.parametrize(
    "name",
    [
        "gini", "sink_rate_uniform", NEW[0], OF_SECOND[0],
        *(pytest.param(name, marks=pytest.mark.long) for name in (*NEW[1:], *OF_SECOND[1:], "top_1")),
    ],
)  # fmt: skip
def test_the_sinks_page_draws_every_metric_that_the_file_holds(app, folder, name):
    test = app(folder / "atlas.h5", page="sinks", url={"metric": name, "steps": "1-3"})
    found = linked_of(test)[0].cells()
    with open_store(folder / "atlas.h5") as store:
        values = catalogue.computed(store, name)
    values = values.isel(step=values["step"].values >= 1).mean(["sample", "step"])
    for layer, head in np.ndindex(LAYERS, HEADS):
        np.testing.assert_allclose(found[layer, head], values[layer, head], rtol=1e-6)
    assert "metrics are not in this file" not in [one.label for one in test.expander]


def test_metrics_that_the_file_lacks_are_not_offered_and_the_page_says_why(app, folder):
    test = app(folder / "plain.h5", page="sinks", url={"metric": "patch_gini"})
    assert MEASURES["patch_gini"].label not in next(b for b in test.selectbox if b.label == "Metric").options
    words = text_of(test).replace("\\", "")
    assert "The link also asked for another metric" in words
    assert (
        "Gini coefficient over patches, part of the image's mass on its border: capture it with --atlas"
        in words
    )


def test_steps_at_which_a_metric_was_not_captured_are_told(app, folder):
    test = app(folder / "atlas.h5", page="sinks", url={"metric": "patch_top", "steps": "1"})
    assert "captured at the steps 0, 2: choose a range that holds one" in text_of(test).replace("\\", "")


def test_a_metric_stays_chosen_from_run_to_run_where_both_hold_it(app, folder):
    test = app(folder, page="sinks", url={"run": "plain", "metric": "gini"})
    test.sidebar.selectbox(key="run").set_value("atlas").run()
    assert test.session_state["view"].metric == "gini"
    box = next(box for box in test.selectbox if box.label == "Metric")
    box.set_value("patch_top").run()
    test.sidebar.selectbox(key="run").set_value("plain").run()
    assert not test.exception and test.session_state["view"].metric == "first_token_mean"
