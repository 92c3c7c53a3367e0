"""Folders as other systems leave them: files of macOS and Windows beside ours, links of caches and scratch disks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from making.stores import make_store

from dashboard import run_list
from sd35h5 import StoreNotFoundError, open_store, verify
from sd35h5.store.places.runs_in_folders import stores_in
from sd35h5.store.runs import begin_run, forget_run, part_files
from sd35h5.store.writer import pack
from sd35h5.weights.weight_sets import weight_files

APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def litter(folder: Path) -> None:
    """Leave beside each file of a folder what macOS and Windows do."""
    for file in list(folder.iterdir()):
        (folder / f"._{file.name}").write_bytes(APPLE)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0\0\0\1Bud1")


@pytest.fixture
def run(tmp_path) -> Path:
    return make_store(tmp_path / "runs" / "run.h5", samples=1)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("sample") / "run.h5", samples=1)


def found(*places: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """The stores that the dashboard would open at these paths, and what it refuses, before files are verified."""
    homes = [home for place in places for home in run_list.homes_of(place)]
    inside = [path for place in places for path in stores_in(place).stores]
    return inside, [path.name for path in inside if run_list.leads_out(path, homes)]


def test_files_beside_ours_are_no_runs(run):
    litter(run.parent)
    assert found(run.parent) == ([run], [])


def test_files_beside_samples_are_no_samples(tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=2, packed=False)
    litter(parts)
    assert [path.name for path in part_files(parts)] == ["000000.h5", "000001.h5"]
    assert verify(parts, deep=True).ok and found(parts) == ([parts], [])
    shutil.copytree(parts, tmp_path / "numbered")
    (tmp_path / "numbered" / "run.json").unlink()
    assert found(tmp_path / "numbered") == ([tmp_path / "numbered"], [])
    with open_store(pack(parts, tmp_path / "run.h5", keep_parts=False)) as store:
        assert store.sizes["sample"] == 2
    assert not parts.exists()


def test_a_folder_of_runs_names_none_of_them(tmp_path, run):
    litter(run.parent)
    with pytest.raises(StoreNotFoundError, match=r"open one of its runs \(run.h5\)$"):
        open_store(run.parent)


def test_a_capture_with_nothing_yet_is_forgotten_with_them(tmp_path):
    parts = begin_run(tmp_path / "run.h5", {}, planned=1)
    litter(parts)
    forget_run(parts)
    assert not parts.exists()
    parts = begin_run(tmp_path / "run.h5", {}, planned=1)
    (parts / "notes.txt").write_text("mine")
    forget_run(parts)
    assert sorted(path.name for path in parts.iterdir()) == ["notes.txt", "run.json"]


def test_they_are_no_weights(tmp_path):
    (tmp_path / "anything.safetensors").write_bytes(b"weights")
    litter(tmp_path)
    assert weight_files(tmp_path, "--vae_path") == (tmp_path / "anything.safetensors",)


def test_the_one_with_dots_says_what_it_is(run):
    litter(run.parent)
    (problem,) = verify(run.parent / "._run.h5").problems
    assert problem.startswith("it is what macOS leaves beside a file")


@pytest.fixture
def cache(tmp_path, sample) -> Path:
    """A data set in Hugging Face's cache: snapshots of links to blobs."""
    repository = tmp_path / "hub" / "datasets--me--sinks"
    (repository / "blobs").mkdir(parents=True)
    (snapshot := repository / "snapshots" / "4f2c").mkdir(parents=True)
    shutil.copy(sample, repository / "blobs" / "9a1b")
    (snapshot / "run.h5").symlink_to("../../blobs/9a1b")
    (snapshot / "deeper").mkdir()
    (snapshot / "deeper" / "other.h5").symlink_to("../../../blobs/9a1b")
    return snapshot


def test_links_of_hugging_faces_cache_are_followed(cache):
    assert found(cache) == ([cache / "run.h5", cache / "deeper" / "other.h5"], [])
    assert found(cache / "deeper") == ([cache / "deeper" / "other.h5"], [])
    assert found(cache / "run.h5") == ([cache / "run.h5"], [])
    assert verify(cache / "run.h5").ok


def test_links_between_given_folders_and_to_given_files_are_followed(tmp_path, sample):
    (runs := tmp_path / "runs").mkdir()
    (scratch := tmp_path / "scratch").mkdir()
    stored = Path(shutil.copy(sample, scratch / "stored.h5"))
    (runs / "run.h5").symlink_to(stored)
    assert found(runs) == ([runs / "run.h5"], ["run.h5"])
    assert found(runs, scratch)[1] == found(runs, stored)[1] == []
    (home := tmp_path / "home").symlink_to(runs)
    assert found(home, stored)[1] == []


def test_links_that_leave_all_of_them_are_refused_with_what_to_do(tmp_path, sample):
    (runs := tmp_path / "runs").mkdir()
    (runs / "run.h5").symlink_to(sample)
    parts = make_store(runs / "going.h5", samples=1, packed=False)
    (parts / "000001.h5").symlink_to(sample)
    (parts / "run.json").unlink()
    (parts / "run.json").symlink_to("/etc/hostname")
    assert sorted(found(runs)[1]) == ["going.h5.parts", "run.h5"]
    told = run_list.find((str(runs),), tmp_path)
    assert told.runs == () and {sentence for _, sentence in told.refused} == {run_list.LEADS_OUT}
    assert str(sample.parent) not in run_list.LEADS_OUT


def test_blobs_beside_any_other_folder_are_not_a_cache(tmp_path, sample):
    (tmp_path / "blobs").mkdir()
    shutil.copy(sample, tmp_path / "blobs" / "9a1b")
    (runs := tmp_path / "runs").mkdir()
    (runs / "run.h5").symlink_to("../blobs/9a1b")
    assert found(runs)[1] == ["run.h5"]
    assert os.path.realpath(runs / "run.h5") == str(tmp_path / "blobs" / "9a1b")
