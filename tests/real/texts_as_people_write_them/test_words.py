"""Words in every script, as SD3.5's own tokenizers cut them: their text, where they are found, which get a map."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from making.stores import make_store
from transformers import CLIPTokenizer, T5TokenizerFast

from sd35h5 import metrics
from sd35h5.capturing.prompt_notes import notes_on, words_without_map
from sd35h5.metrics.targets import parse_target, target_positions
from sd35h5.planning.selectors import choose_rows
from sd35h5.planning.token_table import check_phrases, choose_map_tokens, encode, phrase_tokens, token_table
from sd35h5.store.places.open_store import open_store
from sd35h5.store.schema import GROUPS
from sd35h5.store.words import find_phrase, word_spans

DATA = Path(__file__).resolve().parents[3] / "data"
CAFE = "café"
FAMILY = ["👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "🇫🇷", "❤\ufe0f", "1\ufe0f\u20e3"]
NFD = unicodedata.normalize("NFD", CAFE)


@pytest.fixture(scope="module")
def tokenizers():
    folder = DATA / "tokenizers"
    merges = [
        tuple(line.split()) for line in (folder / "clip" / "merges.txt").read_text().splitlines()[1:] if line
    ]
    clip = CLIPTokenizer(vocab=json.loads((folder / "clip" / "vocab.json").read_text()), merges=merges)
    return clip, T5TokenizerFast(tokenizer_file=str(folder / "t5" / "tokenizer.json"), extra_ids=0)


def _table(tokenizers, prompt: str, t5_tokens: int = 64):
    clip, t5 = tokenizers
    return token_table(
        encode(clip, prompt, 77), encode(clip, prompt, 77), encode(t5, prompt, t5_tokens), t5_tokens
    )


def _frame(table):
    import pandas as pd

    return pd.DataFrame(
        {
            "text": table.texts, "group": [GROUPS[group] for group in table.groups], "word": table.words,
            "char_start": table.starts, "char_end": table.ends,
        }
    )  # fmt: skip


def _prompts() -> list[str]:
    return [
        entry["prompt"]
        for kind in ("long", "short")
        for entry in json.loads((DATA / "prompts" / f"{kind}.json").read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("一个红苹果", ["一", "个", "红", "苹", "果"]),
        ("赤いリンゴとネコ", ["赤", "い", "リンゴ", "と", "ネコ"]),
        ("amane_kanata, 1girl, __solo", ["amane", "kanata", "1girl", "solo"]),
        (f"{NFD} au lait", [NFD, "au", "lait"]),
        ("हिन्दी में, ตัวอย่าง", ["हिन्दी", "में", "ตัวอย่าง"]),
        ("a <cat-toy> on <s1>", ["a", "<cat-toy>", "on", "<s1>"]),
        ("👩\u200d👩\u200d👧 👍🏽 🇩🇪🇫🇷 ❤\ufe0f 1\ufe0f\u20e3", FAMILY),
        ("red-hot cat's 'n' rock — (ok)!", ["red-hot", "cat's", "n", "rock", "ok"]),
        ("\u200b\ufe0f…", []),
    ],
)  # fmt: skip
def test_words_are_those_of_the_script(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("一个红苹果", "苹果", ["苹果"]),
        ("amane_kanata", "kanata", ["kanata"]),
        ("amane_kanata", "amane_kanata", ["amane_kanata"]),
        (f"a {CAFE}", NFD, [CAFE]),
        (f"a {NFD}", CAFE, [NFD]),
        (f"a {NFD}", "cafe", []),
        ("हिन्दी", "हिन्द", []),
        ("각", "가", []),
        ("STRASSE und Straße", "straße", ["STRASSE", "Straße"]),
        ("a <cat-toy> b", "<cat-toy>", ["<cat-toy>"]),
        ("concat 13cats", "cat", []),
        ("猫catです", "cat", ["cat"]),
        ("a red\n  apple", "Red apple", ["red\n  apple"]),
    ],
)
def test_a_phrase_is_found_in_any_script_and_either_unicode_form(text, phrase, found):
    assert [text[start:end] for start, end in find_phrase(text, phrase)] == found
    if found:
        check_phrases((phrase,), [text])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a 猫 in a café", {"a", "猫", "in", "café"}),
        (f"a 猫 in a {NFD}", {"a", "猫", "in", "café"}),
        ("amane_kanata, 初音ミク", {"amane", "kanata", "初", "音", "ミク"}),
        ("a 🐱 and a ﬁre ｃａｔ", {"a", "🐱", "and", "ﬁre", "ｃａｔ"}),
        ("हिन्दी Ünïcödé", {"हिन्दी", "ünïcödé"}),
    ],
)
def test_a_words_text_is_the_prompts_own_characters_also_of_pieces_of_bytes(tokenizers, prompt, words):
    frame = metrics.with_words(_frame(_table(tokenizers, prompt)), prompt)
    assert set(frame["word_text"]) - {""} == words
    assert set(frame["word_text"][:77]) - {""} == words, "CLIP reads all of them"


def test_every_word_of_two_hundred_prompts_is_cut_out_of_its_prompt(tokenizers):
    for prompt in _prompts():
        table = _table(tokenizers, prompt, 512)
        frame = metrics.with_words(_frame(table), prompt)
        spans = word_spans(prompt)
        for word, text in zip(frame["word"], frame["word_text"], strict=True):
            expected = "" if word < 0 else unicodedata.normalize("NFC", prompt[slice(*spans[word])].lower())
            assert text == expected
        read = set(table.words[:77]) - {-1}
        assert read == {*range(len(read))}, "CLIP reads the first words, without a gap"


def test_the_words_of_files_of_before_are_told_by_their_tokens():
    """They knew one word in a tag or a sentence of Han, whose index is another word's today."""
    import pandas as pd

    prompt = "amane_kanata, 红苹果"
    pieces = [("amane", 0, 0, 5), ("_", 0, 5, 6), ("kanata", 0, 6, 12), (",", -1, 12, 13)]
    pieces += [("红", 1, 14, 15), ("苹", 1, 15, 16), ("果", 1, 16, 17)]
    frame = pd.DataFrame(pieces, columns=["text", "word", "char_start", "char_end"]).assign(group="clip_word")
    assert (
        metrics.with_words(frame, prompt)["word_text"].tolist()
        == ["amane_kanata"] * 3 + [""] + ["红苹果"] * 3
    )


