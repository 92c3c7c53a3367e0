"""Room on the disk is taken before HDF5 writes: a full disk costs a sentence, wherever it is come upon."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.disks import small_disk
from making.stores import make_store

from sd35h5.store.cutting.slicing import cut
from sd35h5.store.cutting.wanted_part import Wanted
from sd35h5.store.schema import LIBVER
from sd35h5.store.sharing.room import MARGIN, Room

ROOT = Path(__file__).resolve().parents[2]
LIMITED = (
    "import resource, sys; from sd35h5.__main__ import main\n"
    "most = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)); sys.exit(main(sys.argv[2:]))"
)


def test_a_slice_that_comes_upon_a_limit_is_told_and_does_not_end_in_a_segmentation_fault(tmp_path):
    run = make_store(tmp_path / "run.h5", samples=3, steps=8, atlas=True)
    cut(run, tmp_path / "whole.h5", Wanted(layers="1-2", tokens="0-40"))
    most = (tmp_path / "whole.h5").stat().st_size // 2
    words = ["slice", f"{run}", "--layers", "1-2", "--tokens", "0-40", "--out", f"{tmp_path / 'cut.h5'}"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, f"{most}", *words], capture_output=True, text=True, cwd=ROOT
    )
    said = done.stderr.replace("\r", "\n").split("\n")[-2]  # behind a bar, if it took long
    assert (done.returncode, said) == (1, "error: cut.h5 cannot be made: file too large")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.h5", "whole.h5"]


def test_room_is_taken_ahead_and_what_is_not_filled_is_given_back(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, 100_000, np.uint8)
    for name in ("with", "without"):
        with h5py.File(tmp_path / name, "w", libver=LIBVER) as file:
            if name == "with":
                room = Room(file, MARGIN)
                room.take(values.nbytes)
                assert (tmp_path / name).stat().st_size >= values.nbytes + MARGIN
            file["values"] = values
    room.close(file)
    assert (tmp_path / "with").stat().st_size == (tmp_path / "without").stat().st_size
    with h5py.File(tmp_path / "with") as file:
        np.testing.assert_array_equal(file["values"], values)


def test_a_disk_without_room_refuses_and_the_file_still_closes_whole(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        with h5py.File(disk / "x.h5", "w", libver=LIBVER) as file:
            room = Room(file, MARGIN)
            room.take(100_000)
            file["values"] = np.arange(1000)
            with pytest.raises(OSError) as refused:
                room.take(2 << 20)
            assert refused.value.errno == errno.ENOSPC
        room.close(file)
        with h5py.File(disk / "x.h5") as file:
            assert file["values"][-1] == 999
