"""The token table of a sample: text, group, word and character span of every text position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import numpy as np

from sd35h5.errors import ConfigError
from sd35h5.planning.token_spans import stripped, whole_spans
from sd35h5.store.schema import ENCODERS, GROUPS, TOKEN_ENCODERS
from sd35h5.store.words import find_phrase, word_spans

CLIP_TOKENS = 77
_SEVERAL = -2
_GROUP = {name: value for value, name in enumerate(GROUPS)}


class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer."""

    def __call__(self, text: str, **options: object) -> dict: ...
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Encoded:
    """One prompt as one encoder reads it: ids and texts of all positions, of which the first `attended`
    are no padding."""

    prompt: str
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]  # characters of each position, (-1, -1) where there are none
    attended: int
    kept_chars: int


@dataclass(frozen=True)
class TokenTable:
    """The text axis of one branch. Arrays are per position, except `ids` (encoder, token) and `kept_chars`
    (encoder)."""

    prompt: str
    texts: tuple[str, ...]
    groups: np.ndarray  # uint8, position in schema.GROUPS
    words: np.ndarray  # int16, index among `word_spans(prompt)`, -1 for none
    starts: np.ndarray  # int32, first character in the prompt, -1 for none
    ends: np.ndarray  # int32
    ids: np.ndarray  # int32 (encoder, token), -1 where the encoder has none
    kept_chars: np.ndarray  # int32 (encoder), -1 for an absent encoder

    def __len__(self) -> int:
        return len(self.texts)


def encode(tokenizer: Tokenizer, prompt: str, max_length: int) -> Encoded:
    """Tokenise as the pipeline does (padded and truncated to max_length), and note what truncation left."""
    options = {"return_offsets_mapping": True, "verbose": False}
    padded = tokenizer(prompt, padding="max_length", max_length=max_length, truncation=True, **options)
    whole = tokenizer(prompt, **options)
    ids = [int(i) for i in padded["input_ids"]]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    every = whole_spans(prompt, [stripped(prompt, *span) for span in whole["offset_mapping"]])
    truncated = len(every) > max_length
    read = every[: max_length - 1] if truncated else every  # the end token takes the last place
    spans = [*read, *[(-1, -1)] * (max_length - len(read))]
    texts = []
    for piece, (start, end) in zip(pieces, spans, strict=True):
        texts.append(prompt[start:end] if start >= 0 else piece)
    is_read = not prompt.strip() or any(start >= 0 for start, _ in spans)
    kept = len(prompt) if is_read and not truncated else max(end for _, end in spans)
    return Encoded(
        prompt, tuple(ids), tuple(texts), tuple(spans), sum(padded["attention_mask"]), max(kept, 0)
    )


def token_table(clip_l: Encoded, clip_g: Encoded, t5: Encoded | None, t5_tokens: int) -> TokenTable:
    """Join what the encoders read into one text axis: the CLIP positions, then the T5 positions.

    Texts, groups and spans of CLIP positions are CLIP-L's. A part whose encoder was given another text
    than CLIP-L (`prompt_3`, say) keeps its texts, but has no words or spans, which point into the prompt.

    Args:
        t5: None if the pipeline has no T5; its `t5_tokens` positions are then zeros (`t5_absent`).
    """
    clip = len(clip_l.ids)
    total = clip + t5_tokens
    starts, ends = np.full(total, -1, np.int32), np.full(total, -1, np.int32)
    ids = np.full((len(ENCODERS), total), -1, np.int32)
    groups = np.full(total, _GROUP["t5_absent"], np.uint8)
    ids[0, :clip], ids[1, :clip] = clip_l.ids, clip_g.ids
    groups[:clip] = _groups(clip_l, "clip")
    starts[:clip], ends[:clip] = np.array(clip_l.spans).T
    if t5 is not None:
        ids[2, clip:] = t5.ids
        groups[clip:] = _groups(t5, "t5")
        if t5.prompt == clip_l.prompt:
            starts[clip:], ends[clip:] = np.array(t5.spans).T
    return TokenTable(
        prompt=clip_l.prompt,
        texts=clip_l.texts + (t5.texts if t5 is not None else ("",) * t5_tokens),
        groups=groups,
        words=_words(clip_l.prompt, starts, ends),
        starts=starts,
        ends=ends,
        ids=ids,
        kept_chars=np.array(
            [clip_l.kept_chars, clip_g.kept_chars, -1 if t5 is None else t5.kept_chars], dtype=np.int32
        ),
    )


