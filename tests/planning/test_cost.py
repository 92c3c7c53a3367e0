"""The expected cost of a capture is what the committed benchmarks measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd35h5.planning.cost import DEMO_ON_CPU, LARGE_ON_H100, expected_share, told_cost
from sd35h5.planning.options import Tiers

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
LARGE = json.loads((RESULTS / "capture_cost_large.json").read_text())["results"]
EVERY = {"map_heads": "all", "map_steps": "all", "topk": 0}


@pytest.mark.parametrize(
    ("row", "tiers"),
    [
        ("sinks", Tiers(maps="off", topk=0)),
        ("default", Tiers()),
        ("maps of 24 tokens", Tiers(maps="words", map_pool=2, **EVERY)),
        ("atlas", Tiers(maps="off", topk=0, atlas=True, top_steps="all")),
    ],
)
def test_the_expected_share_of_each_measured_row_is_the_measured_one(row, tiers):
    assert expected_share(tiers, 28) == pytest.approx(LARGE[row]["ratio"] - 1, abs=1e-3)


def test_the_rate_and_the_share_on_a_cpu_are_measured_too():
    assert LARGE_ON_H100.rate == pytest.approx(LARGE["raw, pool 2"]["rates"]["reached"], rel=0.01)
    demo = json.loads((RESULTS / "demo_cost.json").read_text())["results"]
    assert DEMO_ON_CPU == pytest.approx(demo["baseline"]["ratio"] - 1, abs=0.1)


def test_the_cost_of_atlas_and_heaviest_keys_is_not_paid_twice():
    one, both = (expected_share(Tiers(maps="off", topk=k, atlas=True), 28) for k in (0, 16))
    assert one == both > expected_share(Tiers(maps="off", topk=16), 28)


def test_the_line_tells_seconds_to_write_a_sample():
    assert "2.5 s a sample" in told_cost(Tiers(), 28, round(2.5 * LARGE_ON_H100.rate * 1e6))
