"""Means over samples: those that a file holds ready are what its samples give, and are taken for no others."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
import xarray as xr
from making.stores import make_store

from sd35h5 import metrics, open_store
from sd35h5.errors import StoreError
from sd35h5.metrics import Target

TARGETS = [
    Target(),
    Target("token", 4),
    Target("group", "t5_pad"),
    Target("group", "clip_eos"),
    Target("word", "a"),
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("means") / "run.h5", samples=3)


@pytest.fixture(scope="module")
def store(packed):
    with open_store(packed) as opened:
        yield opened


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(
    "name", ["first_token_mean", "first_token_share", "text_mass_fraction", "entropy", "gini"]
)
def test_a_mean_is_that_of_the_samples(store, name, target):
    found = metrics.mean_over_samples(store, name, target, "cond")
    expected = metrics.computed(store, name, target, "cond").mean("sample")
    xr.testing.assert_allclose(found.transpose(*expected.dims), expected, rtol=1e-5)
    assert set(found.coords) == set(expected.coords)


@pytest.mark.parametrize("samples", [[0, 2], [1]], ids=str)
def test_a_mean_of_some_samples_is_of_those(store, samples):
    found = metrics.mean_over_samples(store, "image_self_mass", samples=samples, branch="uncond")
    expected = metrics.image_self_mass(store, "uncond", samples).mean("sample")
    xr.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "variable"), [("first_token_mean", "mass_group"), ("first_token_share", "text_fraction")]
)
def test_a_mean_of_all_samples_comes_from_the_summary(packed, tmp_path, name, variable):
    path = shutil.copy(packed, tmp_path / "marked.h5")
    with h5py.File(path, "r+") as file:
        file[f"summary/{variable}"][...] = 0.5
    with open_store(path) as marked:
        found = metrics.mean_over_samples(marked, name)
        assert np.allclose(found, 0.5 * (1 if name == "first_token_mean" else marked.sizes["token"]))
        some = metrics.mean_over_samples(marked, name, samples=[0, 1])
        assert not np.isclose(some, found).any()


def test_mean_masses_of_groups_are_those_of_the_samples(store):
    found = metrics.mean_group_mass(store, "cond", "text")
    expected = metrics.group_mass(store, "cond", "text").mean("sample")
    xr.testing.assert_allclose(found, expected.transpose(*found.dims), rtol=1e-6)


@pytest.mark.parametrize("name", ["first_token_share", "text_mass_fraction"])
def test_the_image_is_no_target_of_what_is_about_text(store, name):
    with pytest.raises(StoreError, match="use first_token_mean"):
        metrics.mean_over_samples(store, name, Target("group", "image"))
