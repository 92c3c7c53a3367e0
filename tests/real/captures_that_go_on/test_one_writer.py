"""One process fills a run: a second one is told so at once, and nothing is removed under the first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from making.stores import make_store

import capture_cli
import sd35h5
from sd35h5.__main__ import main as sd35h5_main
from sd35h5.errors import StoreError
from sd35h5.store.runs import TEXTS_FOLDER, begin_run, parts_of, running

ROOT = Path(__file__).resolve().parents[3]
HOLD = (
    "import sys, time; from pathlib import Path; from sd35h5.store.runs import running\n"
    "with running(Path(sys.argv[1])) as parts:\n    print(parts, flush=True); time.sleep(600)"
)
ARGS = ["--prompt", "a cat", "--steps", "2"]


@pytest.fixture
def held(tmp_path):
    """A run that another process fills, with a sealed sample; (its file, the process)."""
    out = tmp_path / "run.h5"
    make_store(out, samples=1, packed=False)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    process.stdout.readline()
    yield out, process
    process.kill()
    process.wait()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_second_capture_is_told_before_torch_is_imported(held, tiny_folder, capsys, monkeypatch, more):
    out, process = held
    before = sorted(path.name for path in parts_of(out).iterdir())
    monkeypatch.setattr(capture_cli, "_load_capture", None)
    began = time.monotonic()
    assert capture_cli.main([*ARGS, "--out", str(out), "--model_id", str(tiny_folder), *more]) == 1
    assert time.monotonic() - began < 5  # a second, on a machine with nothing else to do
    said = capsys.readouterr().err
    assert f"run.h5 is being captured already, by process {process.pid}: wait for it or stop it" in said
    assert sorted(path.name for path in parts_of(out).iterdir()) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_is_told_to_python(held, tiny_pipeline, overwrite):
    out, _ = held
    sealed = (parts_of(out) / "000000.h5").read_bytes()
    with pytest.raises(StoreError, match="is being captured already"):
        with sd35h5.capture(tiny_pipeline, out, overwrite=overwrite):
            raise AssertionError
    assert (parts_of(out) / "000000.h5").read_bytes() == sealed


def test_two_captures_of_one_process_are_two(tiny_pipeline, tmp_path):
    with running(tmp_path / "run.h5"), pytest.raises(StoreError, match=f"by process {os.getpid()}"):
        with running(tmp_path / "run.h5"):
            raise AssertionError
    assert not list(tmp_path.iterdir())


def test_packing_by_hand_waits_for_the_capture(held, capsys):
    out, _ = held
    assert sd35h5_main(["pack", str(parts_of(out)), "--partial", "--remove_parts"]) == 1
    assert "is being captured already" in capsys.readouterr().err and not out.exists()


def test_who_is_killed_holds_nothing(held):
    out, process = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    with running(out) as parts:
        begin_run(out, {"steps": 1}, planned=1, overwrite=True)
        assert sorted(path.name for path in parts.iterdir()) == ["run.json", "run.lock"]
    assert not parts.exists()


def test_of_many_that_come_and_go_one_holds_at_a_time(tmp_path):
    """The folder is made and removed all the time, and never under the one that holds it."""
    inside: list[int] = []

    def one(number: int) -> int:
        held = 0
        for _ in range(60):
            try:
                with running(tmp_path / "run.h5") as parts:
                    inside.append(number)
                    (parts / "mine").touch(exist_ok=False)
                    assert len(inside) == 1
                    (parts / "mine").unlink()
                    inside.remove(number)
                held += 1
            except StoreError:
                time.sleep(0.0005)
        return held

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(one, range(6))) >= 6
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_terminated_process_group_leaves_no_orphan_and_no_half_file(tiny_folder, tmp_path):
    """As schedulers do: to every process of the job, SIGUSR1 first, SIGTERM soon after, twice."""
    out = tmp_path / "run.h5"
    command = [sys.executable, "capture_cli.py", *ARGS, "--out", str(out), "--model_id", str(tiny_folder)]
    command += "--height 64 --width 96 --steps 60 --num_images 50 --device cpu".split()
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    until = time.monotonic() + 120
    while not list(parts_of(out).glob("*.tmp")) or not (parts_of(out) / "000000.h5").exists():
        assert process.poll() is None and time.monotonic() < until, process.stderr.read()
        time.sleep(0.005)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        os.killpg(process.pid, number)
        time.sleep(0.01)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1 and said.rstrip().endswith("stopped by SIGUSR1")
    assert "the same command goes on" in said and "Traceback" not in said
    beside = {path.name for path in parts_of(out).iterdir() if not path.stem.isdecimal()}
    assert beside == {"run.json", TEXTS_FOLDER} and not list(parts_of(out).rglob("*.tmp"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
