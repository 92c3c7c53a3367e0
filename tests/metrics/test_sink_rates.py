"""Sinks and gates against loops over a full attention matrix: rates, curves, concentration, top keys, stability."""

from __future__ import annotations

import itertools
import math

import h5py
import numpy as np
import pytest
from making.stores import TOP_K, make_store

from sd35h5 import metrics, open_store
from sd35h5.errors import StoreError
from sd35h5.metrics import gate_statistics, heaviest_keys, sink_rates
from sd35h5.metrics.targets import Target, key_count, parse_target, patch_grid
from sd35h5.store.schema import GROUPS

SAMPLES, LAYERS, HEADS, STEPS = 2, 3, 2, 4
ROWS, COLUMNS = 6, 4  # 96 x 64 pixels
KEYS = 93 + ROWS * COLUMNS


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = make_store(tmp_path_factory.mktemp("sinks") / "run.h5", gates=True, precision="exact", sink=3.5)
    with open_store(path) as store:
        yield store


@pytest.fixture(scope="module")
def keys(store):
    return heaviest_keys.top_keys(store)


def test_key_count_is_text_and_patches(store):
    assert patch_grid(store) == (ROWS, COLUMNS)
    assert key_count(store) == KEYS


def test_the_size_of_the_image_is_found_without_the_image(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1, pool=2)
    with open_store(path) as store:
        store.sizes.pop("pixel_y")
        assert patch_grid(store) == (ROWS, COLUMNS)


def test_sink_rate_counts_heads_over_the_threshold(store):
    mass = metrics.first_token_mean(store).values
    for threshold in (0.1, 0.2, 0.3):
        expected = [
            [np.mean([m > threshold for m in mass[s, t].ravel()]) for t in range(STEPS)]
            for s in range(SAMPLES)
        ]
        np.testing.assert_allclose(sink_rates.sink_rate(store, epsilon=threshold).values, expected)
    uniform = sink_rates.sink_rate(store, times_uniform=20).values
    np.testing.assert_allclose(uniform, sink_rates.sink_rate(store, epsilon=20 / KEYS).values)


def test_uniform_mass_of_a_group_counts_its_keys(store):
    pads = [(store.tokens(s)["group"] == "clip_pad").sum() / KEYS for s in range(SAMPLES)]
    np.testing.assert_allclose(sink_rates.uniform_mass(store, Target("group", "clip_pad")), pads)
    np.testing.assert_allclose(
        sink_rates.uniform_mass(store, Target("group", "image")), [24 / KEYS] * SAMPLES
    )


def test_the_sink_curve_is_the_rate_at_every_epsilon(store):
    mass = metrics.first_token_mean(store)
    curve = sink_rates.sink_curve(
        mass, ["p0", "p1"], uniform=1 / KEYS, epsilons=[0.01, 0.2, 0.25, 1], band=(0, 1)
    )
    for row in curve.itertuples():
        each = [(mass.values[s] > row.epsilon).mean() for s in range(SAMPLES)]
        assert (row.mean, row.low, row.high) == pytest.approx((np.mean(each), min(each), max(each)))
        assert row.times_uniform == pytest.approx(row.epsilon * KEYS)
    assert (np.diff(curve["mean"]) <= 0).all() and curve["mean"].iloc[-1] == 0


def test_the_sink_curve_leaves_out_what_was_not_measured(store):
    mass = metrics.first_token_mean(store).copy()
    mass[0, 0] = np.nan
    curve = sink_rates.sink_curve(mass, ["p0", "p0"], epsilons=[0.2])
    expected = np.mean([(mass.values[0, 1:] > 0.2).mean(), (mass.values[1] > 0.2).mean()])
    assert curve["mean"][0] == pytest.approx(expected)


def test_top_mass_is_the_sum_of_the_heaviest_and_refuses_more_than_there_are(store):
    stored = store.read("topk/top_mass", branch="cond", query="image").values
    np.testing.assert_allclose(sink_rates.top_mass(store, 3).values, stored[..., :3].sum(-1), rtol=1e-6)
    assert sink_rates.top_mass(store).dims == ("sample", "step", "layer", "head")
    with pytest.raises(StoreError, match="--topk 9"):
        sink_rates.top_mass(store, 9)


