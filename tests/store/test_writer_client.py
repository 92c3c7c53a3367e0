"""A writer in a process of its own: the file of the writer in this process, and a sentence for every end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from making.pipelines import make_pipeline
from making.samples import content, header, put_required

import sd35h5
from sd35h5.capturing import recorder
from sd35h5.errors import StoreError
from sd35h5.store.processes import children
from sd35h5.store.processes.writer_client import ProcessWriter
from sd35h5.store.verifying import verify
from sd35h5.store.writer import SampleWriter

HERE = Path(__file__).parents[1]


def _put_all(writer: SampleWriter | ProcessWriter, sizes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for step in range(sizes["step"]):
        writer.put("sinks/mass_image", rng.random((2, 4, 2, 70), np.float32), step=step)
    writer.put(
        "maps/image_to_text", rng.random((2, 4, 5, 3), np.float32), branch=0, map_step=1, map_token=[0, 2]
    )
    writer.sizes = sizes
    put_required(writer, seed=7, prompt="ein Käfer\nläuft")


def test_the_file_is_that_of_a_writer_in_this_process(tmp_path):
    near = SampleWriter(tmp_path / "near", 3, header())
    far = ProcessWriter(tmp_path / "far", 3, header())
    for writer in (near, far):
        _put_all(writer, near.sizes)
    events = [{"event": "guidance", "scale_of_steps": [4.5, None]}]
    sealed = near.seal(events), far.seal(events)
    assert content(sealed[0]) == content(sealed[1])
    for path in sealed:
        with sd35h5.open_store(path) as store:
            assert store.provenance["events"] == events
    assert verify(sealed[1], deep=True).ok
    far.abandon()
    assert sealed[1].is_file() and not list(sealed[1].parent.glob("*.tmp*"))


def test_large_arrays_come_over_whole_and_in_order_while_the_writer_is_slow(tmp_path):
    """More arrays than buffers, of growing and shrinking size, put faster than they are deflated."""
    noise = np.random.default_rng(5)
    values = [noise.random((2, 4, 2, 1500 * (1 + step % 3)), np.float32) for step in range(3)]
    wide = header("exact", token=np.arange(9000))
    near, far = SampleWriter(tmp_path / "near", 0, wide), ProcessWriter(tmp_path / "far", 0, wide)
    for writer in (near, far):
        for step, each in enumerate(values):
            for start in (0, each.shape[-1]):
                tokens = range(start, start + each.shape[-1])
                writer.put("sinks/mass_image", each, step=step, token=tokens)
        writer.sizes = near.sizes
        put_required(writer)
    assert content(near.seal()) == content(far.seal())


def test_a_capture_through_it_holds_what_a_capture_without_it_holds(tmp_path, monkeypatch, call):
    pipe, sealed = make_pipeline(), []
    for name, writer in (("near", SampleWriter), ("far", lambda *a, owned, **k: ProcessWriter(*a, **k))):
        monkeypatch.setattr(recorder, "SampleWriter", writer)
        every = {
            "map_heads": "all",
            "map_steps": "all",
            "map_layers": "0,2",
            "top_steps": "all",
            "atlas": True,
        }
        rows = ("centre", "word:apple")
        with sd35h5.capture(pipe, tmp_path / f"{name}.h5", rows=rows, **every) as generate:
            for seed in range(2):
                generate("a red apple", seed=seed, **call)
        with sd35h5.open_store(tmp_path / f"{name}.h5") as store:
            sealed.append(list(store.samples["content_sha256"]))
    assert len(sealed[0]) == 2 and sealed[0] == sealed[1]


def test_an_error_there_is_the_sentence_of_the_writer_here(tmp_path):
    far = ProcessWriter(tmp_path, 0, header())
    far.put("samples/seed", 1)
    far.put("samples/seed", 2)
    with pytest.raises(StoreError, match="samples/seed was put before"):
        far.seal()
    far.abandon()
    assert not list(tmp_path.glob("*.h5*"))
    with pytest.raises(StoreError, match="holds numbers"):
        ProcessWriter(tmp_path, 0, header()).put("samples/seed", "one")


def test_an_error_there_comes_out_of_a_later_put_long_before_the_seal(tmp_path):
    far = ProcessWriter(tmp_path, 0, header())
    far.put("samples/seed", 1, branch=0)  # it has no branch
    with pytest.raises(StoreError, match="samples/seed has no dimension 'branch'"):
        for _ in range(1000):
            far.put("sinks/mass_group", np.zeros((2, 2, 9, 3, 4, 2), np.float32))
            time.sleep(0.01)


def test_a_process_that_is_killed_costs_a_sentence(tmp_path):
    far = ProcessWriter(tmp_path, 5, header())
    os.kill(far._process.pid, signal.SIGKILL)
    with pytest.raises(
        StoreError, match="sample 000005 cannot be written: its writing process ended with code -9"
    ):
        far.seal()
    with pytest.raises(StoreError, match="sample 000005"):
        far.put("samples/seed", 1)
    far.abandon()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_caller_and_leaves_no_half_sample(tmp_path, end):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import time; from making.samples import header\n"
        "from pathlib import Path; from sd35h5.store.processes.writer_client import ProcessWriter\n"
        "far = ProcessWriter(Path(sys.argv[3]), 0, header()); far.put('samples/seed', 1)\n"
        "print(far._process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(HERE), str(HERE.parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as caller:
        far = int(caller.stdout.readline())
        _wait_until(lambda: list(tmp_path.glob("*.tmp")))
        caller.send_signal(end)
    _wait_until(lambda: not Path(f"/proc/{far}").exists())
    assert not list(tmp_path.glob("*.h5*"))


def test_a_sample_that_is_abandoned_before_its_process_is_ready_costs_no_word():
    line = children.command("sd35h5.store.processes.writer_process")
    environment = children.with_import_path(os.environ)
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as far:
        far.stdout.close()
        assert far.stderr.read() == b""
    assert far.returncode == 1


def _wait_until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
