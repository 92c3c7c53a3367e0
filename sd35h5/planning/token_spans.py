"""Which characters of the prompt each token stands for, so that every character has one that reads it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

Span = tuple[int, int]


def stripped(prompt: str, start: int, end: int) -> Span:
    """A span without white space at its ends (T5's pieces may carry it), or (-1, -1) if that was all."""
    while start < end and prompt[start].isspace():
        start += 1
    while end > start and prompt[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else (-1, -1)


def whole_spans(prompt: str, spans: Sequence[Span]) -> list[Span]:
    """Spans that take in the characters which a tokenizer's normaliser merged or dropped, and which no token has.

    A combining mark is read with its letter, and a joiner or a control character, which T5 drops, is given to the
    token that it stands beside: the one before it, at a word's beginning the one after.

    Args:
        spans: of all tokens of the prompt, (-1, -1) for those without characters.
    """
    held = [span for span in spans if span[0] >= 0]
    if not held:
        return list(spans)
    starts, ends = (sorted({span[side] for span in held}) for side in (0, 1))
    new_start, new_end = {}, {}
    for first, last in _gaps(prompt, held):
        before = bisect_right(ends, first) - 1
        touches = before >= 0 and ends[before] == first
        after = bisect_right(starts, last - 1)
        leads = after < len(starts) and starts[after] == last
        if before >= 0 and (touches or not leads):
            new_end[ends[before]] = last
        else:
            new_start[starts[after]] = min(first, new_start.get(starts[after], first))
    return [
        (new_start.get(start, start), new_end.get(end, end)) if start >= 0 else (start, end)
        for start, end in spans
    ]


def _gaps(prompt: str, spans: Sequence[Span]) -> Iterator[Span]:
    """Runs of characters without white space that no span has."""
    has_token = [False] * len(prompt)
    for start, end in spans:
        has_token[start:end] = [True] * (end - start)
    first = None
    for position, character in enumerate(prompt):
        is_open = not has_token[position] and not character.isspace()
        if is_open and first is None:
            first = position
        if not is_open and first is not None:
            yield first, position
            first = None
    if first is not None:
        yield first, len(prompt)
