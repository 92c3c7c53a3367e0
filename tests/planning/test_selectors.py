"""What --map_steps, --rows and --raw may say, and which steps, layers, tokens and patches they mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making.pipelines import make_clip_tokenizer, make_t5_tokenizer

from sd35h5.errors import ConfigError
from sd35h5.index_lists import choose, choose_among
from sd35h5.planning.selectors import (
    ABSENT,
    RawChoice,
    check_rows,
    choose_rows,
    count_rows,
    parse_raw,
    raw_indices,
)
from sd35h5.planning.token_table import encode, token_table

IMAGE, TEXT = 0, 1
PATCHES = (4, 6)


@pytest.fixture(scope="module")
def table():
    clip, t5 = make_clip_tokenizer(), make_t5_tokenizer()
    prompt = "a red apple left of a cat"
    return token_table(encode(clip, prompt, 77), encode(clip, prompt, 77), encode(t5, prompt, 24), 24)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("all", range(12)), ("every:5", [0, 5, 10]), ("7,1,7", [1, 7]), ("2-4,0,11", [0, 2, 3, 4, 11])],
)
def test_indices_are_written_in_four_ways(text, chosen):
    assert choose("map_layers", text, 12, "layer") == list(chosen)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("every:0", "--map_layers 'every:0' is not understood: write all, every:4, or a list"),
        ("", "not understood"),
        ("3-12", "--map_layers names layer 12, but 12 layers are numbered 0..11"),
        ("5-3", "--map_layers '5-3' counts backwards"),
    ],
)
def test_other_indices_are_refused_in_a_sentence(text, said):
    with pytest.raises(ConfigError, match=said):
        choose("map_layers", text, 12, "layer")


@pytest.mark.parametrize(
    ("text", "chosen"), [("all", [2, 5, 6, 9]), ("every:2", [2, 6]), ("5,2", [2, 5]), ("3-8", [5, 6])]
)
def test_of_what_is_left_of_an_axis_true_indices_are_chosen(text, chosen):
    assert choose_among("layers", text, [2, 5, 6, 9], "layer") == chosen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", "--layers names layer 3, but the layers there are 2, 5, 6, 9"),
        ("3-4", "--layers '3-4' names no layer that is there: the layers there are 2, 5, 6, 9"),
        ("6-10", "names layer 10"),
        ("9-2", "counts backwards"),
    ],
)
def test_indices_that_were_cut_away_are_refused_with_those_that_are_there(text, said):
    with pytest.raises(ConfigError, match=said):
        choose_among("layers", text, [2, 5, 6, 9], "layer")


def test_rows_are_patches_and_tokens_with_true_positions(table):
    rows = choose_rows(("centre", "5,0", "0,3", "token:2"), PATCHES, 101, table)
    assert rows == [(IMAGE, 2 * 6 + 3), (IMAGE, 5), (IMAGE, 18), (TEXT, 2)]


def test_the_row_of_a_word_is_its_first_token_in_clip_and_in_t5(table):
    clip, t5 = choose_rows(("word:Apple",), PATCHES, 101, table)
    assert clip[0] == t5[0] == TEXT and clip[1] < 77 <= t5[1]
    assert "apple" in table.texts[clip[1]] and "apple" in table.texts[t5[1]]
    assert choose_rows(("word:dog", "centre"), PATCHES, 101, table)[:2] == [(TEXT, ABSENT)] * 2


@given(st.integers(1, 24))
def test_spread_patches_are_distinct_and_the_first_is_in_the_middle(count):
    rows = choose_rows((f"sample:{count}",), PATCHES, 101, None)
    assert count_rows((f"sample:{count}",)) == len(set(rows)) == count
    assert rows[0] == (IMAGE, 2 * 6 + 3) and all(0 <= patch < 24 for _, patch in rows)


def test_spread_patches_reach_every_quarter_of_the_image():
    patches = np.array([patch for _, patch in choose_rows(("sample:8",), (32, 32), 101, None)])
    quarters = set(zip((patches // 32 // 16).tolist(), (patches % 32 // 16).tolist(), strict=True))
    assert len(quarters) == 4


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("center",), "--rows 'center' is not understood: write centre, sample:16, a patch x,y, token:0"),
        (("sample:0",), "not understood"),
        (("6,0",), "--rows 6,0: patches are numbered 0,0 to 5,3"),
        (("token:101",), r"--rows token:101: tokens are numbered 0\.\.100"),
        (("sample:25",), "--rows sample:25: the image has 24 patches"),
        (("sample:200", "sample:57"), "--rows names 257 queries: at most 256"),
    ],
)
def test_other_rows_are_refused_in_a_sentence(rows, said, table):
    with pytest.raises(ConfigError, match=said):
        choose_rows(rows, PATCHES, 101, table)


def test_a_word_that_no_prompt_has_is_refused():
    check_rows(("word:cat", "centre"), ["a cat", "a dog"])
    with pytest.raises(ConfigError, match="--rows 'word:zebra': the word is in no prompt"):
        check_rows(("word:zebra",), ["a cat", "a dog"])


def test_raw_names_each_axis_once():
    assert parse_raw(()) is None
    assert parse_raw(("heads=0-2", "steps=0")) == RawChoice(steps="0", heads="0-2")
    indices = raw_indices(("heads=0-1", "steps=3", "tokens=every:50"), 5, 2, 4, 101)
    assert indices == {
        "raw_step": (3,), "raw_layer": (0, 1), "raw_head": (0, 1), "raw_token": (0, 50, 100),
    }  # fmt: skip
    for wrong in (("head=1",), ("heads",), ("heads=1", "heads=2")):
        with pytest.raises(ConfigError, match="--raw 'head"):
            parse_raw(wrong)
    with pytest.raises(ConfigError, match="--raw layers names layer 2, but 2 layers are numbered"):
        raw_indices(("layers=2",), 5, 2, 4, 101)
