"""The command line of the store: help, info, verify, pack; one line an error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from making.stores import make_store

from sd35h5.__main__ import main, parser
from sd35h5.reports.info import nbytes
from sd35h5.store.showable import showable
from sd35h5.store.writer import begin_run

ROOT = Path(__file__).parents[2]
COMMANDS = ("info", "verify", "pack", "scores", "analyze", "export")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("info") / "run.h5", samples=2, gates=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_every_option_is_explained(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example:\n  python -m sd35h5 {command} " in capsys.readouterr().out
    (commands,) = (action for action in parser()._actions if action.dest == "command")
    assert all(action.help for action in commands.choices[command]._actions)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_one_that_it_parses(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    example = capsys.readouterr().out.rpartition("python -m sd35h5 ")[2].split()
    assert parser().parse_args(example).command == command


def test_hyphens_are_as_good_as_underscores():
    args = parser().parse_args(
        ["analyze", "run.h5", "--out-dir", "out", "--first-token-index", "3", "--per-prompt"]
    )
    assert (args.out_dir, args.first_token_index, args.per_prompt) == (Path("out"), 3, True)


def test_info_tells_what_is_inside(run, capsys):
    assert main(["info", str(run)]) == 0
    text = capsys.readouterr().out
    for word in (
        "run: complete, 2 of 2 samples",
        "a red apple left of a cat",
        "headwise",
        "sinks/mass_image",
        "head 2",
    ):
        assert word in text


def test_info_as_json_has_everything(run, capsys):
    assert main(["info", "--json", str(run)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == run.stat().st_size
    assert told["variables"]["sinks/mass_image"]["shape"] == [2, 2, 4, 3, 2, 93]
    assert [sample["seed"] for sample in told["samples"]] == [0, 1]
    assert told["config"]["steps"] == 4


def test_info_as_json_is_json_where_a_number_is_missing(run, tmp_path, capsys):
    path = tmp_path / "a.h5"
    shutil.copy(run, path)
    with h5py.File(path, "a") as file:
        file["samples/row_sum_error"][0] = float("nan")
    assert main(["info", "--json", str(path)]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["samples"][0]["row_sum_error"] is None


def test_info_of_a_running_capture_says_how_far_it_is(tmp_path, capsys):
    begin_run(tmp_path / "run.h5", {"steps": 4}, planned=3)
    assert main(["info", str(tmp_path / "run.h5")]) == 0
    assert "run: capturing, 0 of 3 samples, 0 B" in capsys.readouterr().out


def test_info_answers_without_heavy_imports(run):
    code = (
        "import sys; from sd35h5.__main__ import main; code = main(['info', sys.argv[1]])\n"
        "heavy = {'torch', 'pandas', 'xarray', 'scipy', 'altair', 'streamlit'} & set(sys.modules)\n"
        "sys.exit(code or ', '.join(heavy) or 0)"
    )
    command = [sys.executable, "-c", code, str(run)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 10  # seconds on a busy machine; a claim would need a benchmark


def test_texts_from_a_file_cannot_write_control_characters():
    assert showable("a\x1b[31m cat\non a mat", 80) == r"a\x1b[31m cat on a mat"
    assert showable("x" * 100, 10) == "xxxxxxxxx…"
    assert [nbytes(n) for n in (0, 999, 1000, 2_500_000, 3 * 10**9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "3.0 GB",
    ]


def test_verify_exits_by_what_it_finds(run, tmp_path, capsys):
    assert main(["verify", str(run), "--deep"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("run.h5: well-formed and safe to open, every value as sealed\n")
    assert "checked by" in told and "looked at" in told  # by what it is signed off
    (tmp_path / "bad.h5").write_text("no")
    assert main(["verify", str(tmp_path / "bad.h5")]) == 1
    assert (
        capsys.readouterr().out == "bad.h5: it is a text, not HDF5, and begins with “no”: download it again\n"
    )
    assert main(["verify", "--json", str(tmp_path / "bad.h5")]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_pack_refuses_an_unfinished_capture_unless_told(tmp_path, capsys):
    parts = make_store(tmp_path / "run.h5", samples=1, packed=False, planned=3)
    assert main(["pack", str(parts)]) == 1
    assert "1 of 3 samples are sealed" in capsys.readouterr().err
    assert main(["pack", str(parts), "--partial"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run.h5") and parts.is_dir()
    assert main(["pack", str(parts), "--partial"]) == 1
    assert "run.h5 is there already: pass --overwrite" in capsys.readouterr().err
    assert main(["pack", str(parts), "--partial", "--overwrite", "--remove_parts"]) == 0
    assert not parts.exists() and main(["verify", str(tmp_path / "run.h5"), "--deep"]) == 0


def test_pack_takes_any_folder_with_a_name_for_the_file(tmp_path, capsys):
    parts = make_store(tmp_path / "run.h5", samples=1, packed=False).rename(tmp_path / "samples")
    assert main(["pack", str(parts)]) == 1
    assert "say with --out FILE.h5 where to pack it" in capsys.readouterr().err
    assert main(["pack", str(parts), "--out", str(tmp_path / "b.h5")]) == 0


@pytest.mark.parametrize("command", ["info", "verify", "pack"])
def test_an_error_is_one_line_and_exit_code_1(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "no.h5")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    with pytest.raises(FileNotFoundError):
        main([command, str(tmp_path / "no.h5"), "--debug"])


def test_a_wrong_option_is_exit_code_2(run):
    with pytest.raises(SystemExit) as stopped:
        main(["info", str(run), "--jsno"])
    assert stopped.value.code == 2
