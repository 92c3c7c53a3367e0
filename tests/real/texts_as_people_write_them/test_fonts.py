"""Charts and sheets on a machine without fonts: letters of other scripts and emoji are drawn, no two alike as boxes."""

from __future__ import annotations

import json
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFont

from sd35h5.figures import overlays, printing, token_charts
from sd35h5.store.words import word_spans

ROOT = Path(__file__).resolve().parents[3]
NOWHERE = "\U000f0000"  # no font has it: a box
UNDRAWN = set("\u0302\u0337")  # marks of one odd prompt each
ALIKE = ["猫狗", "リル", "고양", "🐱🍎", "कख", "กข", "شم", "של", "éè", "Яж", "αβ", "𝓪𝓮", "ﬁﬂ", "①②"]


def _pixels(png: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def _glyph(text: str) -> tuple:
    mask = overlays.font(40).getmask(text)
    return mask.size, bytes(mask)


def _chart(text: str) -> np.ndarray:
    frame = pd.DataFrame({"name": [text], "value": [1]})
    chart = alt.Chart(frame).mark_text(fontSize=40).encode(text="name:N").properties(width=200, height=60)
    return _pixels(printing.png(chart, scale=1))


@pytest.mark.parametrize("pair", ALIKE)
def test_letters_of_every_bundled_script_are_drawn_and_not_as_boxes(pair):
    first, second = (_glyph(letter) for letter in pair)
    assert first != second and _glyph(NOWHERE) not in (first, second)
    one, other = (_chart(letter) for letter in pair)
    assert (one < 128).any() and one.shape == other.shape and (one != other).any()
    assert (one != _chart(NOWHERE)).any()


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("👩\u200d👧 cat", "👨\u200d👦 cat"),
        ("🇩🇪 flag", "🇫🇷 flag"),
        ("हिन्दी cat", "चिन्ती cat"),
        ("x ตัว cat", "x ถัม cat"),
    ],
)
def test_letters_of_several_characters_are_drawn_beside_others(text, other):
    """A renderer that goes from font to font within a text draws boxes here, alike for both."""
    one, two = _chart(text), _chart(other)
    assert (one < 128).any() and not np.array_equal(one, two)


def test_every_letter_of_two_hundred_prompts_is_in_the_bundled_font():
    box = _glyph(NOWHERE)
    letters = {
        letter
        for kind in ("long", "short")
        for entry in json.loads((ROOT / "data" / "prompts" / f"{kind}.json").read_text(encoding="utf-8"))
        for letter in entry["prompt"]
    }
    assert {letter for letter in letters - UNDRAWN if _glyph(letter) == box} == set()


def test_a_prompts_chips_and_its_sheet_show_han_and_emoji():
    def chips(text: str) -> np.ndarray:
        words = [text[start:end] for start, end in word_spans(text)]
        frame = pd.DataFrame(
            {
                "token": range(len(words)), "last": range(len(words)), "count": 1, "encoder": "clip",
                "group": "clip_word", "text": words, "mass": 0.1, "total": 0.1,
            }
        )  # fmt: skip
        return _pixels(printing.png(token_charts.token_chips(frame, width=300), scale=1))

    assert (chips("一只猫 🐱") != chips("二只狗 🐶")).any()
    tile = np.zeros((20, 90, 3), np.uint8)
    sheets = [
        np.asarray(overlays.sheet([tile], [text], columns=1, size=(20, 90), title=text))
        for text in ("猫 🐱", "狗 🐶")
    ]
    assert (sheets[0] != sheets[1]).any()


def test_a_long_prompt_is_fitted_at_once():
    words = "cat " * 200_000
    short = overlays.fitted(words, 300, 12)
    assert short.endswith("…") and overlays.font(12).getlength(short) <= 300 < overlays.font(12).getlength(
        words[:200]
    )


def test_the_font_is_installed_with_its_licences_and_stays_light():
    import tomllib

    folder = overlays.FONT.parent
    assert {file.name for file in folder.iterdir()} == {
        "scripts.ttf",
        "README.md",
        "OFL.txt",
        "Apache-2.0.txt",
    }
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6_000_000
    assert ImageFont.truetype(overlays.FONT, 12).getname()[0] == printing.FONT
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "fonts/*" in setuptools["package-data"]["sd35h5.figures"]