def test_places_are_dealt_in_turns_so_that_a_word_of_many_pieces_leaves_room(tokenizers):
    prompt = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen with a cat and a dog, a cat, 🐱"
    table = _table(tokenizers, prompt)
    long = prompt.split()[0]
    asked = (long, "dog", "cat", "🐱")
    assert len(phrase_tokens(table, long)) > 23
    chosen = choose_map_tokens(table, "words", asked, 24)
    assert len(chosen) == 24 == len(set(chosen)) and chosen[0] == 0
    owners = [
        next(
            w
            for w in asked
            if any(table.starts[t] < e and table.ends[t] > s for s, e in find_phrase(prompt, w))
        )
        for t in chosen[1:]
    ]
    assert owners[:8] == [long, "dog", "cat", "🐱"] * 2
    first_cat = prompt.index("cat")
    assert [table.starts[t] for t, o in zip(chosen[1:], owners, strict=True) if o == "cat"][:2] == [
        first_cat
    ] * 2
    assert {t for w in asked[1:] for t in phrase_tokens(table, w)} <= set(chosen)


def test_a_word_without_a_map_is_told_with_the_prompt_and_why(tokenizers):
    prompts = {
        "far": " ".join(["red"] * 90) + " kanata",
        "near": "kanata in the sky",
        "none": "a dog",
    }
    tables = {name: _table(tokenizers, prompt, 40) for name, prompt in prompts.items()}
    told = [*notes_on(tables, ("kanata", "dog"))]
    assert told[0].startswith("in 1 of 3 prompts CLIP reads 77 tokens, at far up to “…")
    assert "; in 1 of 3 prompts T5 reads 40 tokens, at far up to “…" in told[0]
    assert told[1:] == [
        "“kanata” has no map in far: it stands behind what the encoders read",
        "“dog” has no map in far, near: it does not stand there",
        "“kanata” has no map in none: it does not stand there",
    ]
    many = tuple(f"w{n}" for n in range(30))
    table = _table(tokenizers, " ".join(many), 100)
    assert list(words_without_map(table, many)) == list(many[23:])
    assert all("places taken" in why for why in words_without_map(table, many).values())
    assert [*notes_on({"p": _table(tokenizers, "a cat")}, ("cat",))] == []


