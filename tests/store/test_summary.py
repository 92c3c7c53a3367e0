"""Means over samples in a packed file: what they are, whose they are, and that a check makes them anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from making.stores import make_store

from sd35h5 import open_store, verify
from sd35h5.store import schema
from sd35h5.store.derived.summary import derive_summary
from sd35h5.store.packing import pack
from sd35h5.store.runs import parts_of
from sd35h5.store.seals.file_seal import seal_file

TEXT = [name != "image" for name in schema.GROUPS]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("summary") / "run.h5", samples=3)


@pytest.fixture
def own(packed, tmp_path) -> Path:
    return Path(shutil.copy(packed, tmp_path / "own.h5"))


def test_a_packed_file_holds_the_means_of_its_samples(packed):
    with h5py.File(packed) as file:
        mass, entropy = file["sinks/mass_group"][:].astype(float), file["sinks/entropy_text"][:].astype(float)
        np.testing.assert_allclose(file["summary/mass_group"], mass.mean(0), rtol=1e-6)
        np.testing.assert_allclose(file["summary/entropy_text"], entropy.mean(0), rtol=1e-6)
        of_image = mass[:, :, 0]
        parts = of_image / of_image[:, :, TEXT].sum(2, keepdims=True)
        np.testing.assert_allclose(file["summary/text_fraction"], parts.mean(0), rtol=1e-6)


def test_a_mean_says_that_it_is_derived_and_of_what(packed):
    with h5py.File(packed) as file:
        assert b"derived" in file["summary"].attrs["comment"]
        for name, source in schema.SUMMARY_SOURCES.items():
            assert file[name].attrs["cell_methods"] == b"sample: mean"
            assert file[name].attrs["derived_from"].decode() == source in file
    with xr.open_datatree(packed, engine="h5netcdf") as tree:
        assert tree["summary/mass_group"].dims == schema.SUMMARIES["summary/mass_group"].dims


def test_values_that_are_not_there_have_no_weight(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=2, nan="some")
    with h5py.File(path) as file:
        mass = file["sinks/mass_group"][:].astype(float)
        assert np.isnan(mass).any() and np.isfinite(mass).any()
        there = np.isfinite(mass).any(0)
        expected = np.full(mass.shape[1:], np.nan)
        expected[there] = np.nanmean(mass[:, there], 0)
        np.testing.assert_allclose(file["summary/mass_group"], expected, rtol=1e-6)
    assert verify(path, deep=True).ok


def test_a_store_gives_a_mean_of_exactly_these_samples_or_none(packed):
    with open_store(packed) as store:
        where = {"branch": "uncond", "query": "image", "group": "clip_bos"}
        found = store.mean("summary/mass_group", [2, 0, 1], **where)
        expected = store.read("sinks/mass_group", **where).mean("sample", dtype=float)
        xr.testing.assert_allclose(found, expected.astype(np.float32))
        assert set(found.coords) == set(expected.coords)
        for others in ([0, 1], [0, 1, 1], [0, 1, 2, 2], [0], []):
            assert store.mean("summary/mass_group", others, **where) is None


def test_a_mean_of_other_samples_is_passed_over_and_found_by_a_check(own):
    with h5py.File(own, "r+") as file:
        file["samples/content_sha256"][0] = file["samples/content_sha256"][1]
    with open_store(own) as store:
        assert store.mean("summary/mass_group", [0, 1, 2], branch="cond") is None


@pytest.mark.parametrize("name", schema.SUMMARIES)
def test_a_changed_mean_is_found_by_a_deep_check(own, name):
    with h5py.File(own, "r+") as file:
        file[name][..., 0] = file[name][..., 0] * 1.001
        seal_file(file)
    assert verify(own).ok
    assert verify(own, deep=True).problems == (
        f"{name} is not the mean of its samples: it was changed, or made of others",
    )


def test_a_mean_of_the_wrong_shape_is_refused(own):
    with h5py.File(own, "r+") as file:
        del file["summary/entropy_text"]
        file.create_dataset("summary/entropy_text", (2, 2), "<f4", chunks=(1, 1))
    assert "summary/entropy_text has 2 dimensions" in verify(own).problems[0]


def test_one_sample_a_running_capture_and_samples_beside_a_file_have_no_mean(tmp_path, packed):
    one = make_store(tmp_path / "one.h5", samples=1)
    running = make_store(tmp_path / "running.h5", samples=2, packed=False, planned=4)
    later = Path(shutil.copy(packed, tmp_path / "later.h5"))
    parts = parts_of(make_store(tmp_path / "more.h5", samples=4, packed=False, planned=5).with_suffix(""))
    parts.rename(parts_of(later))
    for path in (one, running, later):
        with open_store(path) as store:
            assert store.mean("summary/mass_group", range(len(store)), branch="cond") is None


def test_packing_more_samples_makes_the_means_anew(tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=2, packed=False)
    pack(parts, tmp_path / "run.h5")
    make_store(tmp_path / "run.h5", samples=3, packed=False, planned=3)
    pack(parts, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        np.testing.assert_allclose(file["summary/mass_group"], file["sinks/mass_group"][:].mean(0), rtol=1e-5)


def test_deriving_again_gives_the_same(own):
    with h5py.File(own, "r+") as file:
        before = {name: file[name][:] for name in schema.SUMMARIES}
        derive_summary(file)
        for name, values in before.items():
            np.testing.assert_array_equal(file[name][:], values)
    assert verify(own, deep=True).ok
