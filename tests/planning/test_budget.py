"""--budget takes the richest tiers that fit, says which, and refuses what it cannot keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH

import capture_cli
from sd35h5 import open_store
from sd35h5.errors import ConfigError
from sd35h5.planning import budget
from sd35h5.planning.budget import (
    CHOSEN,
    check_budget,
    parse_size,
    told_as_flags,
    within_budget,
)
from sd35h5.planning.describing import describe
from sd35h5.planning.job import resolve
from sd35h5.planning.options import CaptureConfig, Model, Output, Prompts, Tiers
from sd35h5.planning.plan import make_plan
from sd35h5.planning.validation import validate
from sd35h5.weights.model_facts import read_facts

LARGE = read_facts(Model(), offline_guess=True)
CONFIG = CaptureConfig(prompts=Prompts(prompt=("a red apple", "a cat")))
SAMPLES = 2


def _within(size: str, **tiers: object) -> CaptureConfig:
    return within_budget(replace(CONFIG, output=Output(budget=size), tiers=Tiers(**tiers)), LARGE, SAMPLES)


def _bytes(tiers: Tiers) -> int:
    return SAMPLES * make_plan(replace(CONFIG, tiers=tiers), LARGE).file_bytes


@pytest.mark.parametrize(
    ("text", "count"), [("4GB", 4e9), ("500 MB", 5e8), ("1.5GiB", 1.5 * 2**30), ("2kB", 2e3), ("1KiB", 1024)]
)
def test_sizes_are_read(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("size", ["60TB", "4GB", "1GB", "300MB", "110MB", "78MB", "74MB"])
def test_the_richest_tiers_that_fit_are_taken(size):
    chosen = _within(size).tiers
    assert _bytes(chosen) <= parse_size(size)
    richer = []
    for rung in budget._LADDER:
        if (tiers := Tiers(**rung)) == chosen:
            break
        richer.append(tiers)
    assert chosen == tiers and all(_bytes(each) > parse_size(size) for each in richer)


def test_every_step_down_the_ladder_saves_bytes_at_the_size_of_sd35_large():
    sizes = [_bytes(Tiers(**rung)) for rung in budget._LADDER]
    assert sizes == sorted(set(sizes), reverse=True)


def test_without_a_budget_nothing_is_chosen():
    assert within_budget(CONFIG, LARGE, SAMPLES) is CONFIG


def test_other_options_stay_and_words_keep_their_maps():
    chosen = _within("4GB", words=("cat",), precision="exact", rows=("centre",)).tiers
    assert (chosen.words, chosen.precision, chosen.rows) == (("cat",), "exact", ("centre",))
    assert _within("74MB").tiers.maps == "off"
    with pytest.raises(ConfigError, match="--budget 74MB is too small"):
        _within("74MB", words=("cat",))


def test_a_budget_below_the_smallest_tiers_is_refused_with_what_they_take():
    with pytest.raises(ConfigError, match=r"--budget 1MB is too small: .* take about \d\S* MB for 2 samples"):
        _within("1MB")


@pytest.mark.parametrize("text", ["4", "4 gigs", "-1GB", "GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is no size: write 500MB"):
        parse_size(text)


def test_options_that_the_budget_chooses_are_refused_beside_it():
    with pytest.raises(ConfigError, match="--budget chooses --map_pool, --atlas itself"):
        check_budget(replace(CONFIG, output=Output(budget="4GB"), tiers=Tiers(map_pool=1, atlas=True)))
    assert set(CHOSEN) <= set(vars(Tiers()))


def test_the_plan_says_what_the_budget_stands_for():
    text = describe(resolve(replace(CONFIG, output=Output(budget="4GB")), validate(CONFIG), LARGE))
    flags = text.splitlines()[-1]
    assert flags.startswith("--budget 4GB stands for: ") and "--map_heads all" in flags and "--atlas" in flags
    assert "atlas/mass_patch" in text
    assert told_as_flags(Tiers(words=("red apple", "cat"), atlas=True)) == "--words red apple cat --atlas"


def test_a_capture_within_a_budget_stays_below_it(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run.h5"
    flags = ["--model_id", str(tiny_folder), "--prompt", "a cat", "--steps", "4", "--out", str(out)]
    flags += ["--height", str(HEIGHT), "--width", str(WIDTH), "--max_sequence_length", str(T5_TOKENS)]
    assert capture_cli.main([*flags, "--budget", "1MB"]) == 0
    assert "--budget 1MB stands for: " in capsys.readouterr().err
    assert out.stat().st_size < 1e6
    with open_store(out) as store:
        assert "atlas/mass_patch" in store and "maps/image_to_text_per_head" in store
