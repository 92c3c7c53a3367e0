"""Worker processes draw one capture: a dead one costs nothing, a sample that fails is listed, the data are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from making.equal_arrays import assert_equal_arrays
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH
from making.worker_kills import workers_killed

import capture_cli
from sd35h5.__main__ import main as sd35h5_main

PROMPTS = ("a red apple", "a cat", "a dog left of a tree", "a blue background", "a green tree", "a red cat")


def _command(model: Path, out: Path, *more: str, steps: int = 4) -> list[str]:
    flags = f"--height {HEIGHT} --width {WIDTH} --steps {steps} --max_sequence_length {T5_TOKENS} --seed 3"
    return [*flags.split(), "--out", str(out), "--model_id", str(model), *more, "--prompt", *PROMPTS]


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory) -> Path:
    """The capture that one process drew."""
    out = tmp_path_factory.mktemp("whole") / "run.h5"
    assert capture_cli.main(_command(tiny_folder, out)) == 0
    return out


def test_a_worker_gives_the_data_of_one_process_and_a_sample_that_fails_is_listed(
    tiny_folder, whole, tmp_path, capsys
):
    out, parts = tmp_path / "run.h5", tmp_path / "run.h5.parts"
    (parts / "000004.h5").mkdir(parents=True)  # in the way of the fifth sample
    assert capture_cli.main(_command(tiny_folder, out, "--workers", "1")) == 1
    said = capsys.readouterr().err
    assert "error: 1 sample could not be drawn: sample 4 (p004): sample 000004 cannot be written" in said
    left = {path.name for path in parts.iterdir()}
    assert left == {*(f"00000{index}.h5" for index in range(6)), "000004.failed.json", "run.json", "texts"}
    assert sd35h5_main(["missing", str(parts)]) == 1
    assert (
        "5 of 6 samples are sealed, 1 missing\n  failed: sample 4 (p004, seed 7, " in capsys.readouterr().out
    )
    (parts / "000004.h5").rmdir()
    assert capture_cli.main(_command(tiny_folder, out)) == 0  # and one process goes on where workers stopped
    assert [*tmp_path.iterdir()] == [out]
    assert_equal_arrays(out, whole)


@pytest.mark.long
def test_killed_workers_cost_nothing(tiny_folder, tmp_path):
    steps = 40  # so that a worker is killed within a sample
    whole, out, parts = tmp_path / "whole.h5", tmp_path / "run.h5", tmp_path / "run.h5.parts"
    assert capture_cli.main(_command(tiny_folder, whole, steps=steps)) == 0
    with workers_killed(parts, times=3) as killed:
        assert capture_cli.main(_command(tiny_folder, out, "--workers", "2", steps=steps)) == 0
    assert len(killed) == 3 and {*tmp_path.iterdir()} == {whole, out}
    assert_equal_arrays(out, whole)
