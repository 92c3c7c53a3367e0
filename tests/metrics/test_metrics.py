"""Every metric against a brute-force float64 computation from full attention matrices."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from making.stores import make_store

from sd35h5 import metrics, open_store
from sd35h5.errors import StoreError
from sd35h5.metrics import Target
from sd35h5.store.derived.summary import derive_summary
from sd35h5.store.schema import GROUPS

LAYERS, HEADS, STEPS, SAMPLES, PATCHES = 3, 2, 4, 2, 24  # 96 x 64 pixels are 6 x 4 patches
AXES = ("sample", "step", "layer", "head")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A store and the attention of image queries behind it: float64 (sample, step, layer, head, query, key),
    text first."""
    path = make_store(
        tmp_path_factory.mktemp("known") / "run.h5", samples=SAMPLES, layers=LAYERS, heads=HEADS, steps=STEPS
    )
    rng = np.random.default_rng(3)
    with h5py.File(path, "r+") as file:
        groups = file["tokens/token_group"][:, 0]  # cond
        tokens = groups.shape[1]
        logits = rng.normal(size=(SAMPLES, STEPS, LAYERS, HEADS, PATCHES, tokens + PATCHES))
        attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        mass = attention.mean(-2)
        file["sinks/mass_image"][:, 0] = mass[..., :tokens]
        for sample in range(SAMPLES):
            for number, name in enumerate(GROUPS):
                keys = [*np.flatnonzero(groups[sample] == number)]
                if name == "image":
                    keys = [*range(tokens, tokens + PATCHES)]
                file["sinks/mass_group"][sample, 0, 0, number] = mass[sample][..., keys].sum(-1)
        derive_summary(file)
    with open_store(path) as store:
        yield store, attention, groups


TARGETS = [
    Target(), Target("token", 5), Target("token", 92), Target("group", "t5_pad"),
    Target("group", "clip_word"), Target("word", "a"),
]  # fmt: skip


def keys_of(groups: np.ndarray, sample: int, name: str) -> list[int]:
    return [key for key in range(groups.shape[1]) if GROUPS[groups[sample, key]] == name]


def brute_force(attention, tokens: int, keys: list[list[int]]):
    """Return the three metrics by definition, loops over samples, steps, layers and heads."""
    shape = attention.shape[:4]
    mean, share, fraction = np.empty(shape), np.empty(shape), np.empty(shape)
    for place in np.ndindex(shape):
        rows = attention[place]  # (query, key)
        mine = [float(np.mean(rows[:, key])) for key in keys[place[0]]]
        text = [float(np.mean(rows[:, key])) for key in range(tokens)]
        mean[place] = sum(mine)
        share[place] = (sum(mine) / len(mine)) / (sum(text) / len(text))
        fraction[place] = sum(mine) / sum(text)
    return {"first_token_mean": mean, "first_token_share": share, "text_mass_fraction": fraction}


@pytest.mark.parametrize("name", list(metrics.METRICS))
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_metrics_equal_brute_force(known, name, target):
    store, attention, groups = known
    tokens = groups.shape[1]
    if target.kind == "word":  # “a” is the second token of both prompts for CLIP, and the first of T5
        keys = [
            [k for k in range(tokens) if store.tokens(s)["text"][k] in ("a</w>", "▁a")]
            for s in range(SAMPLES)
        ]
        assert all(len(found) >= 2 for found in keys)
    elif target.kind == "group":
        keys = [keys_of(groups, sample, target.value) for sample in range(SAMPLES)]
    else:
        keys = [[target.value]] * SAMPLES
    found = metrics.METRICS[name](store, target)
    assert found.dims == AXES
    np.testing.assert_allclose(found.values, brute_force(attention, tokens, keys)[name], rtol=1e-5)


def test_group_masses_equal_brute_force_and_sum_to_one(known):
    store, attention, groups = known
    found = metrics.group_mass(store)
    np.testing.assert_allclose(found.sum("group").values, 1, rtol=1e-5)
    for sample in range(SAMPLES):
        expected = attention[sample].mean(-2)[..., keys_of(groups, sample, "clip_pad")].sum(-1)
        np.testing.assert_allclose(
            found.sel(group="clip_pad").isel(sample=sample).values, expected, rtol=1e-5
        )


def test_mean_group_mass_is_the_mean_over_samples(known):
    store = known[0]
    whole = metrics.group_mass(store).mean("sample")
    np.testing.assert_allclose(
        metrics.mean_group_mass(store).values, whole.values, rtol=1e-6
    )  # kept as float32
    frame = metrics.groups_over_layers(metrics.mean_group_mass(store))
    bos = frame[(frame["group"] == "clip_bos") & (frame["layer"] == 2)]["value"].item()
    assert bos == pytest.approx(float(whole.sel(group="clip_bos", layer=2).mean()))


