"""The table of real inputs says what ran, what fell short and what was left out, as the tests of tests/real ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import real_inputs

ROOT = Path(__file__).resolve().parents[2]
TESTS = '''"""Kinds of apples. More of it."""
import pytest

@pytest.mark.parametrize("colour", ["red", "green"])
def test_an_apple_is_eaten(colour):
    assert colour == "red"

def test_a_pear_is_left():
    pytest.skip("no pears | here")

def test_a_plum_is_eaten():
    pass
'''


def test_the_table_says_how_each_case_ended(tmp_path):
    (tmp_path / "test_apples.py").write_text(TESTS)
    watcher = real_inputs.Watcher()
    assert pytest.main([str(tmp_path), "-q", "-p", "no:cacheprovider", "-c", "/dev/null"], [watcher]) == 1
    assert real_inputs.table(list(watcher.tried.values())).splitlines()[2:] == [
        "| Kinds of apples. More of it | an apple is eaten | red, green | **fell short: green** |",
        "|  | a pear is left |  | left out here: no pears / here |",
        "|  | a plum is eaten |  | that |",
    ]


@pytest.mark.slow
@pytest.mark.long
def test_the_benchmark_runs_the_kinds_and_writes_what_it_prints(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "real_inputs.py"), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "text_is_quoted or lone_surrogates"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == (tmp_path / real_inputs.NAME).read_text(encoding="utf-8")
    assert "2 kinds, " in done.stdout and "0 tests fell short" in done.stdout
    nothing = subprocess.run([*command, "--only", "no_such_kind"], capture_output=True, text=True)
    assert nothing.returncode == 1 and "no table is written" in nothing.stderr
    assert done.stdout == (tmp_path / real_inputs.NAME).read_text(encoding="utf-8")
