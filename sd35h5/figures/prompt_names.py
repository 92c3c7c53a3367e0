"""Long prompts in little room: each from where it differs from those that begin alike, or its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix

_ALIKE = 16  # letters that two prompts begin with before that is called alike


def folded(text: str, room: int) -> str:
    """A text on one line in at most so many letters, with … where it was cut, at a word's end if one is near."""
    flat = " ".join(text.split())
    if len(flat) <= room:
        return flat
    cut = flat[: room - 1]
    head, _, tail = flat[:room].rpartition(" ")
    return f"{head if head and len(tail) < 14 else cut}…"


def short_names(prompts: Sequence[str], room: int = 40) -> list[str]:
    """A name for each prompt in at most so many letters: prompts that begin alike are named from the word on in which
    they differ from all others that begin so."""
    flat = [" ".join(prompt.split()) for prompt in prompts]
    ordered = sorted(set(flat))
    alike = dict.fromkeys(ordered, 0)  # letters that a prompt shares with one of its neighbours
    for one, other in zip(ordered, ordered[1:], strict=False):
        shared = len(commonprefix([one, other]))
        alike[one], alike[other] = max(alike[one], shared), max(alike[other], shared)
    return [_from(text, alike[text], room) for text in flat]


def _from(text: str, shared: int, room: int) -> str:
    begin = text.rfind(" ", 0, shared) + 1 if shared >= _ALIKE else 0
    if len(text) <= room or begin == 0:
        return folded(text, room)
    begin = min(begin, len(text) - room + 1)  # one that ends before it differs shows its end
    return "…" + folded(text[begin:], room - 1)