def test_text_mass_and_image_self_mass_share_the_whole(known):
    store, attention, groups = known
    image = attention[..., groups.shape[1] :].mean(-2).sum(-1)
    np.testing.assert_allclose(metrics.text_mass(store).values, 1 - image, rtol=1e-5)


def test_token_mass_averages_only_what_is_chosen(known):
    store, attention, groups = known
    table = metrics.token_mass(store, 1, steps=[0, 3], layers=[2], heads=[0, 1])
    expected = attention[1][np.ix_([0, 3], [2], [0, 1])].mean((0, 1, 2, 3))[: groups.shape[1]]
    np.testing.assert_allclose(table["mass"], expected, rtol=1e-5)
    assert list(table["token"]) == list(range(groups.shape[1]))


def test_averaged_padding_stands_for_all_padding_and_nothing_else(known):
    table = metrics.token_mass(known[0], 0)
    short = metrics.with_pads_averaged(table)
    is_pad = table["group"].isin(["clip_pad", "t5_pad"])
    assert len(short) == (~is_pad).sum() + 2
    for group in ("clip_pad", "t5_pad"):
        pads = table.loc[table["group"] == group, "mass"]
        row = short[short["group"] == group].iloc[0]
        assert row["mass"] == pytest.approx(pads.sum() / len(pads))
        assert row["text"] == f"<mean of {len(pads)} pads>"


def test_by_layer_head_is_the_mean_of_samples_and_steps(known):
    store, attention, _ = known
    frame = metrics.by_layer_head(metrics.first_token_mean(store))
    expected = attention[..., 0].mean((0, 1, 4))
    assert len(frame) == LAYERS * HEADS
    for row in frame.to_dict("records"):
        assert row["value"] == pytest.approx(expected[row["layer"], row["head"]], rel=1e-5)


def test_step_curve_weighs_prompts_equally_whatever_their_number_of_samples(known):
    store, attention, _ = known
    values = metrics.first_token_mean(store, samples=[0, 0, 1])
    frame = metrics.over_steps(values, ["p0", "p0", "p1"], band=(0.0, 1.0))
    each = attention[..., 0].mean((2, 3, 4))  # (sample, step)
    np.testing.assert_allclose(frame["mean"], each.mean(0), rtol=1e-5)
    np.testing.assert_allclose(frame["low"], each.min(0), rtol=1e-5)
    np.testing.assert_allclose(frame["high"], each.max(0), rtol=1e-5)
    assert list(frame["timestep"]) == sorted(frame["timestep"], reverse=True)


def test_one_prompt_has_no_band(known):
    frame = metrics.over_steps(metrics.first_token_mean(known[0], samples=[0]), ["p0"])
    assert frame[["low", "high"]].isna().all(axis=None)


def test_a_metric_of_a_subset_is_the_subset_of_the_metric(known):
    store = known[0]
    whole = metrics.first_token_share(store, Target("token", 3))
    part = metrics.first_token_share(store, Target("token", 3), samples=[1])
    np.testing.assert_array_equal(part.values, whole.isel(sample=[1]).values)


def test_rounded_masses_of_a_group_agree_with_its_exact_mass(tmp_path):
    with open_store(make_store(tmp_path / "run.h5")) as store:
        words = [k for k, name in enumerate(store.tokens(0)["group"]) if name == "clip_word"]
        each = [metrics.first_token_mean(store, Target("token", k), samples=[0]) for k in words]
        group = metrics.first_token_mean(store, Target("group", "clip_word"), samples=[0])
        np.testing.assert_allclose(sum(each).values, group.values, rtol=1e-3)


def test_uncond_is_answered_from_group_masses_and_refused_by_token(tmp_path):
    path = make_store(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        file["sinks/mass_image"][:, 1] = np.nan
    with open_store(path) as store:
        assert np.isfinite(metrics.first_token_mean(store, branch="uncond").values).all()
        with pytest.raises(StoreError, match="cond branch only"):
            metrics.first_token_mean(store, Target("token", 4), "uncond")


def test_wrong_requests_are_refused_by_name(known):
    store = known[0]
    for call, words in (
        (lambda: metrics.first_token_mean(store, Target("token", 999)), "token 999"),
        (lambda: metrics.first_token_mean(store, branch="skip"), "skip"),
        (lambda: Target("group", "clip_verb"), "clip_verb"),
        (lambda: Target("patch", 1), "patch"),
        (lambda: metrics.first_token_share(store, Target("group", "image")), "image"),
        (lambda: metrics.first_token_mean(store, Target("word", "zebra")), "zebra"),
    ):
        with pytest.raises(StoreError, match=words):
            call()


def test_a_word_that_only_some_prompts_have_is_nan_in_the_others(tmp_path):
    with open_store(make_store(tmp_path / "run.h5")) as store:
        values = metrics.first_token_mean(store, Target("word", "apple"))
        assert np.isfinite(values.isel(sample=0).values).all()
        assert np.isnan(values.isel(sample=1).values).all()
