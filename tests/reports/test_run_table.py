"""The captures of a folder: how far, how fast, how large, what failed; also of files that cannot be read."""

from __future__ import annotations

import json
import os

import pytest
from making.stores import make_store

from sd35h5.__main__ import main
from sd35h5.reports.run_table import duration
from sd35h5.store.runs import running
from sd35h5.store.sharing.failures import record_failure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed run, one under way at 40 samples an hour with a failure, and a text that is called a run."""
    folder = tmp_path_factory.mktemp("runs")
    make_store(folder / "done.h5", samples=2)
    parts = make_store(folder / "live.h5", samples=3, packed=False, planned=9)
    os.utime(parts / "run.json", (1_000, 1_000))
    for number, path in enumerate(sorted(parts.glob("*.h5"))):
        when = 1_000 + 90 * (number + 1)
        os.utime(path, (when, when))
    record_failure(parts, 7, "p007", 7, "out of memory")
    (folder / "notes.h5").write_text("a shopping list")
    return folder


def test_captures_are_listed_with_speed_estimate_size_and_failures(folder, capsys):
    with running(folder / "live.h5"):
        assert main(["runs", str(folder), "--json"]) == 0
    done, live, notes = json.loads(capsys.readouterr().out)
    assert (done["name"], done["state"], done["sealed"], done["per_hour"]) == ("done.h5", "complete", 2, None)
    assert done["bytes"] == (folder / "done.h5").stat().st_size
    assert (live["state"], live["sealed"], live["planned"], live["failed"]) == ("capturing", 3, 9, 1)
    assert live["per_hour"] == pytest.approx(40) and live["seconds_left"] == pytest.approx(6 * 90)
    assert notes["state"] == "unreadable" and "it is a text, not HDF5" in notes["problem"]


def test_a_capture_that_nobody_fills_is_stopped_and_has_no_estimate(folder, capsys):
    assert main(["runs", str(folder / "live.h5")]) == 0
    heads, row = capsys.readouterr().out.splitlines()
    assert heads.split("  ")[0] == "capture" and "3 of 9" in row and " stopped " in row and " ago " in row
    assert row.split()[-1] == "1" and " min " not in row


def test_a_folder_without_captures_is_refused(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 1
    assert "there is no capture" in capsys.readouterr().err


def test_times_are_said_as_people_do():
    assert [duration(each) for each in (None, 40, 1320, 12600)] == ["", "40 s", "22 min", "3.5 h"]
