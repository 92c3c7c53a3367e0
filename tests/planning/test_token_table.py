"""The token table: texts, groups, words, spans, truncation, and the choice of tokens to map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making.pipelines import T5_TOKENS, make_clip_tokenizer, make_t5_tokenizer

from sd35h5.errors import ConfigError
from sd35h5.planning.token_table import (
    check_phrases,
    choose_map_tokens,
    encode,
    token_encoders,
    token_table,
    truncation_note,
)
from sd35h5.store import schema
from sd35h5.store.words import find_phrase, word_spans

CLIP_L, CLIP_G, T5 = make_clip_tokenizer(), make_clip_tokenizer(pad_token="!"), make_t5_tokenizer()


def _table(prompt: str, third: str | None = None, t5: bool = True, t5_tokens: int = T5_TOKENS):
    of_t5 = encode(T5, prompt if third is None else third, t5_tokens) if t5 else None
    return token_table(encode(CLIP_L, prompt, 77), encode(CLIP_G, prompt, 77), of_t5, t5_tokens)


def _groups(table) -> list[str]:
    return [schema.GROUPS[value] for value in table.groups]


def test_a_prompt_reads_as_its_own_words_in_both_encoders():
    table = _table("A red apple, left")
    assert table.texts[:7] == ("<|startoftext|>", "A", "red", "apple", ",", "left", "<|endoftext|>")
    assert _groups(table)[:8] == ["clip_bos", *["clip_word"] * 5, "clip_eos", "clip_pad"]
    assert list(table.words[:7]) == [-1, 0, 1, 2, -1, 3, -1]
    t5 = table.texts[77:]
    assert "".join(t5[: t5.index("</s>")]).endswith("redapple,left")
    assert _groups(table)[77:].count("t5_eos") == 1
    assert set(_groups(table)[-5:]) == {"t5_pad"}


@pytest.mark.parametrize("prompt", ["", "red", "a red apple left of a blue cat"])
def test_pads_are_told_by_the_mask_where_the_pad_token_is_the_end_token(prompt):
    table = _table(prompt)
    words = len(prompt.split())
    groups = _groups(table)[:77]
    assert groups == ["clip_bos", *["clip_word"] * words, "clip_eos", *["clip_pad"] * (75 - words)]
    assert table.ids[0, 76] == CLIP_L.eos_token_id == CLIP_L.pad_token_id
    assert table.ids[1, 76] == CLIP_G.pad_token_id != CLIP_G.eos_token_id
    assert (table.ids[2, :77] == -1).all() and (table.ids[:2, 77:] == -1).all()


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.sampled_from("aredcat o!,'-é🐱\t\nZß日"), max_size=60))
def test_every_span_is_the_text_it_names(prompt):
    table = _table(prompt)
    for text, start, end, word in zip(table.texts, table.starts, table.ends, table.words, strict=True):
        assert (start < 0) == (end < 0)
        if start >= 0:
            assert text == prompt[start:end] and text == text.strip() and text
        if word >= 0:
            word_start, word_end = word_spans(prompt)[word]
            assert start < word_end and end > word_start


def test_an_emoji_is_a_word_and_punctuation_is_none():
    assert [("a red-hot cat's 🐱, ok!")[s:e] for s, e in word_spans("a red-hot cat's 🐱, ok!")] == [
        "a",
        "red-hot",
        "cat's",
        "🐱",
        "ok",
    ]


def test_without_t5_its_positions_are_absent():
    table = _table("a cat", t5=False)
    assert set(_groups(table)[77:]) == {"t5_absent"}
    assert table.kept_chars[2] == -1 and (table.ids[2] == -1).all()
    assert list(token_encoders(2, 3, has_t5=False)) == [0, 0, 2, 2, 2]
    assert list(token_encoders(2, 1, has_t5=True)) == [0, 0, 1]


def test_another_prompt_for_t5_has_its_texts_but_no_spans_in_the_prompt():
    table = _table("a cat", third="a blue dog")
    assert "dog" in table.texts[77:]
    assert (table.starts[77:] == -1).all() and (table.words[77:] == -1).all()


def test_truncation_is_told_in_characters_for_each_encoder():
    prompt = " ".join(["red"] * 100)
    table = _table(prompt, t5_tokens=10)
    kept = [len(" ".join(["red"] * n)) for n in (75, 75, 9)]
    assert list(table.kept_chars) == kept
    note = truncation_note("prompt p0", table)
    assert f"CLIP-L reads {kept[0]}" in note and f"T5 reads {kept[2]}" in note and str(len(prompt)) in note
    assert truncation_note("prompt p0", _table("a cat")) is None
    only_clip = truncation_note("prompt p0", _table(prompt, t5_tokens=200))
    assert "T5 all of them" in only_clip


def test_default_maps_are_the_first_token_then_each_words_first_token_in_clip_then_t5():
    table = _table("a cat, zebra")
    chosen = choose_map_tokens(table, "words", (), 24)
    assert chosen[0] == 0 and len(chosen) == len(set(chosen)) == 7
    assert [table.words[token] for token in chosen[1:]] == [0, 1, 2, 0, 1, 2]
    assert all(token < 77 for token in chosen[1:4]) and all(token >= 77 for token in chosen[4:])
    assert choose_map_tokens(table, "words", (), 3) == chosen[:3]
    assert choose_map_tokens(table, "first", (), 1) == [0]
    assert choose_map_tokens(table, "off", (), 0) == []
    assert choose_map_tokens(table, "all", (), len(table)) == list(range(len(table)))


def test_chosen_phrases_map_all_their_tokens_in_both_encoders():
    table = _table("a red apple left of a red cat")
    chosen = choose_map_tokens(table, "words", ("Red  apple",), 24)
    assert [table.texts[token] for token in chosen] == ["<|startoftext|>", "red", "red", "apple", "apple"]
    assert (table.starts[chosen[1:]] < len("a red apple")).all()


def test_a_phrase_is_found_as_whole_words_only():
    assert find_phrase("a cat, concat a CAT", "cat") == [(2, 5), (16, 19)]
    assert find_phrase("a 🐱!", "🐱") == [(2, 3)]
    assert find_phrase("anything", " ") == []


def test_a_phrase_in_no_prompt_is_refused_by_name():
    check_phrases(("cat",), ["a dog", "a cat"])
    with pytest.raises(ConfigError, match="--words 'zebra' is in no prompt"):
        check_phrases(("cat", "zebra"), ["a dog", "a cat"])


def test_groups_cover_the_text_axis_and_never_name_the_image():
    table = _table("a red apple")
    assert table.groups.max() < schema.GROUPS.index("image")
    assert len(table) == len(table.groups) == 77 + T5_TOKENS
    assert np.all(np.diff(np.flatnonzero(table.words[:77] >= 0)) == 1)
