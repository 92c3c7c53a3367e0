"""Files elsewhere: read as those here, by ranges alone, in other processes; what goes wrong is a sentence."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.range_server import Served, serving
from parts.synthetic import SIZES, make_run

from sd35h5 import metrics, open_store, verify
from sd35h5.__main__ import main
from sd35h5.errors import StoreError, StoreNotFoundError
from sd35h5.store.places import far_bytes
from sd35h5.store.places.addresses import is_address, shown_name
from sd35h5.store.places.block_cache import BLOCK_BYTES, BlockCache

SMALL = {
    **SIZES, "step": 12, "layer": 10, "head": 12, "token": 112, "y": 8, "x": 10, "map_token": 5, "top_step": 3,
    "pixel_y": 96, "pixel_x": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("far") / "run.h5"
    return make_run(path, samples=8, seed=0, gates=False, sizes=SMALL)


@pytest.fixture
def served(packed):
    with serving(Served(packed)) as one:
        yield one


def test_a_file_elsewhere_reads_as_the_same_file_here(packed, served):
    with open_store(packed) as here, open_store(f"{served.address}?token=s3cret") as there:
        assert there.name == "run" and there.samples.equals(here.samples) and there.sizes == here.sizes
        for name, sel in {
            "sinks/mass_group": {"branch": "uncond", "group": ["clip_bos", "image"]},
            "sinks/mass_image": {"sample": [1, 4], "step": [0, 3], "token": slice(3, 90)},
            "maps/image_to_text": {"sample": 3, "branch": "cond", "map_token": 2},
        }.items():
            assert there.read(name, **sel).identical(here.read(name, **sel))
        assert there.tokens(2).equals(here.tokens(2)) and np.array_equal(there.image(1), here.image(1))
        found, expected = (metrics.mean_over_samples(each, "first_token_share") for each in (there, here))
        assert found.identical(expected)


def test_opening_a_file_elsewhere_and_its_heatmap_take_few_parts_of_it(packed, served):
    size = packed.stat().st_size
    assert size > 12 * BLOCK_BYTES
    with open_store(served.address) as store:
        assert len(store.samples) == 8
        assert len(served.requests) <= 3
        metrics.mean_over_samples(store, "first_token_mean")
        assert len(served.requests) <= 6 and served.bytes < size / 2
        assert max(stop - start for start, stop in served.requests) <= 8 * BLOCK_BYTES
        before = served.bytes
        metrics.mean_over_samples(store, "first_token_mean")
        assert served.bytes == before


def test_this_process_opens_no_hdf5_of_a_file_elsewhere(served, monkeypatch):
    monkeypatch.setattr(h5py, "File", None)
    with open_store(served.address) as store:
        assert store.read("sinks/mass_group", sample=0, branch="cond").shape[0] == 2


def test_the_structure_is_verified_before_anything_is_read(packed, tmp_path):
    path = Path(shutil.copy(packed, tmp_path / "linked.h5"))
    with h5py.File(path, "r+") as file:
        file["sinks/other"] = h5py.ExternalLink("/etc/passwd", "/")
    with serving(Served(path)) as served, pytest.raises(StoreError, match="cannot be opened.*external link"):
        open_store(served.address)
    assert "external link" in verify(path).problems[0]


def test_a_damaged_chunk_is_a_sentence_when_it_is_read(packed, tmp_path):
    path = Path(shutil.copy(packed, tmp_path / "flipped.h5"))
    with h5py.File(path) as file:
        place = file["sinks/mass_group"].id.get_chunk_info_by_coord((2, 0, 0, 1, 0, 0, 0))
    with path.open("r+b") as file:
        file.seek(place.byte_offset + 9), file.write(b"\xff\x00\xff")
    with serving(Served(path)) as served, open_store(served.address) as store:
        store.read("sinks/mass_group", sample=1)
        with pytest.raises(StoreError, match="mass_group of flipped.h5 cannot be read: the file is damaged"):
            store.read("sinks/mass_group", sample=2)


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ({"status": 404}, StoreNotFoundError, "there is no such file at http://127.0.0.1"),
        ({"status": 403}, StoreError, "may not be read without a login"),
        ({"status": 500}, StoreError, "the answer was 500"),
        ({"ranges": False}, StoreError, "sends the whole file where a part of it is asked for: download it"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_server_refuses_is_a_sentence_without_secrets(packed, how, kind, says, capsys):
    with serving(Served(packed, **how)) as served:
        address = served.address.replace("//", "//me:passw0rd@") + "?token=s3cret#frag"
        with pytest.raises(kind, match=says) as told:
            open_store(address)
        assert main(["info", address]) == 1
    sentence = capsys.readouterr().err
    assert "s3cret" not in f"{told.value}{sentence}" and "passw0rd" not in f"{told.value}{sentence}"
    assert sentence.startswith("error: run.h5") and sentence.count("\n") == 1
    assert sum(stop - start for start, stop in served.requests) == 0 or not how.get("ranges", True)


@pytest.mark.parametrize("how", ["etag", "length"])
def test_a_file_that_changes_while_it_is_read_is_told(packed, tmp_path, how):
    path = Path(shutil.copy(packed, tmp_path / "run.h5"))
    with serving(Served(path)) as served, open_store(served.address) as store:
        if how == "etag":
            served.etag = '"2"'
        else:
            path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(StoreError, match="run.h5 was changed at http://127.0.0.1 while it was read"):
            store.read("sinks/mass_image", sample=3)


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "it is empty"), (b"<html>no", "web page"), (b"x" * 9, "no HDF5|text")]
)
def test_what_is_no_store_is_a_sentence(tmp_path, content, says):
    path = tmp_path / "run.h5"
    path.write_bytes(content)
    with serving(Served(path)) as served, pytest.raises(StoreError, match=says):
        open_store(served.address)


def test_a_server_that_is_gone_is_a_sentence(packed):
    with serving(Served(packed)) as served:
        address = served.address
    with pytest.raises(StoreError, match="cannot be fetched from http://127.0.0.1: it cannot be reached"):
        open_store(address)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("gopher1://host/run.h5", "no such kind of address"),
        ("zip://run.h5::https://host/a.zip", "fetched whole"),
    ],
)
def test_addresses_of_other_kinds_are_refused(address, says):
    with pytest.raises(StoreError, match=says):
        open_store(address)


@pytest.mark.parametrize("missing", ["fsspec.core", "aiohttp"])
def test_without_its_packages_the_extra_is_named(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(StoreError, match=r"reading https:// needs packages.*pip install 'sd35h5\[remote\]'"):
        open_store("https://host/run.h5")


def test_other_kinds_of_addresses_are_read_and_watched_too(packed, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe("/far/run.h5", packed.read_bytes())
    try:
        with open_store("memory://far/run.h5") as store, open_store(packed) as here:
            assert store.read("sinks/mass_group").identical(here.read("sinks/mass_group"))
            files.pipe("/far/run.h5", b"another")
            monkeypatch.setattr(far_bytes, "LOOKED_AT_EVERY", 0)
            with pytest.raises(StoreError, match="was changed"):
                store.read("sinks/mass_image", sample=5)
    finally:
        files.rm("/far/run.h5")


def test_commands_that_look_take_an_address_and_others_say_what_to_do(served, capsys):
    assert main(["info", f"{served.address}?token=s3cret"]) == 0
    assert main(["verify", served.address]) == 0
    told = capsys.readouterr().out
    assert "run: complete, 8 of 8 samples" in told and "run.h5: well-formed" in told and "s3cret" not in told
    assert main(["verify", served.address, "--deep"]) == 1
    assert "download the file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["pack", served.address])
    assert ended.value.code == 2 and "download it first" in capsys.readouterr().err


def test_paths_are_no_addresses():
    assert not any(
        map(is_address, ("run.h5", "C:\\runs\\run.h5", "C:/run.h5", "/a:/b.h5", Path("https:/x/run.h5")))
    )
    assert all(map(is_address, ("https://x/run.h5", "hf://datasets/a/b/run.h5", "s3://bucket/run.h5")))
    assert shown_name("https://me:pw@x/a%20b/run.h5?sig=1#2") == "run.h5"


def test_blocks_come_once_and_neighbours_together():
    data = np.random.default_rng(0).bytes(5 * BLOCK_BYTES + 77)
    asked: list[tuple[int, int]] = []

    def fetch(spans):
        asked.extend(spans)
        return [data[start:stop] for start, stop in spans]

    cache = BlockCache(len(data), fetch, max_bytes=4 * BLOCK_BYTES)
    assert cache.read(BLOCK_BYTES - 5, 2 * BLOCK_BYTES + 5) == data[BLOCK_BYTES - 5 : 2 * BLOCK_BYTES + 5]
    assert asked == [(0, 3 * BLOCK_BYTES)]
    assert cache.read(0, BLOCK_BYTES) == data[:BLOCK_BYTES] and len(asked) == 1
    spans = [(10, 20), (5 * BLOCK_BYTES + 70, len(data) + 9), (7, 7)]
    assert cache.read_all(spans) == [data[10:20], data[5 * BLOCK_BYTES + 70 :], b""]
    assert asked[1:] == [(5 * BLOCK_BYTES, len(data))]
    cache.read(3 * BLOCK_BYTES, 5 * BLOCK_BYTES)  # more than is kept: the blocks that were read first go
    before = len(asked)
    assert cache.read(BLOCK_BYTES, BLOCK_BYTES + 1) == data[BLOCK_BYTES : BLOCK_BYTES + 1]
    assert len(asked) == before + 1
