"""Paired statistics: by hand, against scipy, and the coverage of the intervals by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sd35h5.comparing import effects

PROMPTS = 8


def differences(
    seed: int = 0, seeds: int = 3, layers: int = 3, heads: int = 2
) -> tuple[xr.DataArray, list[str]]:
    """Paired differences (sample, step, layer, head) of PROMPTS prompts with several seeds each, and prompt ids."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.3, 1, size=(PROMPTS * seeds, 4, layers, heads))
    names = [f"p{sample // seeds}" for sample in range(PROMPTS * seeds)]
    coords = {"layer": np.arange(layers), "head": np.arange(heads)}
    return xr.DataArray(values, dims=("sample", "step", "layer", "head"), coords=coords), names


def test_cells_hold_mean_and_effect_of_prompt_means():
    change, prompts = differences()
    table = effects.paired_effects(change, prompts, resamples=199)
    assert len(table) == 6
    for row in table.itertuples():
        each = change.values[:, :, row.layer, row.head].reshape(PROMPTS, 3 * 4).mean(axis=1)
        assert row.mean_difference == pytest.approx(each.mean())
        assert row.effect == pytest.approx(each.mean() / np.std(each, ddof=1))
        assert row.low < row.mean_difference < row.high
        assert row.prompts == PROMPTS


def test_a_prompt_with_many_seeds_counts_once():
    change, prompts = differences()
    one = effects.overall_effect(change, prompts, resamples=199)
    often = effects.overall_effect(
        change.isel(sample=[0] * 20 + list(range(3, 24))), ["p0"] * 20 + prompts[3:], 199
    )
    first = float(change.isel(sample=0).mean())
    rest = change.values[3:].reshape(PROMPTS - 1, -1).mean(axis=1)
    assert often["mean_difference"] == pytest.approx((first + rest.sum()) / PROMPTS)
    assert often["prompts"] == one["prompts"] == PROMPTS


def test_the_overall_effect_is_that_of_the_mean_over_cells():
    change, prompts = differences()
    each = change.values.reshape(PROMPTS, -1).mean(axis=1)
    found = effects.overall_effect(change, prompts, resamples=199)
    assert found["mean_difference"] == pytest.approx(each.mean())
    assert found["effect"] == pytest.approx(each.mean() / each.std(ddof=1))


def test_the_effect_of_a_layer_is_that_of_the_mean_over_its_heads():
    change, prompts = differences()
    table = effects.layer_effects(change, prompts, resamples=199)
    assert table["layer"].tolist() == change["layer"].values.tolist()
    for row in table.itertuples():
        one = effects.overall_effect(change.sel(layer=[row.layer]), prompts, resamples=199)
        for name in ("mean_difference", "effect", "low", "high", "p"):
            assert getattr(row, name) == pytest.approx(one[name])
    spread = table["mean_difference"] / table["effect"]
    np.testing.assert_allclose(effects.standardised(table)["low_effect"] * spread, table["low"])


@pytest.mark.parametrize("prompts", [6, 9])
def test_sign_flips_count_every_pattern(prompts):
    units = np.random.default_rng(prompts).normal(0.4, 1, size=(prompts, 3))
    expected = []
    for cell in units.T:
        means = [abs(np.dot(signs, cell)) for signs in itertools.product((1, -1), repeat=prompts)]
        expected.append(np.mean([mean >= abs(cell.sum()) * (1 - 1e-9) for mean in means]))
    np.testing.assert_allclose(effects.sign_flip_p(units), expected)


def test_random_sign_flips_agree_with_scipy():
    units = np.random.default_rng(1).normal(0.25, 1, size=(30, 1))
    scipys = stats.permutation_test(
        (units[:, 0],), np.mean, permutation_type="samples", n_resamples=9999, rng=1
    )
    assert effects.sign_flip_p(units)[0] == pytest.approx(scipys.pvalue, abs=0.02)


def test_the_same_difference_everywhere_is_as_sure_as_flips_can_be():
    units = np.full((10, 1), 0.5) + np.arange(10)[:, None] * 1e-3
    assert effects.sign_flip_p(units)[0] == 2 / 2**10


def test_false_discovery_is_benjamini_hochberg_and_keeps_missing_cells():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    assert effects.false_discovery(p)[[0, 2, 3, 4]] == pytest.approx([0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])
    assert np.isnan(effects.false_discovery(p)[1])
    assert np.isnan(effects.false_discovery(np.full(3, np.nan))).all()


def test_too_few_prompts_give_no_interval_and_no_p():
    table = effects.effects(np.random.default_rng(0).normal(size=(effects.MIN_PROMPTS - 1, 2)))
    assert table[["low", "high", "p", "q"]].isna().all(axis=None)
    assert table["mean_difference"].notna().all()


def test_a_cell_that_was_not_measured_is_missing_and_the_others_are_not():
    units = np.random.default_rng(0).normal(size=(8, 3))
    units[2, 1] = np.nan
    table = effects.effects(units, 199)
    assert table["p"].isna().tolist() == [False, True, False]


def test_differences_without_spread_have_no_effect_size():
    table = effects.effects(np.zeros((8, 1)), 199)
    assert np.isnan(table["effect"][0])
    assert (table["low"][0], table["high"][0], table["p"][0]) == (0, 0, 1)


def test_the_same_seed_gives_the_same_interval():
    units = np.random.default_rng(0).normal(size=(9, 2))
    np.testing.assert_array_equal(
        effects.bootstrap_interval(units, 199), effects.bootstrap_interval(units, 199)
    )


@pytest.mark.parametrize(("prompts", "seeds"), [(8, 1), (12, 4), (30, 2)])
def test_intervals_cover_the_truth_as_often_as_they_say(prompts, seeds):
    """Prompts differ, seeds of a prompt differ less: 95 % of the intervals must hold the true mean."""
    rng = np.random.default_rng([prompts, seeds])
    worlds = 1200
    by_prompt = rng.normal(0.7, 1.0, size=(prompts, 1, worlds))
    values = by_prompt + rng.normal(0, 0.5, size=(prompts, seeds, worlds))
    change = xr.DataArray(
        values.reshape(prompts * seeds, worlds, 1), dims=("sample", "layer", "head"),
        coords={"layer": np.arange(worlds), "head": [0]},
    )  # fmt: skip
    names = [f"p{place // seeds}" for place in range(prompts * seeds)]
    table = effects.paired_effects(change, names, resamples=999)
    covered = ((table["low"] <= 0.7) & (0.7 <= table["high"])).mean()
    assert 0.92 <= covered <= 0.975


def test_without_a_difference_five_percent_of_the_p_values_are_below_five_percent():
    units = np.random.default_rng(4).normal(size=(16, 1500))
    assert 0.035 <= (effects.sign_flip_p(units, 999) <= 0.05).mean() <= 0.065
