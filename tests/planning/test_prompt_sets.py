"""data/prompts: long and short prompts have the lengths, the tags and the differences that their README tells."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from itertools import takewhile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

DATA = Path(__file__).parents[2] / "data"
PROMPTS = DATA / "prompts"
T5 = DATA / "tokenizers" / "t5" / "tokenizer.json"
T5_UNKNOWN = 2
LENGTHS = {"long": (300, 500), "short": (8, 30)}
SHARED = "shared-beginning"
CLIP_TOKENS = 77


@pytest.fixture(scope="module", params=LENGTHS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def t5():
    tokenizer = Tokenizer.from_file(str(T5))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def entries_of(kind: str) -> list[dict]:
    return json.loads((PROMPTS / f"{kind}.json").read_text(encoding="utf-8"))


def shared_words() -> list[str]:
    """The words with which all prompts of the shared beginning start."""
    group = [entry["prompt"].split() for entry in entries_of("long") if SHARED in entry["tags"]]
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*group, strict=False))]


def told_counts() -> dict[str, tuple[int, int]]:
    """README's tables: a tag in backticks, and within its row the next two numbers, long and short."""
    told = {}
    for line in (PROMPTS / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")] if line.startswith("|") else []
        for place, cell in enumerate(cells):
            if re.fullmatch(r"`[a-z:-]+`", cell):
                numbers = [int(other) for other in cells[place + 1 :] if other.isdecimal()]
                assert cell.strip("`") not in told, f"{cell} has two rows"
                told[cell.strip("`")] = (numbers[0], numbers[1])
    return told


def test_each_file_has_a_hundred_prompts_one_a_line(kind):
    lines = (PROMPTS / f"{kind}.json").read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("[", "]")
    assert [json.loads(line.removesuffix(",")) for line in lines[1:-1]] == entries_of(kind)
    assert len(entries_of(kind)) == 100


def test_prompts_have_the_lengths_in_t5_tokens_that_their_file_stands_for(kind, t5):
    least, most = LENGTHS[kind]
    counts = {entry["id"]: len(t5.encode(entry["prompt"]).ids) for entry in entries_of(kind)}
    assert {name: count for name, count in counts.items() if not least <= count <= most} == {}


def test_unknown_pieces_are_told_where_more_than_a_tenth_of_the_t5_ids_are_unknown(kind, t5):
    for entry in entries_of(kind):
        ids = t5.encode(entry["prompt"]).ids
        assert ("unknown-pieces" in entry["tags"]) == (ids.count(T5_UNKNOWN) > len(ids) / 10), entry["id"]


def test_entries_have_an_id_a_prompt_and_tags_and_at_most_five_a_negative_prompt():
    for entry in entries_of("long") + entries_of("short"):
        assert entry.keys() - {"negative_prompt"} == {"id", "prompt", "tags"}, entry["id"]
        assert all(isinstance(entry[name], str) and entry[name].strip() for name in entry.keys() - {"tags"})
    assert not any("negative_prompt" in entry for entry in entries_of("long"))
    assert sum("negative_prompt" in entry for entry in entries_of("short")) <= 5


def test_ids_are_kebab_case_short_and_come_once_in_all_files():
    ids = [entry["id"] for kind in ("demo", "long", "short") for entry in entries_of(kind)]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert [name for name in ids if len(name) > 40 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []


def test_no_prompt_comes_twice():
    prompts = [entry["prompt"] for entry in entries_of("long") + entries_of("short")]
    assert len(set(prompts)) == len(prompts)


def test_the_readme_tells_each_tag_and_how_many_prompts_have_it():
    long, short = (Counter(tag for entry in entries_of(kind) for tag in entry["tags"]) for kind in LENGTHS)
    assert told_counts() == {tag: (long[tag], short[tag]) for tag in long | short}


def test_no_entry_has_a_tag_twice(kind):
    assert [entry["id"] for entry in entries_of(kind) if len(set(entry["tags"])) < len(entry["tags"])] == []


def test_every_prompt_names_its_language_and_a_file_has_eight_or_more(kind):
    languages = {
        entry["id"]: {tag for tag in entry["tags"] if tag.startswith("lang:")} for entry in entries_of(kind)
    }
    assert [name for name, tags in languages.items() if not tags] == []
    assert len(set().union(*languages.values())) >= 8
    assert sum(tags == {"lang:en"} for tags in languages.values()) <= 80


def test_ten_long_prompts_share_more_than_clip_reads_and_then_part_ways():
    group = [entry["prompt"].split() for entry in entries_of("long") if SHARED in entry["tags"]]
    shared = shared_words()
    assert len(group) == 10
    assert len(shared) > CLIP_TOKENS  # a word is one token or more
    after = {" ".join(words[len(shared) :][:5]) for words in group}
    assert len(after) == len(group)


def test_no_other_two_long_prompts_begin_with_the_same_five_words():
    beginnings = defaultdict(list)
    for entry in entries_of("long"):
        beginnings[" ".join(entry["prompt"].split()[:5]).casefold()].append(entry)
    alike = [entries for entries in beginnings.values() if len(entries) > 1]
    assert len(alike) == 1 and all(SHARED in entry["tags"] for entry in alike[0])


def test_no_sentence_of_eight_words_or_more_comes_in_two_long_prompts():
    beginning = " ".join(shared_words())
    sentences = Counter(
        sentence
        for entry in entries_of("long")
        for sentence in set(entry["prompt"].removeprefix(beginning).split(". "))
        if len(sentence.split()) >= 8
    )
    assert [sentence for sentence, count in sentences.items() if count > 1] == []


def test_prompts_have_no_control_characters_and_are_in_nfc_and_trimmed_unless_odd(kind):
    for entry in entries_of(kind):
        text = entry["prompt"] + entry.get("negative_prompt", "")
        assert not any(unicodedata.category(character) == "Cc" for character in text), entry["id"]
        if "odd" not in entry["tags"]:
            assert unicodedata.is_normalized("NFC", text), entry["id"]
            assert entry["prompt"] == " ".join(entry["prompt"].split()), entry["id"]
