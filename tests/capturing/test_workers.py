"""Worker processes draw one capture: a dead one costs nothing, a sample that fails is listed, the data are equal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from making.equal_arrays import assert_equal_arrays
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH

import capture_cli
from sd35h5.__main__ import main as sd35h5_main

PROMPTS = ("a red apple", "a cat", "a dog left of a tree", "a blue background", "a green tree", "a red cat")
STEPS = 40  # so that a worker is killed within a sample


def _command(model: Path, out: Path, *more: str) -> list[str]:
    flags = f"--height {HEIGHT} --width {WIDTH} --steps {STEPS} --max_sequence_length {T5_TOKENS} --seed 3"
    return [*flags.split(), "--out", str(out), "--model_id", str(model), *more, "--prompt", *PROMPTS]


@contextmanager
def workers_killed(parts: Path, times: int) -> Iterator[list[int]]:
    """SIGKILL a worker process whenever one is within a sample and others were sealed since; yield the victims."""
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        sealed = 0
        while not done.wait(0.02) and len(killed) < times:
            now = len(list(parts.glob("*.h5")))
            if now > sealed and (writing := list(parts.glob("*.tmp"))) and (pid := _worker_writing(writing)):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                sealed = now

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def _worker_writing(files: list[Path]) -> int | None:
    """The process below this one that holds one of these files open."""
    names = {str(path) for path in files}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if names & {file.path for file in process.open_files()}:
                return process.pid
    return None


def test_a_killed_worker_costs_nothing_and_a_sample_that_fails_is_listed(
    tiny_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: the last bit of a sum depends on their number
    whole, out, parts = tmp_path / "whole.h5", tmp_path / "run.h5", tmp_path / "run.h5.parts"
    assert capture_cli.main(_command(tiny_folder, whole)) == 0
    (parts / "000004.h5").mkdir(parents=True)  # in the way of the fifth sample
    with workers_killed(parts, times=1) as killed:
        assert capture_cli.main(_command(tiny_folder, out, "--workers", "2")) == 1
    assert len(killed) == 1
    said = capsys.readouterr().err
    assert "error: 1 sample could not be drawn: sample 4 (p004): sample 000004 cannot be written" in said
    left = {path.name for path in parts.iterdir()}
    assert left == {*(f"00000{index}.h5" for index in range(6)), "000004.failed.json", "run.json"}
    assert sd35h5_main(["missing", str(parts)]) == 1
    assert (
        "5 of 6 samples are sealed, 1 missing\n  failed: sample 4 (p004, seed 7, " in capsys.readouterr().out
    )
    (parts / "000004.h5").rmdir()
    assert capture_cli.main(_command(tiny_folder, out)) == 0  # and one process goes on where they stopped
    assert not parts.exists()
    assert_equal_arrays(out, whole)
