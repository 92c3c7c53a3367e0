"""What is said once of all prompts of a capture: what truncation left of them, and which asked words have no map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sd35h5.errors import CaptureError
from sd35h5.planning.options import MAX_MAPS
from sd35h5.planning.token_table import TokenTable, choose_map_tokens, encode, phrase_tokens, token_table
from sd35h5.store.showable import showable
from sd35h5.store.words import find_phrase

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

_SHOWN = 20  # characters of what an encoder read last
_NAMED = 3  # prompts that a sentence names
BEHIND, ABSENT, FULL = (
    "stands behind what the encoders read",
    "does not stand there",
    f"found the {MAX_MAPS} places taken",
)


def table_of(
    pipe: StableDiffusion3Pipeline, texts: tuple[str, str, str], text_tokens: int, has_t5: bool
) -> TokenTable:
    """The token table of what CLIP-L, CLIP-G and T5 read, on a text axis of so many positions.

    Args:
        has_t5: whether T5 read at all.
    Raises:
        CaptureError: a tokenizer that the pipeline lacks.
    """
    clip = pipe.tokenizer_max_length
    first, second, third = texts
    for name in ("tokenizer", "tokenizer_2", *["tokenizer_3"] * has_t5):
        if getattr(pipe, name) is None:
            raise CaptureError(
                f"a capture tells the tokens of a prompt by its tokenizers: give the pipeline a {name}"
            )
    t5 = encode(pipe.tokenizer_3, third, text_tokens - clip) if has_t5 else None
    read = encode(pipe.tokenizer, first, clip), encode(pipe.tokenizer_2, second, clip)
    return token_table(*read, t5, text_tokens - clip)


def notes_on(tables: Mapping[str, TokenTable], words: Sequence[str], what: str = "prompt") -> Iterator[str]:
    """Sentences on all prompts of a capture, each thing said once.

    Args:
        tables: of the prompts, by their ids.
        words: that maps were asked of.
        what: the tables are of: `prompt` or `negative prompt`.
    """
    cut = [told for name in ("CLIP", "T5") if (told := _told_cut(tables, name))]
    if cut:
        yield f"in {cut[0]}".replace("prompts", f"{what}s") + "".join(f"; in {told}" for told in cut[1:])
    without: dict[tuple[str, str], list[str]] = {}
    for name, table in tables.items():
        for word, why in words_without_map(table, words).items():
            without.setdefault((word, why), []).append(name)
    for (word, why), names in without.items():
        yield f"“{showable(word, 40)}” has no map in {_listed(names)}: it {why}"


def words_without_map(table: TokenTable, words: Sequence[str]) -> dict[str, str]:
    """Asked words that have no map in a prompt, and why."""
    mapped = {*choose_map_tokens(table, "words", words, MAX_MAPS)}
    reasons = {}
    for word in words:
        tokens = phrase_tokens(table, word)
        if not mapped & {*tokens}:
            there = FULL if tokens else BEHIND
            reasons[word] = there if find_phrase(table.prompt, word) else ABSENT
    return reasons


def _told_cut(tables: Mapping[str, TokenTable], encoder: str) -> str:
    """How many prompts an encoder reads only the beginning of, and where it stops in the first of them."""
    rows = [2] if encoder == "T5" else [0, 1]
    found = {}
    for name, table in tables.items():
        kept = [int(count) for count in table.kept_chars[rows] if 0 <= count < len(table.prompt.rstrip())]
        if kept:
            found[name] = min(kept)
    if not found:
        return ""
    name, kept = next(iter(found.items()))
    table = tables[name]
    tokens = int((table.ids[rows[-1]] >= 0).sum())
    end = showable(table.prompt[max(0, kept - _SHOWN) : kept])
    return (
        f"{len(found)} of {len(tables)} prompts {encoder} reads {tokens} tokens, "
        f"at {showable(name, 40)} up to “…{end}”"
    )


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(showable(name, 40) for name in names[:_NAMED])
    return some if len(names) <= _NAMED else f"{some} and {len(names) - _NAMED} more prompts"
