"""Files from strangers, read by commands and by the server: every read has a limit, by what would be read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.stores import make_store

from sd35h5 import StoreError, open_store, verify
from sd35h5.__main__ import main
from sd35h5.reports.info import describe
from sd35h5.store import schema, score_joining
from sd35h5.store.processes import reader_pool
from sd35h5.store.processes.guarded_store import open_checked, open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.seals.file_seal import seal_file

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "v1.0.h5"
HANGS = slice(40145, 40563)  # zeros there make the HDF5 library loop for ever


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("sound") / "run.h5", samples=1)


@pytest.fixture
def hanging(tmp_path) -> Path:
    data = bytearray(GOLDEN.read_bytes())
    data[HANGS] = bytes(HANGS.stop - HANGS.start)
    (tmp_path / "hangs.h5").write_bytes(data)
    return tmp_path / "hangs.h5"


def test_a_file_that_hangs_its_reader_is_one_sentence(hanging):
    with (
        Readers(1, seconds=2) as readers,
        pytest.raises(StoreError, match="^hangs.h5: reading it did not end in 2 s"),
    ):
        describe(open_through(readers, hanging))
    assert verify(hanging, seconds=2).problems == (
        "reading it did not end in 2 s: it is damaged, or made to hang readers",
    )


@pytest.mark.parametrize("command", [["info"], ["analyze", "--out_dir", "out"]])
def test_ctrl_c_ends_a_command_at_once_and_leaves_no_process(hanging, tmp_path, command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "sd35h5", command[0], hanging.name, *command[1:]]
    with subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        busy: list[str] = []
        until = time.monotonic() + 60
        while not busy and time.monotonic() < until:  # until a child spends its time on the file
            time.sleep(0.2)
            busy = [pid for pid in children.read_text().split() if _cpu_seconds(pid) > 2]
        assert busy, "nothing hangs: the file is read"
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        assert process.wait(10) == 130 and time.monotonic() - begin < 5
        assert process.stderr.read() == ""
    assert not [pid for pid in busy if Path(f"/proc/{pid}/stat").exists()]


def _cpu_seconds(pid: str) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sparse(path: Path, sound: Path, **sizes: int) -> Path:
    """A well-formed file that claims these sizes and holds no value at all: fill values stand for all."""
    with h5py.File(sound) as source, h5py.File(path, "w", libver=schema.LIBVER) as file:
        file.attrs.update(source.attrs)
        for name, scale in schema.SCALES.items():
            if name in source:
                count = sizes.get(scale.along)
                values = source[name][...] if count is None else np.arange(count).astype(source[name].dtype)
                packed = {"chunks": (count,), "compression": "gzip"} if name == "sample" and count else {}
                file.create_dataset(name, data=values, **packed)
                if scale.is_dimension:
                    file[name].make_scale(name)
        for name, scale in schema.SCALES.items():
            if name in file and not scale.is_dimension:
                file[name].dims[0].attach_scale(file[scale.along])
        file["provenance/config"] = source["provenance/config"][()]
        for name, spec in schema.VARIABLES.items():
            if name in source:
                shape = tuple(len(file[dim]) for dim in spec.dims)
                if spec.is_text:
                    fill, dtype, chunks = b"text", h5py.string_dtype(), tuple(min(n, 64) for n in shape)
                else:
                    fill, dtype = int(name == "samples/sealed"), source[name].dtype
                    chunks = tuple(min(n, 8) for n in shape)
                file.create_dataset(name, shape, dtype, fillvalue=fill, chunks=chunks)
                for axis, dim in enumerate(spec.dims):
                    file[name].dims[axis].attach_scale(file[dim])
    return path


CLAIMS: dict[str, tuple[dict[str, int], str]] = {
    "samples": ({"sample": 100_000}, "it claims 100000 samples, which {size} bytes cannot hold"),
    "texts": ({"sample": 1000, "token": 8000}, "tokens/token_text claims 16000000 texts, which {size} bytes cannot"),
    "heads": ({"sample": 100, "layer": 500, "head": 500, "step": 50}, "it claims 1250000000 heads at all layers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_file_claims_no_more_than_its_bytes_can_hold(tmp_path, sound, kind):
    path = sparse(tmp_path / "sparse.h5", sound, **CLAIMS[kind][0])
    size = path.stat().st_size
    assert size < 200_000
    begin = time.monotonic()
    (problem,) = verify(path).problems
    assert problem.startswith(CLAIMS[kind][1].format(size=size)) and time.monotonic() - begin < 15


def test_what_is_plausible_and_sparse_is_sound_and_its_large_reads_are_refused(tmp_path, sound):
    path = sparse(tmp_path / "sparse.h5", sound, sample=40, step=400, layer=20, head=20)
    assert verify(path).ok
    with Readers(1) as readers:
        store = open_through(readers, path)
        assert store.read("sinks/mass_group", sample=0, branch=0, query=0).sizes["step"] == 400
        with pytest.raises(StoreError, match="would take 43 MiB, of which the file holds 0 bytes"):
            store.read("sinks/mass_group", sample=[0, 1, 2, 3], branch=0)


def test_a_picture_bomb_is_refused_by_its_pixels(tmp_path, sound, capsys):
    path = sparse(tmp_path / "bomb.h5", sound, pixel_y=16_000, pixel_x=17_000)
    with open_store(path) as store, pytest.raises(StoreError, match="are 17000 x 16000 pixels, more than"):
        store.image(0)
    assert main(["export", str(path), "--out_dir", str(tmp_path / "out")]) == 1
    assert "17000 x 16000 pixels" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("texts", ["x" * (3 << 20), ["x" * 40_000] * 3])
def test_a_long_text_attribute_is_measured_by_its_text(tmp_path, sound, texts):
    path = Path(shutil.copy(sound, tmp_path / "long.h5"))
    with h5py.File(path, "r+", libver=schema.LIBVER) as file:
        file.attrs["model_id"] = texts
    assert verify(path).problems == ("attribute model_id of / is larger than 65536 bytes",)


def test_scores_leave_the_holes_of_a_file_out_of_the_copy(tmp_path, sound):
    """An otherwise sound file whose length, and whose superblock, claim 20 GB."""
    path = Path(shutil.copy(sound, tmp_path / "run.h5"))
    with h5py.File(path, "r+", libver=schema.LIBVER) as file:
        file["scores/old"] = np.zeros(1, "<f4")
        file["scores/old"].dims[0].attach_scale(file["sample"])
        seal_file(file)
    os.truncate(path, 20 << 30)
    (tmp_path / "table.csv").write_text("sample_id,clip\n000000,0.25\n")
    copied: list[int] = []
    real = score_joining.copy_data

    def watched(source: Path, target: Path) -> None:
        real(source, target)
        copied.append(512 * target.stat().st_blocks)

    score_joining.copy_data = watched
    try:
        assert score_joining.join_scores(path, tmp_path / "table.csv") == {"clip": 1}
    finally:
        score_joining.copy_data = real
    assert copied[0] < 4 << 20 and 512 * path.stat().st_blocks < 4 << 20
    with open_store(path) as store:
        assert store.read("scores/clip").values.tolist() == [0.25]


@pytest.mark.parametrize("pieces", [[(0, 5)], [(3 << 20, 7)], [(0, 1), (5 << 20, 4096), (9 << 20, 1)], []])
def test_a_copy_without_holes_has_the_same_bytes(tmp_path, pieces):
    source = tmp_path / "source"
    with source.open("wb") as file:
        for place, count in pieces:
            file.seek(place)
            file.write(os.urandom(count))
        file.truncate(10 << 20)
    score_joining.copy_data(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_sound_file_is_told_of_damage_before_scores_copy_it(tmp_path, sound, hanging, monkeypatch):
    monkeypatch.setattr(score_joining, "refuse_problems", lambda path: _refuse(verify(path, seconds=2)))
    with pytest.raises(StoreError, match="did not end in 2 s"):
        score_joining.join_scores(hanging, tmp_path / "no.csv")
    assert not list(tmp_path.glob("*.tmp"))


def _refuse(report) -> None:
    raise StoreError(report.problems[0])


VERSIONS: dict[str, tuple[str, str]] = {
    "1.5": ("it asks for a reader of version 1.5, this one is of 1.", "min_reader"),
    "2.0": ("its min_reader is 2.0, this reader knows 1.x", "min_reader"),
    "one": ("its min_reader is one, this reader knows 1.x", "min_reader"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_min_reader_is_obeyed_by_every_reader_alike(tmp_path, sound, version):
    path = Path(shutil.copy(sound, tmp_path / "run.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["min_reader"] = version
    sentence = VERSIONS[version][0]
    assert verify(path).problems[0].startswith(sentence)
    readers: dict[str, Callable] = {
        "open_store": open_store,
        "scores": lambda place: score_joining.join_scores(place, tmp_path / "no.csv"),
        "commands": open_checked,
    }
    with Readers(1) as pool:
        readers["server"] = lambda place: open_through(pool, place)
        for read in readers.values():
            with pytest.raises(StoreError, match=sentence):
                read(path)


@pytest.mark.parametrize("version", ["1.0", schema.SCHEMA_VERSION])
def test_files_of_this_readers_age_are_read_whatever_else_they_hold(tmp_path, sound, version):
    path = Path(shutil.copy(sound, tmp_path / "run.h5"))
    with h5py.File(path, "r+", libver=schema.LIBVER) as file:
        file.attrs["min_reader"], file.attrs["schema_version"] = version, "1.9"
        file["provenance/steps/first"] = "a later version"
    assert verify(path).ok
    with open_store(path) as store:
        assert "steps" not in store.provenance and store.config


def test_a_closed_pool_ends_who_waits_for_it(sound):
    readers = Readers(1)
    store = open_through(readers, sound)
    readers.close()
    with pytest.raises(StoreError, match="run.h5 is closed"):
        store.read("sinks/mass_group")
    assert readers.processes() == [] and reader_pool.SECONDS > 1
