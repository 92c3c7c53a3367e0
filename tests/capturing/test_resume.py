"""Captures that are killed or interrupted: sealed samples are whole, the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from making.pipelines import T5_TOKENS

import capture_cli
from sd35h5 import open_store
from sd35h5.store.runs import begin_run, forget_run, read_run, sealed_indices

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ("a red apple", "a cat", "a dog left of a tree", "a blue background")
SAMPLES = 12  # many, so that a busy machine cannot seal them all before the signals come


def _flags(model: Path, out: Path) -> list[str]:
    flags = f"--height 64 --width 96 --steps 12 --max_sequence_length {T5_TOKENS} --seed 3"
    flags += f" --out {out} --model_id {model}"
    flags += f" --num_images {SAMPLES // len(PROMPTS)}"
    return [*flags.split(), "--prompt", *PROMPTS]


def _as_by_a_person() -> None:
    """Heed Ctrl-C also where the tests themselves run in a script's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _begin(flags: list[str], parts: Path) -> subprocess.Popen:
    """Start the command and wait until it sealed a sample and a further one is under way."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "capture_cli.py"), *flags],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=_as_by_a_person,
    )  # fmt: skip
    before, until = len(list(parts.glob("*.h5"))), time.monotonic() + 120
    while not (len(list(parts.glob("*.h5"))) > before and list(parts.glob("*.tmp"))):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "the capture sealed nothing in two minutes"
        time.sleep(0.005)
    return process


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory) -> Path:
    """The capture that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "whole.h5"
    assert capture_cli.main(_flags(tiny_folder, out)) == 0
    return out


def test_only_a_run_that_has_nothing_yet_is_forgotten(tmp_path):
    parts = begin_run(tmp_path / "run.h5", {"steps": 3}, 2)
    sealed = parts / "000000.h5"
    sealed.touch()
    forget_run(parts)
    assert sealed.exists() and read_run(parts)["planned"] == 2
    sealed.unlink()
    forget_run(parts)
    forget_run(parts)  # as of a run that never began
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [(signal.SIGKILL, signal.SIGTERM), pytest.param((signal.SIGINT, signal.SIGTERM), marks=pytest.mark.long)],
)
def test_a_capture_that_is_stopped_twice_goes_on_and_gives_equal_data(tiny_folder, whole, tmp_path, kills):
    stopped = tmp_path / "stopped.h5"
    parts = tmp_path / "stopped.h5.parts"
    before: list[int] = []
    for kill in kills:
        process = _begin(_flags(tiny_folder, stopped), parts)
        process.send_signal(kill)
        _, said = process.communicate(timeout=60)
        sealed = sealed_indices(parts)
        assert set(before) < set(sealed) and len(sealed) < SAMPLES and not stopped.exists()
        if kill != signal.SIGKILL:
            assert process.returncode == 128 + kill
            assert said.rstrip().endswith("stopped" if kill == signal.SIGINT else "stopped by SIGTERM")
            assert f"{len(sealed)} of {SAMPLES} samples are sealed" in said and "same command" in said
            assert "Traceback" not in said and not list(parts.glob("*.tmp"))
        else:
            assert process.returncode == -signal.SIGKILL
        with open_store(parts) as running:
            assert running.status == "capturing" and running.planned == SAMPLES
            assert len(running.samples) == len(sealed)
        before = sealed
    assert capture_cli.main(_flags(tiny_folder, stopped)) == 0
    assert not parts.exists()
    with open_store(whole) as first, open_store(stopped) as second:
        assert list(first.samples["content_sha256"]) == list(second.samples["content_sha256"])
        assert first.variables == second.variables
        for name in (
            "sinks/mass_image",
            "sinks/mass_group",
            "maps/image_to_text",
            "topk/top_mass",
            "images/image",
        ):
            np.testing.assert_array_equal(first.read(name).values, second.read(name).values, err_msg=name)
