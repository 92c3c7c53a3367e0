"""docs/metrics.md is what the docstrings say, and every number says formula, units, source and caveat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sd35h5.reports import metric_definitions

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = [function for functions in metric_definitions.SECTIONS.values() for function in functions]


def test_the_page_is_current():
    there = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert there == metric_definitions.document(), (
        "run: python -m sd35h5.reports.metric_definitions docs/metrics.md"
    )


def test_an_option_is_no_file_to_write(tmp_path):
    command = [sys.executable, "-m", "sd35h5.reports.metric_definitions", "--help"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "docs/metrics.md" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_number_has_formula_units_source_caveat_and_result(function):
    told = metric_definitions.described(function)
    assert told[""] and {"Formula", "Units", "Source", "Caveat", "Returns"} <= set(told)
