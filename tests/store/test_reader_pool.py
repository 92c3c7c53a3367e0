"""Stores read through reader processes: the same values, and what becomes of a file that kills, hangs or swells
its reader. Signals stand for the damaged files: a reader that is stopped hangs, one that is killed crashes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.killing import killed_again_and_again
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.errors import StoreError, UnreadableError
from sd35h5.store import verifying
from sd35h5.store.processes import guarded_files
from sd35h5.store.processes import reader_pool as pool
from sd35h5.store.processes.children import CannotStartError
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("readers") / "run.h5", samples=3, gates=True)


@contextmanager
def running(**options) -> Iterator[Readers]:
    readers = Readers(**options)
    try:
        yield readers
    finally:
        readers.close()


@pytest.mark.parametrize("packed", [True, False])
def test_everything_is_as_the_store_itself_gives_it(tmp_path, packed):
    place = make_store(tmp_path / "run.h5", gates=True, packed=packed, planned=4)
    with running(count=2) as readers, open_store(place) as store:
        remote = open_through(readers, place)
        assert repr(remote) == repr(store)
        for name in store.variables:
            assert remote.read(name).identical(store.read(name)), name
            assert remote.bytes_on_disk(name) == store.bytes_on_disk(name)
        assert remote.samples.equals(store.samples)
        assert remote.tokens(1, "uncond").equals(store.tokens(1, "uncond"))
        assert np.array_equal(remote.image(1), store.image(1))
        told = (
            remote.sizes,
            remote.config,
            remote.provenance,
            remote.attributes,
            remote.planned,
        )
        assert told == (store.sizes, store.config, store.provenance, store.attributes, store.planned)
        part = {"sample": [1, 0], "branch": "cond", "token": [5, 1], "layer": 2}
        assert remote.read("sinks/mass_image", **part).identical(store.read("sinks/mass_image", **part))


def test_large_reads_are_shared_among_the_readers_and_come_together_again(path, monkeypatch):
    monkeypatch.setattr(guarded_files, "SPLIT_BYTES", 100)
    with running(count=2) as readers, open_store(path) as store:
        found = open_through(readers, path).read("sinks/mass_group", sample=[2, 0, 1])
        assert found.identical(store.read("sinks/mass_group", sample=[2, 0, 1]))


def test_a_reader_killed_during_a_read_is_replaced_and_the_read_still_answers(path):
    with running(count=1) as readers:
        remote = open_through(readers, path)
        (first,) = readers.processes()
        os.kill(first, signal.SIGSTOP)  # so that the read is under way when its reader dies
        threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
        assert np.isfinite(remote.read("sinks/mass_group", branch=0)).all()
        assert readers.processes() != [first]


def test_a_file_that_always_kills_its_reader_costs_one_sentence_and_is_not_tried_again_at_once(path):
    with running(count=2) as readers:
        remote = open_through(readers, path)
        with killed_again_and_again(readers):
            with pytest.raises(StoreError, match="^run.h5: reading it crashed the HDF5 library"):
                remote.read("sinks/mass_group")
        with pytest.raises(StoreError, match="crashed"):
            remote.read("sinks/mass_group")
        assert np.isfinite(open_through(readers, path, mark=(1,)).read("sinks/mass_group")).all()


def test_a_reader_that_the_system_ends_is_not_blamed_on_its_file(path):
    with running(count=1) as readers:
        remote = open_through(readers, path)
        with killed_again_and_again(readers, signal.SIGKILL):
            with pytest.raises(
                CannotStartError, match=r"ended from outside \(SIGKILL\).*no file is to blame"
            ):
                remote.read("sinks/mass_group")
        with pytest.raises(CannotStartError, match="try again in a minute"):  # not even asked
            remote.read("sinks/mass_group")
    with pytest.raises(CannotStartError, match="checker was ended from outside"):
        verifying._end(-signal.SIGKILL, b"")
    assert verifying._end(-signal.SIGBUS, b"") == verifying.CRASHED


def test_a_file_of_other_contents_in_its_place_is_not_read_for_the_first(path, tmp_path):
    copy = Path(shutil.copy(path, tmp_path / "run.h5"))
    with running(count=1) as readers:
        remote = open_through(readers, copy)
        readers._readers[0].end()  # another one opens it
        make_store(copy, samples=3, gates=True, seed=7)
        with pytest.raises(UnreadableError, match="is another file than when it was opened"):
            remote.read("sinks/mass_group")


def test_a_read_that_hangs_ends_with_a_sentence_within_the_limit(path):
    with running(count=1, seconds=2) as readers:
        remote = open_through(readers, path)
        (stopped,) = readers.processes()
        os.kill(stopped, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(StoreError, match="did not end in 2 s"):
            remote.read("sinks/mass_group")
        assert 1.9 < time.monotonic() - begin < 4
        assert not Path(f"/proc/{stopped}").exists()


def test_other_reads_are_answered_while_one_hangs(path):
    with running(count=2, seconds=20) as readers:
        remote = open_through(readers, path)
        asking = threading.Thread(target=remote.read, args=("sinks/mass_group",))
        busy = readers._idle.queue[-1].process.pid
        os.kill(busy, signal.SIGSTOP)
        asking.start()
        time.sleep(0.3)
        assert np.isfinite(remote.read("sinks/mass_group")).all()
        assert asking.is_alive()
        os.kill(busy, signal.SIGCONT)
        asking.join(timeout=20)
        assert not asking.is_alive()


def test_waiting_for_an_idle_reader_ends_too(path):
    with running(count=1) as readers:
        remote = open_through(readers, path)
        readers._idle.get()
        readers.seconds = 1  # only now: on a busy machine a reader takes longer to start
        with pytest.raises(StoreError, match="all readers were busy for 1 s"):
            remote.read("sinks/mass_group")


def test_a_value_that_swells_beyond_the_memory_of_a_reader_is_one_sentence(path, tmp_path):
    swelling = tmp_path / "swelling.h5"
    swelling.write_bytes(path.read_bytes())
    with h5py.File(swelling, "r+") as file:
        shape = file["sinks/mass_group"].shape
        del file["sinks/mass_group"]
        chunk = ((600 << 20) // (4 * int(np.prod(shape[1:]))), *shape[1:])  # 600 MiB in half a MiB of file
        values = file.create_dataset(
            "sinks/mass_group", shape, "<f4", maxshape=(None, *shape[1:]), chunks=chunk, compression="gzip"
        )
        zeros = zlib.compress(bytes(4 * int(np.prod(chunk))), 1)
        values.id.write_direct_chunk((0,) * values.ndim, zeros)
    with running(count=1, memory=700 << 20) as readers:
        remote = open_through(readers, swelling)
        with pytest.raises(StoreError, match="damaged"):
            remote.read("sinks/mass_group", branch=0)
        assert np.isfinite(open_through(readers, path).read("sinks/mass_group")).all()


def test_a_read_of_more_than_the_server_can_hold_is_refused_before_it_is_made(path):
    with running(count=1) as readers:
        remote = open_through(readers, path)
        remote._max_read_bytes = 1000
        with pytest.raises(StoreError, match="choose fewer samples or steps"):
            remote.read("sinks/mass_group")


def test_a_changed_file_is_opened_anew(path, tmp_path):
    copy = tmp_path / "run.h5"
    copy.write_bytes(path.read_bytes())
    with running(count=1) as readers:
        before = open_through(readers, copy, mark=(1,)).read("sinks/mass_group")
        copy.unlink()
        make_store(copy, seed=7)
        after = open_through(readers, copy, mark=(2,)).read("sinks/mass_group")
    with open_store(copy) as store:
        assert after.identical(store.read("sinks/mass_group"))
    assert after.shape != before.shape


@pytest.mark.parametrize(
    "line",
    [
        pickle.dumps({"value": 1}) + b"\n",
        b"[" * 100_000 + b"\n",
        b'{"value": 1}',
        b"7\n",
        json.dumps([]).encode() + b"\n",
    ],
)
def test_what_a_misled_reader_sends_is_never_more_than_json_of_the_right_kind(line):
    with pytest.raises(StoreError, match="nonsense"):
        pool._parsed(line)


def test_no_module_on_the_servers_side_of_the_pipe_unpickles():
    for module in ("reader_pool", "guarded_files", "guarded_store", "reader_process"):
        assert "import pickle" not in (Path(pool.__file__).parent / f"{module}.py").read_text()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_reader_gets_no_secret_and_imports_neither_torch_nor_streamlit(path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running(count=1) as readers:
        open_through(readers, path)
        (pid,) = readers.processes()
        assert b"hf_secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "h5py" in mapped
        assert not any(name in mapped for name in ("libtorch", "pandas", "pyarrow"))


def test_errors_keep_no_path_of_the_server(tmp_path):
    missing = tmp_path / "gone.h5"
    with running(count=1) as readers, pytest.raises(StoreError) as error:
        open_through(readers, missing)
    assert str(error.value) == "gone.h5: there is no such file or folder"
