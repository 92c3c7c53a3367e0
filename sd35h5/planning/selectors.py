"""What --map_steps, --map_layers, --rows and --raw may say: steps, layers, heads, tokens and queries. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from sd35h5.errors import ConfigError
from sd35h5.index_lists import choose
from sd35h5.planning.token_table import TokenTable
from sd35h5.store.schema import GROUPS, QUERIES
from sd35h5.store.words import find_phrase

MAX_ROWS = 256
ABSENT = -1
_ROW = re.compile(
    r"centre|sample:(?P<sample>[1-9]\d*)|(?P<x>\d+),(?P<y>\d+)|token:(?P<token>\d+)|word:(?P<word>.+)"
)
_SPREAD = 0.7548776662466927, 0.5698402909980532  # the R2 sequence: well spread for any count


def choose_steps(option: str, text: str, steps: int) -> list[int]:
    """Step indices, as `choose` reads them."""
    return choose(option, text, steps, "step")


@dataclass(frozen=True)
class RawChoice:
    """What --raw keeps along each axis, each text as `choose` reads it."""

    steps: str = "all"
    layers: str = "all"
    heads: str = "all"
    tokens: str = "all"


def parse_raw(texts: Sequence[str]) -> RawChoice | None:
    """Read --raw steps=0,14 layers=3 heads=all tokens=0-15; None if it is not given.

    Raises:
        ConfigError: another word, or an axis twice.
    """
    if not texts:
        return None
    given: dict[str, str] = {}
    for text in texts:
        axis, equals, chosen = text.partition("=")
        if axis not in {field.name for field in fields(RawChoice)} or not equals or axis in given:
            raise ConfigError(
                f"--raw {text!r} is not understood: write any of steps=0,14 layers=3-5 heads=all "
                "tokens=0-15, each once"
            )
        given[axis] = chosen
    return RawChoice(**given)


def raw_indices(
    texts: Sequence[str], steps: int, layers: int, heads: int, tokens: int
) -> dict[str, tuple[int, ...]] | None:
    """True indices along raw_step, raw_layer, raw_head and raw_token; None without --raw.

    Raises:
        ConfigError: an index that is not there.
    """
    choice = parse_raw(texts)
    if choice is None:
        return None
    axes = {"step": (choice.steps, steps), "layer": (choice.layers, layers)}
    axes |= {"head": (choice.heads, heads), "token": (choice.tokens, tokens)}
    return {
        f"raw_{name}": tuple(choose(f"raw {name}s", text, count, name))
        for name, (text, count) in axes.items()
    }


def count_rows(rows: Sequence[str]) -> int:
    """Places that --rows takes in the file: the same for every prompt.

    Raises:
        ConfigError: a text that is not understood, or too many queries.
    """
    total = 0
    for text in rows:
        match = _ROW.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"--rows {text!r} is not understood: write centre, sample:16, a patch x,y, token:0 or word:cat"
            )
        total += int(match["sample"] or 1) if not match["word"] else 2
    if total > MAX_ROWS:
        raise ConfigError(f"--rows names {total} queries: at most {MAX_ROWS} are kept")
    return total


def check_rows(rows: Sequence[str], prompts: Sequence[str]) -> None:
    """Refuse what `count_rows` refuses, and a word that stands in no prompt.

    Raises:
        ConfigError: naming it.
    """
    count_rows(rows)
    for text in rows:
        phrase = _ROW.fullmatch(text)["word"]
        if phrase and not any(find_phrase(prompt, phrase) for prompt in prompts):
            raise ConfigError(f"--rows {text!r}: the word is in no prompt")


def choose_rows(
    rows: Sequence[str], patches: tuple[int, int], tokens: int, table: TokenTable
) -> list[tuple[int, int]]:
    """(stream, position) of every chosen query; ABSENT for a word that the prompt does not have.

    Args:
        patches: (y, x) of the image tokens.
        tokens: length of the text axis.

    Raises:
        ConfigError: a patch or token that is not there.
    """
    count_rows(rows)
    image, text = QUERIES.index("image"), QUERIES.index("text")
    height, width = patches
    found: list[tuple[int, int]] = []
    for row in rows:
        match = _ROW.fullmatch(row)
        if row == "centre":
            found.append((image, height // 2 * width + width // 2))
        elif match["sample"]:
            found += [(image, patch) for patch in _spread(int(match["sample"]), patches)]
        elif match["x"]:
            x, y = int(match["x"]), int(match["y"])
            if x >= width or y >= height:
                raise ConfigError(f"--rows {row}: patches are numbered 0,0 to {width - 1},{height - 1}")
            found.append((image, y * width + x))
        elif match["token"]:
            if int(match["token"]) >= tokens:
                raise ConfigError(f"--rows {row}: tokens are numbered 0..{tokens - 1}")
            found.append((text, int(match["token"])))
        else:
            found += [(text, position) for position in _word_tokens(match["word"], table)]
    return found


def _spread(count: int, patches: tuple[int, int]) -> list[int]:
    """Distinct patches spread evenly over the image, row-major; the same ones in every sample."""
    height, width = patches
    if count > height * width:
        raise ConfigError(f"--rows sample:{count}: the image has {height * width} patches")
    chosen: dict[int, None] = {}
    index = 0
    while len(chosen) < count:
        y, x = ((0.5 + index * step) % 1 for step in _SPREAD)
        chosen[int(y * height) * width + int(x * width)] = None
        index += 1
    return list(chosen)


def _word_tokens(phrase: str, table: TokenTable) -> tuple[int, int]:
    """First token of a phrase within CLIP and within T5."""
    spans = find_phrase(table.prompt, phrase)
    if not spans:
        return ABSENT, ABSENT
    start, end = spans[0]
    inside = np.flatnonzero((table.starts >= 0) & (table.starts < end) & (table.ends > start))
    is_t5 = table.groups[inside] >= GROUPS.index("t5_word")
    clip, t5 = (int(part[0]) if len(part) else ABSENT for part in (inside[~is_t5], inside[is_t5]))
    return clip, t5
