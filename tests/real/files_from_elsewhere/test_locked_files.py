"""Files that another program has locked, and folders that refuse what they may refuse."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
import xarray as xr
from making.stores import make_store

from sd35h5 import StoreError, open_store, verify
from sd35h5.__main__ import main
from sd35h5.store import skeleton
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.writer import begin_run, pack


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("locked") / "run.h5", samples=2)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that HDF5 would take, as a program does that writes the file."""
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def test_a_locked_file_verifies_opens_and_is_told_of_as_any_other(run, capsys):
    with locked(run):
        assert verify(run, deep=True).ok
        assert main(["info", str(run)]) == 0
        with open_store(run) as store:
            assert store.samples["seed"].tolist() == [0, 1]
        readers = Readers(count=1)
        try:
            assert open_through(readers, run).sizes["sample"] == 2
        finally:
            readers.close()


def test_a_capture_goes_on_and_packs_into_a_locked_file(tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=1, packed=False, planned=2)
    out = pack(parts, tmp_path / "run.h5")
    make_store(tmp_path / "more.h5", samples=2, packed=False)
    (tmp_path / "more.h5.parts" / "000001.h5").rename(parts / "000001.h5")
    with locked(out):
        begin_run(out, {"steps": 4, "height": 96, "width": 64, "seed": 0}, planned=2)
        pack(parts, out, keep_parts=False)
    with open_store(out) as store:
        assert store.sizes["sample"] == 2


def test_a_lock_that_must_be_heeded_is_told_and_nothing_is_to_be_overwritten(run, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Unable to synchronously open file (unable to lock file)")

    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    monkeypatch.setattr(h5py, "File", refuse)
    sentence = (
        "^run.h5 cannot be opened: another program has locked it, and HDF5_USE_FILE_LOCKING=TRUE heeds that"
    )
    with pytest.raises(StoreError, match=sentence):
        open_store(run)
    with pytest.raises(StoreError, match=sentence) as told:
        begin_run(run, {}, planned=1)
    assert "overwrite" not in str(told.value)


def test_overwriting_is_offered_for_what_was_opened_and_is_something_else(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = [1.0]
    with pytest.raises(StoreError, match="other.h5 is there and is another HDF5 file, .* or overwrite it$"):
        begin_run(tmp_path / "other.h5", {}, planned=1)


def test_xarray_and_a_store_may_have_the_same_file_open(run):
    with xr.open_datatree(run, engine="h5netcdf") as before, open_store(run) as store:
        with xr.open_datatree(run, engine="h5netcdf") as after:
            for tree in (before, after):
                assert tree["sinks"]["mass_group"].shape == store.read("sinks/mass_group").shape


def test_a_file_system_that_refuses_fsync_on_a_folder_takes_a_capture(tmp_path, monkeypatch):
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    assert verify(make_store(tmp_path / "run.h5", samples=1), deep=True).ok


def test_a_file_system_that_refuses_fsync_on_a_file_is_an_error(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "x.tmp").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        skeleton.publish(tmp_path / "x.tmp", tmp_path / "x")
    assert not (tmp_path / "x").exists()