def test_gini_is_that_of_keys_that_share_their_groups_mass_evenly(store):
    found = sink_rates.gini(store)
    for place in ((0, 0, 0, 0), (1, 3, 2, 1)):
        sample, step, layer, head = place
        mass = metrics.group_mass(store, samples=[sample]).isel(sample=0, step=step, layer=layer, head=head)
        groups = list(store.tokens(sample)["group"]) + ["image"] * ROWS * COLUMNS
        each = np.array([float(mass.sel(group=g)) / groups.count(g) for g in groups])
        pairs = np.abs(each[:, None] - each[None]).mean()
        assert float(found[place]) == pytest.approx(pairs / (2 * each.mean()), rel=1e-6)


def test_kinds_are_groups_for_tokens_and_places_for_patches(store, keys):
    seen = set()
    for place in np.ndindex(SAMPLES, 2, LAYERS, HEADS, TOP_K):
        index, kind = int(keys["index"].values[place]), heaviest_keys.KINDS[keys["kind"].values[place]]
        if keys["stream"].values[place] == 1:
            expected = store.tokens(place[0])["group"][index]
        else:
            y, x = divmod(index, COLUMNS)
            edges = (y in (0, ROWS - 1)) + (x in (0, COLUMNS - 1))
            expected = ("inner", "border", "corner")[edges]
        assert kind == expected
        seen.add(kind)
    assert {"clip_bos", "inner"} <= seen


def test_kind_shares_count_cells_and_those_of_the_heaviest_sum_to_one(keys):
    one = heaviest_keys.kind_shares(keys).set_index("kind")["share"]
    assert one.sum() == pytest.approx(1)
    three = heaviest_keys.kind_shares(keys, 3).set_index("kind")["share"]
    bos = (keys["kind"].values[..., :3] == GROUPS.index("clip_bos")).any(-1).mean()
    assert three["clip_bos"] == pytest.approx(bos)
    layers = heaviest_keys.kind_shares(keys, 1, "layer").groupby("layer")["share"].sum()
    assert layers.to_numpy() == pytest.approx(np.ones(LAYERS))


@pytest.mark.parametrize("count", [1, 3])
def test_chance_is_that_of_random_keys(keys, count):
    table = heaviest_keys.kind_shares(keys, count).set_index("kind")["chance"]
    sizes = keys["kind_size"].sel(kind_name="clip_pad").values
    expected = np.mean([1 - math.comb(KEYS - n, count) / math.comb(KEYS, count) for n in sizes])
    assert table["clip_pad"] == pytest.approx(expected)


def test_patch_shares_are_where_the_heaviest_keys_are(keys):
    table = heaviest_keys.patch_shares(keys, TOP_K)
    assert len(table) == ROWS * COLUMNS
    for row in table.iloc[[0, 7, 23]].itertuples():
        hit = (keys["stream"].values == 0) & (keys["index"].values == row.y * COLUMNS + row.x)
        assert row.share == pytest.approx(hit.any(-1).mean())


@pytest.mark.parametrize("over", ["top_step", "head", "layer", "sample"])
@pytest.mark.parametrize("count", [1, 4])
def test_stability_is_the_mean_overlap_of_pairs(keys, over, count):
    found = heaviest_keys.stability(keys, over, count)
    left = [dim for dim in ("sample", "top_step", "layer", "head") if dim != over]
    assert found.dims == tuple(left)
    names = (keys["index"] * 2 + keys["stream"]).transpose(*left, over, "rank").values[..., :count]
    for place in np.ndindex(found.shape):
        overlaps = [len(set(a) & set(b)) / count for a, b in itertools.combinations(names[place].tolist(), 2)]
        assert found.values[place] == pytest.approx(np.mean(overlaps))


def test_one_step_has_no_stability(keys):
    assert np.isnan(heaviest_keys.stability(keys.isel(top_step=[0]))).all()


def test_value_norm_of_the_heaviest_against_the_rest(keys):
    norms = keys["value_norm"].values.astype(float)
    np.testing.assert_allclose(heaviest_keys.value_norm_ratio(keys), norms[..., 0] / norms[..., 1:].mean(-1))


