"""No page asks another host for anything: every request that Chromium makes is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from making.browsing import IN_BROWSER, chromium, dashboard_of
from making.stores import make_store

from sd35h5.__main__ import main

PAGES = ("", "sinks", "maps")  # between them every kind of chart and picture, and the linked figure
OTHERS = ("tokens", "gates", "compare", "evidence", "files")

LINKED = "[...document.querySelectorAll('link[href],[src]')].map(held => held.href || held.src)"

pytestmark = IN_BROWSER


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    make_store(folder / "a.h5", samples=2, layers=3, steps=2)
    make_store(folder / "b.h5", samples=2, layers=3, steps=2, gates=True, sink=1.0)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with dashboard_of(folder) as found:
        yield found


def hosts_asked(browser, addresses: list[str], wait_for: str) -> set[str]:
    """Every scheme and host that a visit of these pages asks, whether it answers or not."""
    context = browser.new_context()
    page = context.new_page()
    asked: set[str] = set()
    context.on("request", lambda request: asked.add(_host(request.url)))
    page.on("websocket", lambda socket: asked.add(_host(socket.url)))
    for address in addresses:
        page.goto(address)
        page.wait_for_selector(wait_for, timeout=120_000)
        page.wait_for_timeout(500)
        asked |= set(
            map(_host, page.evaluate(LINKED))
        )  # the tab's icon, which Chromium does not fetch without a window
    context.close()
    return asked


def _host(url: str) -> str:
    parts = urlsplit(url)
    return "" if parts.scheme in ("data", "blob", "about") else parts.hostname or parts.scheme


@pytest.mark.parametrize(
    "pages", [PAGES, pytest.param(OTHERS, marks=pytest.mark.long)], ids=["some", "others"]
)
def test_no_page_of_the_dashboard_asks_another_host(browser, address, pages):
    drawn = "[data-testid=stMain] :is([data-testid=stVegaLiteChart] svg, [data-testid=stMarkdown])"
    assert hosts_asked(browser, [f"{address}/{page}" for page in pages], drawn) - {""} == {"localhost"}


def test_no_written_page_asks_for_anything_at_all(browser, folder, tmp_path):
    out = tmp_path / "out"
    assert (
        main(
            [
                "compare",
                str(folder / "a.h5"),
                str(folder / "b.h5"),
                "--out_dir",
                str(out),
                "--resamples",
                "100",
            ]
        )
        == 0
    )
    written = sorted(out.rglob("*.html"))
    assert written
    assert hosts_asked(browser, [path.as_uri() for path in written], "body") - {""} == {"file"}
