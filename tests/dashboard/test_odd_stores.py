"""Every page draws something sensible of every store that the writer can make: one head, other shapes, tiers that
were not captured, NaN, prompts without words, choices that leave nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from making.pages import frames_of, open_page, text_of
from making.stores import make_store

pytestmark = pytest.mark.slow

PAGES = ("overview", "sinks", "tokens", "maps", "gates", "compare", "evidence", "files")
ROWS = ((0, 5), (1, 78))
HALF = ("sinks", "tokens", "maps", "gates", "compare", "evidence")
OFTEN = {  # pages of each store that are always looked at: where what it lacks was least foreseen
    "one of each": ("overview", "sinks", "compare"),
    "24 x 24": (),
    "8 x 5": ("maps",),
    "only group masses": ("overview", "sinks", "tokens"),
    "without images": ("evidence",),
    "rows without maps": ("maps",),
    "gates without groups": ("gates",),
    "some NaN": ("overview", "gates"),
    "all NaN": ("compare", "evidence"),
    "no words": ("tokens",),
}
OFTEN_CHOSEN = {
    "one head at a step without top keys": ("sinks", "gates"),
    "uncond": ("sinks", "maps"),
    "a word that only another sample has": ("tokens", "maps"),
    "a token in a sample": ("tokens",),
}
STORES = {  # name -> (how it is made, the pages that it may upset)
    "one of each": ({"layers": 1, "heads": 1, "steps": 1, "samples": 1, "gates": True, "rows": ROWS}, PAGES),
    "24 x 24": ({"layers": 24, "heads": 24, "steps": 2, "samples": 1, "height": 32, "width": 48, "gates": True}, HALF),
    "8 x 5": ({"layers": 8, "heads": 5, "steps": 3, "height": 32, "width": 64, "gates": True, "rows": ROWS}, HALF),
    "only group masses": ({"without": ("sinks/mass_image", "sinks/entropy", "topk/", "maps/", "images/")}, PAGES),
    "without images": ({"without": ("images/",), "rows": ROWS}, ("overview", "sinks", "maps", "compare", "evidence")),
    "rows without maps": ({"without": ("maps/",), "rows": ROWS}, ("maps", "evidence", "files")),
    "gates without groups": (
        {"gates": True, "without": ("gates/group_mean", "gates/contribution", "topk/")}, ("gates", "compare")
    ),
    "some NaN": ({"nan": "some", "gates": True, "rows": ROWS, "packed": False, "planned": 9}, PAGES),
    "all NaN": ({"nan": "all", "gates": True, "rows": ROWS}, PAGES),
    "no words": ({"prompts": ("",), "samples": 2}, ("sinks", "tokens", "maps", "evidence")),
}  # fmt: skip
CHOICES = {  # what a URL may choose, that leaves little or nothing
    "one head at a step without top keys": {"layers": "2", "heads": "0", "steps": "1", "with": "-"},
    "uncond": {"branch": "uncond"},
    "a word that only another sample has": {
        "samples": "0,1",
        "sample": "1",
        "target": "word:apple",
        "cell": "1.1",
    },
    "a token in a sample": {"samples": "1", "target": "token:79"},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Make each store when it is first asked for; beside it lies one that pairs, for Compare."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(re.sub(r"\W", "", name))
            make_store(folder / "a-baseline.h5", **STORES[name][0])
            make_store(folder / "b.h5", sink=1.0, seed=1, **STORES[name][0])
            made[name] = folder
        return made[name]

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    for name in ("a-baseline", "b"):
        make_store(folder / f"{name}.h5", gates=True, rows=ROWS, sink=1.0, seed=len(name))
    return folder


def shows_something(test) -> bool:
    """Whether the page holds a chart, a picture, a table or a sentence that says why not."""
    kinds = ("vega_lite_chart", "bidi_component", "image", "imgs", "dataframe", "arrow_data_frame")
    return any(len(test.get(kind)) for kind in kinds) or bool(test.info) or "Without gates" in text_of(test)


def check(test) -> None:
    assert shows_something(test)
    assert not re.search(r"\bnan\b|\bNaN\b|\binf\b", text_of(test)), text_of(test)
    assert not test.error


def _pages(often: dict[str, tuple[str, ...]], all_: dict[str, tuple[str, ...]]) -> list:
    return [
        pytest.param(name, page, marks=[] if page in often[name] else pytest.mark.long)
        for name, pages in all_.items()
        for page in pages
    ]


@pytest.mark.parametrize(("name", "page"), _pages(OFTEN, {name: store[1] for name, store in STORES.items()}))
def test_every_page_draws_or_says_why_not(monkeypatch, stores, name, page):
    check(open_page(monkeypatch, stores(name), page=page, url={"with": "b"}))


@pytest.mark.parametrize(("choice", "page"), _pages(OFTEN_CHOSEN, dict.fromkeys(CHOICES, HALF)))
def test_choices_that_leave_little_draw_it_or_say_so(monkeypatch, folder, choice, page):
    test = open_page(monkeypatch, folder, page=page, url={"with": "b", **CHOICES[choice]})
    check(test)
    assert "The link also asked" not in text_of(test)


def test_maps_opens_at_the_last_step_that_has_a_map(monkeypatch, stores):
    test = open_page(
        monkeypatch, stores("some NaN"), page="maps", url={"with": "b"}
    )  # maps at steps 0 and 2; NaN at 2
    assert "step 0 alone" in text_of(test) and "at step 0" in text_of(test)
    cells = [frame for frame in frames_of(test) if list(frame.columns) == ["y", "x", "value"]]
    assert len(cells) == 3 and all(frame["value"].notna().all() for frame in cells)  # two runs, and the row
    test = open_page(monkeypatch, stores("some NaN"), page="maps", url={"layer": "0", "with": "b"})
    assert text_of(test).count("no map of layer 0 was captured, of 1, 2 only") == 2