def test_unmeasured_keys_are_no_kind(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1)
    with h5py.File(path, "r+") as file:
        for name, fill in (("stream", 255), ("index", -1), ("mass", np.nan), ("value_norm", np.nan)):
            file[f"topk/top_{name}"][0, 0, :, 0] = fill
    with open_store(path) as store:
        keys = heaviest_keys.top_keys(store)
        assert (keys["kind"].values[:, 0] == heaviest_keys.UNKNOWN).all()
        assert heaviest_keys.kind_shares(keys)["share"].sum() == pytest.approx(1)
        assert np.isnan(heaviest_keys.stability(keys, "head").values[:, 0]).all()
        with pytest.raises(StoreError, match="uncond"):
            heaviest_keys.top_keys(store, "uncond")


def test_gate_statistics_and_states(store, tmp_path):
    stored = store.read("gates/mean", branch="cond", query="image").values
    np.testing.assert_allclose(gate_statistics.gate_statistic(store).values, stored)
    table = gate_statistics.gate_heads(store)
    assert len(table) == LAYERS * HEADS and set(table["state"]) == {"varying"}
    path = make_store(tmp_path / "run.h5", samples=1, gates=True)
    with h5py.File(path, "r+") as file:
        file["gates/below_0_1"][..., 0, 0], file["gates/below_0_5"][..., 1, 0] = 1.0, 0.0
        file["gates/mean"][..., 2, 1] = np.nan
    with open_store(path) as other:
        states = gate_statistics.gate_heads(other).set_index(["layer", "head"])["state"]
    assert (states[0, 0], states[1, 0], states[2, 1], states[0, 1]) == (
        "dead",
        "open",
        "not applied",
        "varying",
    )


def test_contribution_is_mass_times_norm_times_gate_of_the_same_step(store, keys):
    gate = gate_statistics.gate_statistic(store)
    found = gate_statistics.contribution(keys, gate)
    assert found.dims == keys["mass"].dims
    place = (1, 1, 2, 0, 3)  # top step 1 is step 2
    expected = (
        float(keys["mass"].values[place]) * float(keys["value_norm"].values[place]) * float(gate[1, 2, 2, 0])
    )
    assert float(found[place]) == pytest.approx(expected)


def test_entropy_over_its_maximum_and_encoders_and_contrast(store):
    stored = store.read("sinks/entropy_text", branch="uncond", query="text").values
    found = metrics.entropy(store, "uncond", "text", normalised=True)
    np.testing.assert_allclose(found.values, stored / math.log(93), rtol=1e-6)
    whole = (
        metrics.encoder_mass(store, "clip")
        + metrics.encoder_mass(store, "t5")
        + metrics.image_self_mass(store)
    )
    np.testing.assert_allclose(whole, 1, rtol=1e-5)
    contrast = metrics.branch_contrast(store, target=Target("group", "clip_pad"))
    sides = [
        store.read("sinks/mass_group", branch=b, query="image", group="clip_pad").values
        for b in ("cond", "uncond")
    ]
    np.testing.assert_allclose(contrast.values, sides[0].astype(float) - sides[1], atol=1e-9)


def test_wrong_requests_are_refused_by_name(store, keys, tmp_path):
    for call, words in (
        (lambda: metrics.encoder_mass(store, "bert"), "bert"),
        (lambda: gate_statistics.gate_statistic(store, "median"), "median"),
        (lambda: heaviest_keys.stability(keys, "rank"), "rank"),
        (lambda: heaviest_keys.value_norm_ratio(keys.isel(rank=[0])), "--topk"),
        (lambda: parse_target("token:first"), "token:first"),
        (lambda: parse_target("word"), "word:cat"),
    ):
        with pytest.raises(StoreError, match=words):
            call()
    with open_store(make_store(tmp_path / "plain.h5", samples=1, branches=("cond",))) as plain:
        with pytest.raises(StoreError, match="without gates"):
            gate_statistics.gate_statistic(plain)
        with pytest.raises(StoreError, match="uncond"):
            metrics.branch_contrast(plain)