def _groups(encoded: Encoded, encoder: str) -> np.ndarray:
    """Group of each position. The attention mask tells padding: CLIP's pad token can equal its end token."""
    groups = np.full(len(encoded.ids), _GROUP[f"{encoder}_pad"], np.uint8)
    groups[: encoded.attended] = _GROUP[f"{encoder}_word"]
    if encoded.attended:
        groups[encoded.attended - 1] = _GROUP[f"{encoder}_eos"]
    if encoder == "clip":
        groups[0] = _GROUP["clip_bos"]
    return groups


def _words(prompt: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Index of the word that each token stands in, int16, -1 for none, or for several: T5 reads a sentence in a
    script that it does not know as one unknown piece."""
    words = np.full(len(starts), -1, np.int16)
    for index, (start, end) in enumerate(word_spans(prompt)):
        inside = (starts >= 0) & (starts < end) & (ends > start)
        words[inside] = np.where(words[inside] == -1, index, _SEVERAL)
    return np.where(words == _SEVERAL, -1, words).astype(np.int16)


def token_encoders(clip_tokens: int, t5_tokens: int, has_t5: bool) -> np.ndarray:
    """Encoder of each text position, uint8, position in schema.TOKEN_ENCODERS."""
    second = TOKEN_ENCODERS.index("t5" if has_t5 else "absent")
    return np.repeat(np.array([TOKEN_ENCODERS.index("clip"), second], np.uint8), [clip_tokens, t5_tokens])


def choose_map_tokens(table: TokenTable, maps: str, phrases: Sequence[str], limit: int) -> list[int]:
    """Positions whose maps are kept, at most `limit`, without repeats.

    Args:
        maps: `off`, `first` (position 0), `words` (position 0, then words), or `all` (every position).
        phrases: with `words`: the tokens of these, dealt in turns, so that one of many pieces leaves room for the
            others; if empty, the first token of each word of the prompt, in CLIP first and then, as far as there is
            room, in T5.
    """
    if maps == "off":
        return []
    if maps == "all":
        return list(range(len(table)))
    if maps == "first":
        return [0]
    if phrases:
        wanted = _in_turns([phrase_tokens(table, phrase) for phrase in phrases])
    else:
        wanted = _first_tokens_of_words(table)
    return list(dict.fromkeys([0, *wanted]))[:limit]


def phrase_tokens(table: TokenTable, phrase: str) -> list[int]:
    """Positions that read a part of a phrase: its first occurrence before the next ones, CLIP and T5 in turns."""
    is_t5 = table.groups >= _GROUP["t5_word"]
    found = []
    for start, end in find_phrase(table.prompt, phrase):
        inside = (table.starts >= 0) & (table.starts < end) & (table.ends > start)
        found += _in_turns([np.flatnonzero(inside & part).tolist() for part in (~is_t5, is_t5)])
    return found


def _in_turns(lists: Sequence[Sequence[int]]) -> list[int]:
    """The first of each list, then the second of each, and so on."""
    return [one for turn in zip_longest(*lists) for one in turn if one is not None]


def _first_tokens_of_words(table: TokenTable) -> list[int]:
    """The first position of each word within CLIP, then within T5."""
    is_t5 = table.groups >= _GROUP["t5_word"]
    found = []
    for in_part in (~is_t5, is_t5):
        positions = np.flatnonzero(in_part & (table.words >= 0))
        _, first = np.unique(table.words[positions], return_index=True)
        found += [int(position) for position in positions[first]]
    return found


def check_phrases(phrases: Sequence[str], prompts: Sequence[str]) -> None:
    """Refuse a phrase that stands in no prompt.

    Raises:
        ConfigError: naming the phrase.
    """
    for phrase in phrases:
        if not any(find_phrase(prompt, phrase) for prompt in prompts):
            raise ConfigError(f"--words {phrase!r} is in no prompt: choose words that the prompts contain")


def truncation_note(name: str, table: TokenTable) -> str | None:
    """One sentence that tells which encoders read only a part of the prompt, or None if none does."""
    length, shown = len(table.prompt), []
    for encoder, kept in zip(("CLIP-L", "CLIP-G", "T5"), table.kept_chars, strict=True):
        if 0 <= kept < length:
            shown.append((encoder, int(kept)))
    if not shown:
        return None
    parts = ", ".join(
        f"{encoder} reads {kept} (up to “…{table.prompt[max(0, kept - 20) : kept]}”)"
        for encoder, kept in shown
    )
    rest = [e for e, kept in zip(("CLIP-L", "CLIP-G", "T5"), table.kept_chars, strict=True) if kept == length]
    return (
        f"{name}: of {length} characters {parts}"
        + (f"; {' and '.join(rest)} all of them" if rest else "")
        + "."
    )
