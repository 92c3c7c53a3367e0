"""What commands do whose folder is full, read-only, gone or a file: one sentence, no half file, and then go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from making.disks import fill, read_only, small_disk
from making.stores import make_store

from sd35h5 import StoreError, open_store
from sd35h5.__main__ import main
from sd35h5.reports.output_files import make_folder, write, writing

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, sink in (("a", 3.0), ("b", 1.0)):
        make_store(folder / f"{name}.h5", samples=2, sink=sink)
    (folder / "table.csv").write_text("sample_id,clip\n000000,0.3\n000001,0.4\n")
    return folder


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "analyze": lambda runs, out: ["analyze", f"{runs / 'a.h5'}", "--out_dir", f"{out}"],
    "export": lambda runs, out: ["export", f"{runs / 'a.h5'}", "--maps", "--out_dir", f"{out}"],
    "compare": lambda runs, out: [
        "compare", f"{runs / 'a.h5'}", f"{runs / 'b.h5'}", "--resamples", "100", "--out_dir", f"{out}",
    ],
}  # fmt: skip


def left_in(folder: Path) -> list[str]:
    """The files of a folder, by their paths in it."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def said(capsys) -> str:
    """The one sentence on stderr."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_costs_a_sentence_no_half_file_and_the_same_command_goes_on(
    runs, tmp_path, capsys, command
):
    with small_disk(tmp_path / "disk", "4m") as disk:
        arguments, filler = COMMANDS[command](runs, disk / "out"), fill(disk, but=3 * 4096)
        assert main(arguments) == 1
        sentence = said(capsys)
        assert sentence.startswith(f"error: {disk / 'out'}") and "no space left on device" in sentence
        assert "then give the same command again" in sentence
        assert not [file for file in left_in(disk) if file.endswith(".tmp")]
        assert all((disk / file).stat().st_size for file in left_in(disk))
        filler.unlink()
        assert main(arguments) == 0
        made = capsys.readouterr().out.split()
        assert sorted(made) == [str(disk / file) for file in left_in(disk)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_folder_costs_a_sentence_and_keeps_what_is_there(runs, tmp_path, capsys, command):
    with small_disk(tmp_path / "disk", "4m") as disk:
        (disk / "out").mkdir()
        (disk / "out" / "report.html").write_text("an earlier report")
        with read_only(disk):
            for out in (disk / "out", disk / "new"):
                assert main(COMMANDS[command](runs, out)) == 1
                sentence = said(capsys)
                assert sentence.startswith(f"error: {out}") and "read-only file system" in sentence
        assert left_in(disk) == ["out/report.html"]


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(runs, tmp_path):
    """Everywhere, also where no disk can be mounted: the table is larger than the limit."""
    code = (
        "import resource, sys; from sd35h5.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMANDS["analyze"](runs, out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: {out / 'first_token_metrics.csv'} cannot be written: file too large"
    )
    assert done.stderr.count("\n") == 1 and left_in(out) == []


def test_a_folder_that_vanishes_while_it_is_written_to_is_told(tmp_path):
    out = make_folder(tmp_path / "out")
    with pytest.raises(StoreError, match="x.csv cannot be written: no such file or directory"):
        with writing(out / "x.csv", "w") as file:
            file.write("a,b\n")
            shutil.rmtree(out)
    with pytest.raises(StoreError, match="x.csv cannot be written: no such file or directory"):
        write(out / "x.csv", b"a,b\n")


def test_a_file_or_a_file_in_the_path_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StoreError, match="out is a file: give --out_dir a folder"):
        make_folder(tmp_path / "out")
    with pytest.raises(StoreError, match="cannot be written: not a directory"):
        make_folder(tmp_path / "out" / "deeper")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_error_while_a_file_is_written_leaves_the_earlier_one(tmp_path):
    write(tmp_path / "x.csv", b"whole")
    with pytest.raises(KeyError):
        with writing(tmp_path / "x.csv") as file:
            file.write(b"half")
            raise KeyError("a metric")
    assert (tmp_path / "x.csv").read_bytes() == b"whole" and left_in(tmp_path) == ["x.csv"]


def test_scores_on_a_full_or_read_only_disk_leave_the_file_as_it_was(runs, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "2m") as disk:
        run = Path(shutil.copy(runs / "a.h5", disk))
        before, filler = run.read_bytes(), fill(disk, but=4 * 4096)
        assert main(["scores", str(run), str(runs / "table.csv")]) == 1
        assert said(capsys) == "error: a.h5 cannot be written: no space left on device"
        with read_only(disk):
            assert main(["scores", str(run), str(runs / "table.csv")]) == 1
        assert said(capsys) == "error: a.h5 cannot be written: read-only file system"
        assert run.read_bytes() == before and left_in(disk) == ["a.h5", "filler"]
        filler.unlink()
        assert main(["scores", str(run), str(runs / "table.csv")]) == 0
        with open_store(run) as store:
            assert store.read("scores/clip").values.tolist() == pytest.approx([0.3, 0.4])


def test_a_full_disk_behind_the_output_is_one_line(runs):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "sd35h5", "info", str(runs / "a.h5")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}
        )
    assert (done.returncode, done.stderr) == (1, "error: the output: no space left on device\n")
