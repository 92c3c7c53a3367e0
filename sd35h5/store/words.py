"""The words of a prompt and where a phrase stands in it: in any script, and whichever way letters with marks are coded.

A word is a run of letters, digits and their marks, `red-hot` and `cat's` too; `_` parts the words of a tag. Scripts
without spaces have no borders to go by: a Han character is a word, a run of kana is, and a run of Thai is. A symbol is
one with what joins it, such as a flag or a family of emoji; an added token such as `<cat-toy>` is one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA, _KATAKANA = "\u3041-\u309f", "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
#: Thai, Lao, Burmese, Khmer: words without spaces between them, which only a dictionary could part
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_SKIN, _FLAG = "[\U0001f3fb-\U0001f3ff]", "[\U0001f1e6-\U0001f1ff]"
_SELECTORS, _JOINERS = "\ufe00-\ufe0f", "\u200c\u200d"
_MARKED = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))  # where Unicode has combining marks


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a word is, and a letter of a script with spaces."""
    points = [chr(point) for point in _MARKED if unicodedata.category(chr(point)).startswith("M")]
    marks = "".join(character for character in points if not "\ufe00" <= character <= "\ufe0f")
    plain = (
        "\\x00-\u02ff"  # has neither, and is told in one step where sets with characters beyond take hundreds
    )
    after = f"(?:(?![{plain}])[{marks}{_SELECTORS}{_JOINERS}])*"
    other = f"{_HAN}{_HIRAGANA}{_KATAKANA}{_UNSPACED}"
    letter = rf"(?:[A-Za-z0-9]|(?![{other}])[^\W_]|(?![{plain}{_UNSPACED}])[{marks}])"
    spaced = rf"(?:{letter}{after})+"
    kinds = [
        r"<\w[\w-]*>",
        *(f"[{kind}]{after}" for kind in (_HAN,)),
        *(f"(?:[{kind}]{after})+" for kind in (_HIRAGANA, _KATAKANA, _UNSPACED)),
        rf"{spaced}(?:['’-]{spaced})*",
        f"{_FLAG}{_FLAG}",
        rf"[^\w\s]{after}(?:(?:{_SKIN}|(?<=\u200d)\S){after})*",
    ]
    return re.compile("|".join(kinds)), re.compile(letter)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of a text's words, in order; punctuation is none."""
    found = (match.span() for match in _patterns()[0].finditer(text))
    return [
        (start, end)
        for start, end in found
        if not _is_punctuation(text[start]) and not _is_bare_mark(text[start])
    ]


def find_phrase(text: str, phrase: str) -> list[tuple[int, int]]:
    """Character spans where a phrase stands in a text as whole words, in upper or lower case; in a script without
    spaces anywhere."""
    parts = ["".join(folded for folded, _, _ in _clusters(part)) for part in phrase.split()]
    if not parts:
        return []
    folded, starts, ends = _folded(text)
    found = []
    for match in re.finditer(r"\s+".join(map(re.escape, parts)), folded):
        start, end = starts.get(match.start()), ends.get(match.end())
        if start is not None and end is not None and _stands_alone(text, start, end):
            found.append((start, end))
    return found


def is_told(text: str, *told: str) -> bool:
    """Whether a text is in one of others, in upper or lower case and however spaces are."""
    needle = " ".join(text.split()).casefold()
    return needle in " ".join(" ".join(told).split()).casefold()


def same_word(text: str) -> str:
    """Return what is equal for one word in upper or lower case and in either Unicode form."""
    return unicodedata.normalize("NFC", text.lower())


def words_of(text: str, tokens: Iterable[tuple[int, int, int]]) -> dict[int, str]:
    """Return the words of a text by their index: the text's own characters from the first to the last of each.

    Files of before know other words in scripts without spaces and in tags: there, those from the first to the last of
    a word's tokens.
    Args: tokens: word, first character and end of each token that is part of a word.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    for word, start, end in tokens:
        spans.setdefault(word, []).append((start, end))
    known = word_spans(text) if spans else []
    named = {}
    for word, own in spans.items():
        first, last = known[word] if word < len(known) else (0, 0)
        if not all(start < last and end > first for start, end in own):
            first, last = min(start for start, _ in own), max(end for _, end in own)
        named[word] = same_word(_bare(text[first:last]))
    return named


def _bare(text: str) -> str:
    """A word without the punctuation that its tokens also cover; what is nothing else stays."""
    first, last = 0, len(text)
    while first < last and _is_punctuation(text[first]):
        first += 1
    while last > first and _is_punctuation(text[last - 1]):
        last -= 1
    return text[first:last].strip() or text


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith(("P", "Cf", "Cc"))


def _is_bare_mark(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f"


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether neither border of a span parts a word of a script with spaces."""
    letter = _patterns()[1]
    return not any(
        0 < place < len(text) and letter.match(text[place - 1]) and letter.match(text[place])
        for place in (start, end)
    )


def _clusters(text: str) -> Iterator[tuple[str, int, int]]:
    """Each character with its combining marks, folded: case and Unicode form no longer tell apart."""
    at = 0
    while at < len(text):
        end = at + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        once = unicodedata.normalize("NFD", text[at:end]).casefold()
        yield unicodedata.normalize("NFD", once), at, end
        at = end


def _folded(text: str) -> tuple[str, dict[int, int], dict[int, int]]:
    """The folded text, and which place in the text each of its borders is: where one begins, and where one ends."""
    parts, starts, ends, length = [], {}, {}, 0
    for folded, start, end in _clusters(text):
        starts[length] = start
        parts.append(folded)
        length += len(folded)
        ends[length] = end
    return "".join(parts), starts, ends