def test_truncation_of_a_hundred_prompts_is_one_sentence(tokenizers):
    entries = json.loads((DATA / "prompts" / "long.json").read_text(encoding="utf-8"))
    tables = {entry["id"]: _table(tokenizers, entry["prompt"], 400) for entry in entries}
    told = [*notes_on(tables, ())]
    clip, t5 = tokenizers
    too_long = [
        sum(len(t(e["prompt"])["input_ids"]) > n for e in entries) for t, n in ((clip, 77), (t5, 400))
    ]
    assert len(told) == 1 and told[0].startswith(f"in {too_long[0]} of 100 prompts CLIP reads 77 tokens, at ")
    assert f"; in {too_long[1]} of 100 prompts T5 reads 400 tokens, at " in told[0]


def test_a_target_may_be_a_phrase_and_a_part_of_a_sentence_without_spaces(tmp_path):
    prompts = ("一个红苹果 on a table", f"the {NFD} of amane_kanata")
    with open_store(make_store(tmp_path / "run.h5", samples=2, prompts=prompts)) as store:
        table = store.tokens(0)
        inside = table.index[(table["char_start"] >= 0) & (table["char_start"] < 5)].tolist()
        assert target_positions(store, parse_target("word:苹果"), "cond", 0).tolist() == inside
        assert target_positions(store, parse_target("word:苹果"), "cond", 1).tolist() == []
        found = target_positions(store, parse_target("word:Café"), "cond", 1)
        assert set(store.tokens(1)["char_start"][found]) == {4}
        both = target_positions(store, parse_target("word:on a"), "cond", 0)
        assert set(store.tokens(0)["char_start"][both]) == {6, 9}


def test_rows_of_a_word_are_found_in_a_sentence_without_spaces(tokenizers):
    table = _table(tokenizers, "一个红苹果")
    (_, clip), (_, t5) = choose_rows(("word:苹果",), (4, 4), 141, table)
    assert table.starts[clip] == 3 and clip < 77 <= t5


def test_truncation_and_words_without_a_map_are_said_once_a_capture_and_whole_in_the_file(
    tmp_path, tiny_folder, caplog
):
    from sd35h5.capturing.run_job import run
    from sd35h5.planning.job import make_job
    from sd35h5.planning.options import CaptureConfig, Model, Output, Prompts, Sampling, Tiers

    long = " ".join(["red"] * 90)
    config = CaptureConfig(
        model=Model(model_id=str(tiny_folder), device="cpu", dtype="float32"),
        prompts=Prompts(prompt=(f"{long} cat", "a cat", f"{long} dog"), negative_prompt=long),
        sampling=Sampling(steps=1, max_sequence_length=24), tiers=Tiers(words=("cat",), topk=0),
        output=Output(out=str(tmp_path / "run.h5")),
    )  # fmt: skip
    caplog.set_level("WARNING", "sd35h5")
    with open_store(run(make_job(config))) as store:
        events = store.provenance["events"]
    said = [record.message for record in caplog.records if record.name == "sd35h5"]
    assert len(said) == 4
    assert said[0].startswith("in 2 of 3 prompts CLIP reads 77 tokens, at p000 up to “")
    assert said[1] == "“cat” has no map in p000: it stands behind what the encoders read"
    assert said[2] == "“cat” has no map in p002: it does not stand there"
    assert said[3].startswith("in 1 of 1 negative prompts CLIP reads 77 tokens, at p000 up to “")
    assert [event["event"] for event in events][:3] == ["truncated", "truncated", "words without a map"]
