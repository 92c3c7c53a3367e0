"""Long prompts in little room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd35h5.figures.prompt_names import folded, short_names

LONG = json.loads((Path(__file__).parents[2] / "data/prompts/long.json").read_text(encoding="utf-8"))


def test_a_short_prompt_is_its_own_name():
    assert short_names(["a red apple", "a blue cat"]) == ["a red apple", "a blue cat"]


def test_prompts_that_begin_alike_are_named_from_where_they_differ():
    common = "a very detailed photograph in the style of the old masters, "
    names = short_names(
        [common + "with a fox under a bridge " * 9, common + "with a hen", "something else " * 9], 30
    )
    assert names[0] == "…fox under a bridge with a…"
    assert names[1].startswith("…") and names[1].endswith("with a hen") and len(names[1]) == 30
    assert names[2] == "something else something else…"


def test_a_prompt_that_another_one_goes_on_from_shows_its_end():
    base = "a wooden table by the window with nine lemons and a knife"
    names = short_names([base, f"{base} and a jar"], 24)
    assert names[0].startswith("…") and names[0].endswith("and a knife") and names[1].endswith("a jar")
    assert len(set(names)) == 2


@pytest.mark.parametrize("room", [24, 40, 80])
def test_hundred_long_prompts_have_short_and_different_names(room):
    prompts = [each["prompt"] for each in LONG]
    beside = [f"{'In one long take that begins in fog, ' * 40}{prompt}" for prompt in prompts]
    for texts in (prompts, beside):
        names = short_names(texts, room)
        assert len(set(names)) == len(set(texts)) and max(map(len, names)) <= room


def test_folded_texts_are_cut_at_words_and_say_so():
    assert folded("one  two\nthree", 20) == "one two three"
    assert folded("one two three four", 12) == "one two…"
    assert folded("x" * 30, 12) == "x" * 11 + "…"
