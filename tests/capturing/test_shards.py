"""Shares of a capture that processes of their own draw into one folder: equal data, packed once, failures told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from making.equal_arrays import assert_equal_arrays
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH

import capture_cli
from sd35h5 import open_store, verify
from sd35h5.__main__ import main as sd35h5_main
from sd35h5.capturing.finishing import finish_shares
from sd35h5.store.runs import parts_of, read_run, running
from sd35h5.store.sharing.claims import claimed
from sd35h5.store.sharing.failures import failures_in, record_failure

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ("a red apple", "a cat", "a dog left of a tree", "a blue background", "a green tree")


def _command(model: Path, out: Path, *more: str) -> list[str]:
    flags = f"--height {HEIGHT} --width {WIDTH} --steps 3 --max_sequence_length {T5_TOKENS} --seed 3 --batch_size 2"
    return [*flags.split(), "--out", str(out), "--model_id", str(model), *more, "--prompt", *PROMPTS]


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory) -> Path:
    """The capture that one process drew."""
    out = tmp_path_factory.mktemp("whole") / "run.h5"
    assert capture_cli.main(_command(tiny_folder, out)) == 0
    return out


def test_shares_give_the_data_of_one_process_and_who_comes_last_packs(tiny_folder, whole, tmp_path, capsys):
    out, parts = tmp_path / "run.h5", tmp_path / "run.h5.parts"
    for share, sealed in (("2/3", {2, 3}), ("3/3", {2, 3, 4})):
        assert capture_cli.main(_command(tiny_folder, out, "--shard", share)) == 0
        assert f"{len(sealed)} of 5 samples are sealed" in capsys.readouterr().err and not out.exists()
        assert {int(path.stem) for path in parts.glob("*.h5")} == sealed
        assert read_run(parts)["shares"] == 3
    assert sd35h5_main(["missing", str(parts)]) == 1
    said = capsys.readouterr().out
    assert "3 of 5 samples are sealed, 2 missing\n  not drawn yet: 0-1\n" in said and "--shard 1/3\n" in said
    assert "--array=1 and --shard $SLURM_ARRAY_TASK_ID/3" in said
    assert capture_cli.main(_command(tiny_folder, out, "--shard", "1/3")) == 0
    assert out.is_file() and not parts.exists()
    assert_equal_arrays(out, whole)
    assert sd35h5_main(["missing", str(out)]) == 0 and "none missing" in capsys.readouterr().out
    assert capture_cli.main(_command(tiny_folder, out, "--shard", "2/3")) == 0  # a task that is queued again
    assert "nothing is left to draw" in capsys.readouterr().err and [*tmp_path.iterdir()] == [out]


@pytest.mark.long
def test_shares_that_draw_at_the_same_time_are_packed_once(tiny_folder, whole, tmp_path):
    """As torchrun starts them, with nothing in common but the folder."""
    out = tmp_path / "run.h5"
    command = [sys.executable, str(ROOT / "capture_cli.py"), *_command(tiny_folder, out, "--shard", "auto")]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env={**own, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert verify(out, deep=True).ok and [*tmp_path.iterdir()] == [out], said
    assert_equal_arrays(out, whole)


def test_a_sample_that_fails_is_listed_with_the_reason_and_the_others_are_drawn(
    tiny_folder, whole, tmp_path, capsys
):
    out, parts = tmp_path / "run.h5", tmp_path / "run.h5.parts"
    (parts / "000001.h5").mkdir(parents=True)  # in the way of the second sample
    assert capture_cli.main(_command(tiny_folder, out, "--shard", "1-2/2")) == 1
    said = capsys.readouterr().err
    assert "error: 1 sample could not be drawn: sample 1 (p001): sample 000001 cannot be written to" in said
    assert {int(path.stem) for path in parts.glob("*.h5") if path.is_file()} == {0, 2, 3, 4}
    assert sd35h5_main(["missing", str(parts), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["missing"] == [1] and told["shard"] == "1/2" and told["sealed"] == 4
    assert told["failed"]["1"]["seed"] == 4 and "is a directory" in told["failed"]["1"]["why"]
    (parts / "000001.h5").rmdir()
    assert capture_cli.main(_command(tiny_folder, out, "--shard", told["shard"])) == 0
    assert [*tmp_path.iterdir()] == [out]
    assert_equal_arrays(out, whole)


def test_a_failure_counts_until_the_sample_is_sealed(tmp_path):
    record_failure(tmp_path, 3, "p003", 7, "not finite")
    record_failure(tmp_path, 3, "p003", 7, "out of memory")
    (tmp_path / "000004.failed.json").write_text("[[[")
    assert {index: told["why"] for index, told in failures_in(tmp_path).items()} == {3: "out of memory"}
    (tmp_path / "000003.h5").touch()
    assert failures_in(tmp_path) == {}


def test_nobody_packs_or_removes_under_another(tmp_path, capsys):
    from making.stores import make_store

    out = tmp_path / "run.h5"
    parts = make_store(out, samples=2, packed=False)
    with running(out, shared=True), running(out, shared=True):
        assert finish_shares(out, 2) == parts and not out.exists()
    (parts / "pack.claim").write_text("another0")  # of a host whose locks are not seen here
    assert finish_shares(out, 2) == parts and not out.exists()
    assert "being packed on another host" in capsys.readouterr().err
    (parts / "pack.claim").unlink()
    with running(out) as held, claimed(held):
        (parts / "as.it.was").write_bytes((parts / "pack.claim").read_bytes())
    (parts / "as.it.was").rename(parts / "pack.claim")  # of a process of this host that was killed
    assert finish_shares(out, 3) == parts, "one is missing"
    assert finish_shares(out, 2) == out and not parts.exists()
    with open_store(out) as store:
        assert len(store) == 2
    assert finish_shares(out, 2) == out and parts_of(out) not in tmp_path.iterdir()


@pytest.mark.parametrize("more", [("--shard", "1/2", "--overwrite"), ("--shard", "1/2", "--gpus", "all")])
def test_what_does_not_go_together_is_said_before_anything_is_loaded(
    tiny_folder, tmp_path, capsys, more, monkeypatch
):
    monkeypatch.setattr(capture_cli, "_load_capture", None)
    assert capture_cli.main(_command(tiny_folder, tmp_path / "run.h5", *more)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --") and said.count("\n") == 1 and not [*tmp_path.iterdir()]
