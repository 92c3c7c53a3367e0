"""docs/metrics.md is what the docstrings say, and every number says formula, units, source and caveat."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd35h5.analysis import definitions

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [function for functions in definitions.SECTIONS.values() for function in functions]


def test_the_page_is_current():
    there = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert there == definitions.document(), "run: python -m sd35h5.analysis.definitions docs/metrics.md"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_number_has_formula_units_source_caveat_and_result(function):
    told = definitions.described(function)
    assert told[""] and {"Formula", "Units", "Source", "Caveat", "Returns"} <= set(told)
