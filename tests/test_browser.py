"""One story in real Chromium: open, click a cell, go to Maps and Compare; screenshots go to
tests/artifacts/."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from stores import make_store

from sd35h5.analysis import report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = ROOT / "tests" / "artifacts"
CELLS = "[data-testid=stVegaLiteChart] path[aria-roledescription]"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    shape = {"layers": 8, "heads": 5, "steps": 8, "samples": 3}
    make_store(folder / "demo-baseline.h5", sink=4.0, **shape)
    make_store(folder / "demo-headwise.h5", sink=2.0, gates=True, **shape)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """Run the dashboard as a person would; yields its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        "dashboard/app.py",
        "--server.port",
        str(port),
        "--",
        folder,
    ]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://localhost:{port}"
    try:
        _wait_for(f"{address}/_stcore/health")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for(address: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


@pytest.fixture(params=["light", "dark"])
def page(request, server):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 1400}, color_scheme=request.param)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.scheme = request.param
        yield page
        browser.close()


def shoot(page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}-{page.scheme}.png")


def drawn_cells(page) -> dict[tuple[int, int], float]:
    """Return the heatmap as the browser tells it to a screen reader: (layer, head) -> value."""
    labels = page.locator("[data-testid=stVegaLiteChart]").first.locator("path[aria-roledescription]")
    found = {}
    for label in labels.evaluate_all("marks => marks.map(mark => mark.getAttribute('aria-label'))"):
        layer, head, value = re.fullmatch(r"layer: (\d+); head: (\d+); value: ([\d.e-]+)", label).groups()
        found[int(layer), int(head)] = float(value)
    return found


def test_from_overview_to_a_cell_to_its_map_and_the_comparison(page, server, folder, tmp_path):
    page.goto(server)
    page.get_by_text("demo-headwise").first.wait_for()
    page.locator("[data-testid=stImage] img").nth(3).wait_for()
    page.wait_for_timeout(800)
    shoot(page, "overview")

    page.get_by_role("link", name="Sinks").click()
    page.locator(CELLS).nth(39).wait_for()
    page.wait_for_timeout(1500)
    report.analyze(folder / "demo-baseline.h5", tmp_path)
    table = (
        pd.read_csv(tmp_path / "first_token_metrics.csv")
        .groupby(["layer", "head"])["first_token_mean"]
        .mean()
    )
    cells = drawn_cells(page)
    assert set(cells) == set(table.index)
    assert all(cells[place] == pytest.approx(table[place], rel=2e-3) for place in cells)

    page.locator('path[aria-label^="layer: 5; head: 3"]').first.click()
    page.get_by_text("· layer 5, head 3").first.wait_for()
    page.get_by_role("button", name="layer 5, head 3").wait_for()
    page.wait_for_timeout(1200)
    shoot(page, "sinks")

    page.get_by_role("link", name="Maps").click()
    page.get_by_text("layer 5").first.wait_for()
    page.locator("[data-testid=stImage] img").nth(2).wait_for()
    page.wait_for_timeout(1200)
    shoot(page, "maps")

    page.get_by_role("link", name="Compare").click()
    page.get_by_text("mean of 3 pairs").wait_for()
    page.locator(CELLS).nth(3 * 40 - 1).wait_for()
    page.wait_for_timeout(1200)
    shoot(page, "compare")

    page.get_by_role("button", name="layer 5, head 3").click()
    page.get_by_role("button", name="layer 5, head 3").wait_for(state="detached")
    assert page.errors == []
