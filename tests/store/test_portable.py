"""What other programs make of a file: attributes that they know, integers as integers, a list that lies together."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from making.stores import make_store
from parts.readers import in_programs, in_python
from parts.readers.shown import compared, truth, wrong

from sd35h5 import open_store, verify
from sd35h5.store import schema
from sd35h5.store.packing import pack

BY_HDF5 = {"DIMENSION_LIST", "REFERENCE_LIST"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("portable") / "run.h5"
    return make_store(path, samples=3, gates=True, atlas=True, second_heads=5, model_id="sd3.5 – medium")


def _objects(path: Path):
    with h5py.File(path) as file:
        found = [file["/"]]
        file.visititems(lambda name, each: found.append(each))
        yield from found


def test_every_text_attribute_has_a_fixed_length_and_reads_as_it_was(packed):
    for each in _objects(packed):
        for name in set(each.attrs) - BY_HDF5:
            kind = each.attrs.get_id(name).get_type()
            assert not (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()), (each.name, name)
    with open_store(packed) as store:
        assert store.attributes["model_id"] == "sd3.5 – medium"
        assert store.attributes["title"] == "Attention of sd3.5 – medium"
        assert store.attributes["history"].startswith(store.attributes["created_utc"])


def test_units_are_numbers_of_one_as_cf_has_them(packed):
    units = {each.attrs["units"].decode() for each in _objects(packed) if "units" in each.attrs}
    assert units == {"1"}


def test_integers_stay_integers_in_xarray(packed):
    with xr.open_datatree(packed, engine="h5netcdf") as tree, h5py.File(packed) as file:
        for name, spec in schema.VARIABLES.items():
            if name in file and not spec.is_text:
                assert tree[name].dtype == np.dtype(spec.dtype), name
                np.testing.assert_array_equal(tree[name].values, file[name][...])


def test_images_say_that_they_are_true_colour(packed):
    with h5py.File(packed) as file:
        told = {name: file["images/image"].attrs[name].decode() for name in schema.IMAGE_ATTRIBUTES}
        assert told == schema.IMAGE_ATTRIBUTES and file["images/image"].shape[-1] == 3
        assert [dim[0].name for dim in file["images/image"].dims] == [
            "/sample",
            "/pixel_y",
            "/pixel_x",
            "/rgb",
        ]
        assert not h5py.h5ds.is_scale(file["images/image"].id)


READERS = {
    "netCDF4": (in_python.netcdf4, "numbers texts axes attributes"),
    "h5netcdf": (in_python.xarray("h5netcdf"), "numbers texts axes"),
    "pyfive": (in_python.pyfive, "texts"),
    "tables": (in_python.pytables, ""),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_shows_all_that_it_can_and_nothing_otherwise(packed, name):
    pytest.importorskip(name, reason=f"{name} is not installed")
    read, whole = READERS[name]
    shown, expected = read(packed), truth(packed)
    counts = compared(shown, expected)
    assert len(shown.numbers) > 20 and wrong(shown, expected) == []
    assert {what: counts[what] for what in whole.split()} == {
        what: (counts[what][1],) * 2 for what in whole.split()
    }


def test_h5dump_shows_everything(packed):
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump is not installed: apt install hdf5-tools")
    counts = compared(in_programs.h5dump(packed), truth(packed))
    assert all(equal == count > 0 for equal, count in counts.values()), counts


class Blocks(io.RawIOBase):
    """A file that notes which blocks of 256 KiB are read."""

    def __init__(self, path: Path) -> None:
        self._file, self.seen = path.open("rb"), set()
        self.seek, self.tell = self._file.seek, self._file.tell

    def readinto(self, buffer) -> int:
        first = self._file.tell()
        count = self._file.readinto(buffer)
        self.seen.update(range(first >> 18, (first + max(count, 1) - 1 >> 18) + 1))
        return count


def test_the_list_of_a_packed_file_lies_together(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=6, layers=6, heads=8, steps=6)
    file_blocks = path.stat().st_size >> 18
    blocks = Blocks(path)
    with h5py.File(blocks) as file:
        names = []
        file.visititems(
            lambda name, each: names.append((name, dict(each.attrs), getattr(each, "chunks", ())))
        )
    assert len(names) > 40 and len(blocks.seen) <= 2 < file_blocks, (blocks.seen, file_blocks)


def test_samples_of_an_earlier_version_are_packed_with_those_of_this_one(tmp_path):
    parts = make_store(tmp_path / "run.h5", packed=False)
    with h5py.File(parts / "000000.h5", "r+", libver=schema.LIBVER) as file:
        for name in ("model_id", "model_shape", "gate_type"):  # texts of variable length, as 1.0 wrote them
            file.attrs[name] = file.attrs[name].decode()
        file.attrs["schema_version"] = "1.0"
        del file[schema.SEAL]
    path = pack(parts, tmp_path / "run.h5")
    assert verify(path, deep=True).problems == ()
    with open_store(path) as store:
        assert len(store) == 2 and store.attributes["schema_version"] == schema.SCHEMA_VERSION
