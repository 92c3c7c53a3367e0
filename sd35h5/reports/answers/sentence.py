"""Sentences made of parts, some of which select what they speak of; numbers as sentences say them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sd35h5.metrics.targets import FIRST_TOKEN, Target
from sd35h5.reports import view_address

MOST = 3  # sentences of a page
#: what kinds of keys are called
KINDS = {
    "clip_bos": "the start token (clip_bos)", "clip_word": "a word's CLIP token", "clip_eos": "CLIP's end token",
    "clip_pad": "CLIP padding", "t5_word": "a word's T5 token", "t5_eos": "T5's end token", "t5_pad": "T5 padding",
    "t5_absent": "a position without T5", "image": "the image", "corner": "a patch in a corner",
    "border": "a patch on the border", "inner": "a patch inside the image",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of a sentence: its text, and what a click on it selects, as a URL says it (names of `view_address`).

    page: the page that a click opens, None for the one that the sentence stands on.
    """

    text: str
    selects: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    page: str | None = None

    @property
    def is_link(self) -> bool:
        """Whether a click on it does something."""
        return bool(self.selects) or self.page is not None


Sentence = tuple[Part, ...]


def sentence(*parts: str | Part) -> Sentence:
    """Return a sentence of texts and parts."""
    return tuple(part if isinstance(part, Part) else Part(part) for part in parts if part != "")


def text_of(parts: Sentence) -> str:
    """Return a sentence as plain text."""
    return "".join(part.text for part in parts)


def as_json(parts: Sentence) -> list[dict[str, object]]:
    """Return a sentence as pages take it that draw it themselves: of each part its text and what it selects."""
    return [{"text": part.text, "selects": dict(part.selects)} for part in parts]


def at_most(found: Iterable[Sentence | None]) -> list[Sentence]:
    """Return the first MOST of the sentences that there are."""
    return [one for one in found if one][:MOST]


def cell(layer: int, head: int, begins: bool = False) -> Part:
    """Name a head, and select it."""
    return Part(
        f"{'Layer' if begins else 'layer'} {layer}, head {head}", {view_address.CELL: f"{layer}.{head}"}
    )


def key_kind(kind: str) -> Part:
    """Name a kind of key, and select its group; patches wherever they lie are the group of the image."""
    group = "image" if kind in ("corner", "border", "inner") else kind
    target = FIRST_TOKEN if kind == "clip_bos" else Target("group", group)
    return Part(KINDS[kind], {view_address.TARGET: f"{target.kind}:{target.value}"})


def told_target(target: Target) -> str:
    """Return what a number is about, as it stands in a sentence."""
    if target in (FIRST_TOKEN, Target("group", "clip_bos")):
        return "the first token"
    if target == Target("group", "image"):
        return "the image"
    return f"the {target}" if target.kind != "token" else str(target)


def listed(parts: Sequence[str | Part], last: str = "and") -> list[str | Part]:
    """Return parts as a list in a sentence: a, b and c."""
    found: list[str | Part] = []
    for place, part in enumerate(parts):
        found += ([f" {last} " if place == len(parts) - 1 else ", "] if place else []) + [part]
    return found


def percent(share: float, up: bool = False, digits: int = 2) -> str:
    """Return a share (0..1) in percent with two digits: `7.6 %`, `83 %`, `0.021 %`. Args: up: never below it."""
    return f"{_digits(100 * share, up, digits)} %"


def times(value: float) -> str:
    """Return a multiple with two digits: `45 ×`, `1.8 ×`."""
    return f"{_digits(value)} ×"


def number(value: float) -> str:
    """Return a number with three digits and a true minus; a missing one as a dash."""
    return "–" if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def counted(count: float, what: str) -> str:
    """Return a number with its noun: `1 head`, `1,444 heads`."""
    return f"{count:,.0f} {what}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    """Return a text as it begins a sentence."""
    return text[:1].upper() + text[1:]


def _digits(value: float, up: bool = False, digits: int = 2) -> str:
    """Return a number with so many digits, or all before the point."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else "–"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    scale = 10.0 ** min(places, 300)
    # a hair below, so that 1.5 as a float is not rounded up to 1.6
    rounded = math.ceil(value * scale * (1 - 1e-9)) / scale if up else round(value, places)
    places = max(0, min(places, 8))
    return f"{rounded:,.{places}f}" if places < 8 else f"{rounded:.1e}".replace("-", "−")
