"""Every figure of every view can be taken along, and the Python shown beside it reads the same numbers."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from making.stores import make_store

from sd35h5.reports import view_page

LAYERS, HEADS, STEPS = 3, 2, 4
PROMPTS = ("a red apple left of a cat", "a </pre><script>alert(1)</script> car", 'a "quoted" cat')
NARROW = {
    "cell": "2.1", "steps": "1-3", "layers": "1-2", "samples": "0,2", "target": "word:cat", "region_y": "1-3",
    "region_x": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    shape = {"layers": LAYERS, "heads": HEADS, "steps": STEPS, "samples": 3, "prompts": PROMPTS}
    make_store(folder / "demo-baseline.h5", sink=1.0, rows=((0, 9), (1, 78)), **shape)
    make_store(folder / "demo-headwise.h5", sink=2.0, gates=True, **shape)
    return folder


@pytest.mark.parametrize(
    "url", [pytest.param({}, marks=pytest.mark.long), NARROW], ids=["all", "narrow"]
)  # what is chosen is in the Python too: the harder of the two
@pytest.mark.parametrize(
    "page", ["overview", "sinks", "tokens", "maps", "gates", "compare", "evidence", "files"]
)
def test_the_python_of_every_figure_runs_and_gives_its_numbers(app, folder, monkeypatch, page, url):
    test = app(folder, page=page, url=url)
    shown = test.session_state["shown"]
    assert shown, page
    monkeypatch.chdir(folder)
    for one in shown:
        if one.figure is not None and not isinstance(one.figure, bytes):
            one.figure.to_dict()  # raises where Vega-Lite's schema is not followed: the page does not look
        if not one.code:
            continue
        names: dict[str, object] = {}
        exec(one.code, names)
        found = names["table"]
        same = one.table.reset_index(drop=True)[[name for name in found.columns if name in one.table]]
        for name in same.columns:
            left, right = found[name].reset_index(drop=True), same[name]
            if pd.api.types.is_numeric_dtype(right):
                np.testing.assert_allclose(left, right, rtol=1e-6, err_msg=f"{one.name}: {name}")
            else:
                assert list(left) == list(right), (one.name, name)
        assert str(folder) not in one.code


@pytest.mark.parametrize("page", ["sinks", "compare"])
def test_the_python_of_a_metric_of_some_steps_gives_its_numbers(app, folder, monkeypatch, page):
    url = {"metric": "top_1", "cell": "2.1", "steps": "1-3", "layers": "1-2"}
    test_the_python_of_every_figure_runs_and_gives_its_numbers(app, folder, monkeypatch, page, url)


def test_every_chart_of_sinks_and_compare_shows_its_python(app, folder):
    for page in ("sinks", "compare"):
        assert all(one.code for one in app(folder, page=page).session_state["shown"])


def test_each_view_is_a_page_without_scripts_and_with_its_figures(app, folder):
    test = app(folder, page="tokens", url={"sample": "1"})
    shown = test.session_state["shown"]
    page = view_page.page("Tokens <b>", "“a </pre><script>alert(1)</script> car”", shown)
    assert "<script" not in page and "Tokens &lt;b&gt;" in page
    assert page.count("data:image/svg+xml;base64,") == len(shown) == page.count("<summary>Python</summary>")
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "default-src 'none'" in page


def test_figures_are_png_and_svg(app, folder):
    for page in ("gates", "maps"):
        for one in app(folder, page=page).session_state["shown"]:
            assert view_page.png(one).startswith(b"\x89PNG")
            if not isinstance(one.figure, bytes):
                assert view_page.svg(one).startswith("<svg")


@pytest.mark.parametrize(
    "pages",
    [
        ("overview", "maps"),
        pytest.param(("sinks", "tokens", "gates", "compare", "evidence", "files"), marks=pytest.mark.long),
    ],
    ids=["two", "others"],
)
def test_every_view_offers_its_exports_once_they_are_asked_for(app, folder, pages):
    for page in pages:
        assert not app(folder, page=page).get("download_button")
        test = app(folder, page=page, exports=True)
        labels = [button.proto.label for button in test.get("download_button")]
        assert "CSV" in labels and "Whole view as HTML" in labels, page
        assert "table = " in test.get("code")[0].value
