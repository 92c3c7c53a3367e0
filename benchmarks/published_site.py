"""What a published page costs: seconds and bytes to the first chart, of each page, and of the one file for a mail.

    python benchmarks/published_site.py                       10 samples x 2 runs of SD3.5-Large's shape, about 1.1 GB
    python benchmarks/published_site.py --size tiny --samples 2    a small one, to try it
    python benchmarks/published_site.py --folder /mnt/fast    where all is made; it is removed afterwards

The runs are written by the real writer, the page by `publish`, and `python -m http.server` serves it. A real Chromium
opens Sinks in a new context each time: seconds are from the request to a painted heatmap, bytes what the server sent
until then. The single file is opened from the disk, offline. Prints its table and writes it to
benchmarks/results/published_site.md and .json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from parts.machine import RESULTS, machine, machine_told
from parts.synthetic import SIZES, make_run

from sd35h5.reports.publishing.publish import publish

PAGES = ("", "sinks", "tokens", "maps", "compare", "files")
PAINTED = ".lv canvas[data-window]"  # a heatmap that was painted says what it shows
DRAWN = "main[aria-busy=false] .view"
TINY = {**SIZES, "step": 8, "layer": 6, "head": 5, "token": 120, "top_step": 2, "map_step": 2, "map_token": 6,
        "y": 8, "x": 8, "pixel_y": 256, "pixel_x": 256}  # fmt: skip
LIMITS = {  # what issue 18 asks for: name -> (limit, unit, what)
    "first_s": (2.0, "s", "first chart, new browser"),
    "first_mb": (2.0, "MB", "sent for it"),
    "single_mb": (25.0, "MB", "the single file"),
    "single_s": (None, "s", "its first chart, from the disk"),
    "page_s": (None, "s", "slowest page, in a new browser"),
    "page_mb": (None, "MB", "the most that a page sent"),
    "folder_mb": (None, "MB", "the folder, tables included"),
    "making_s": (None, "s", "making the folder"),
}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by Python's own server. Yields: its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "localhost", "-d", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def visit(browser, url: str, until: str, offline: bool = False) -> tuple[float, int]:
    """Open a page in a new context. Returns: seconds until an element is there, bytes that were sent for it."""
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, offline=offline)
    page, sent = context.new_page(), []
    page.set_default_timeout(120_000)
    page.on("requestfinished", lambda request: sent.append(request))
    begin = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator(until).first.wait_for(state="attached")
    seconds = time.perf_counter() - begin
    size = sum(request.sizes()["responseBodySize"] for request in sent if request.url.startswith("http"))
    context.close()
    return seconds, size


def measure(runs: list[Path], folder: Path, visits: int) -> dict[str, object]:
    """Publish the runs and visit what was made. Returns: every measured value by name."""
    from playwright.sync_api import sync_playwright

    found: dict[str, object] = {}
    begin = time.perf_counter()
    publish(runs, folder / "site")
    found["making_s"] = time.perf_counter() - begin
    found["folder_bytes"] = sum(
        path.stat().st_size for path in (folder / "site").rglob("*") if path.is_file()
    )
    (single,) = publish(runs, folder / "page.html", single=True)
    found["single_bytes"] = single.stat().st_size
    with sync_playwright() as playwright, served(folder / "site") as address:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        visit(browser, f"{address}/files/", DRAWN)  # the browser itself has started
        found["first"] = [visit(browser, f"{address}/sinks/", PAINTED) for _ in range(visits)]
        found["pages"] = {page: visit(browser, f"{address}/{page}", DRAWN) for page in PAGES}
        url = f"{single.as_uri()}?page=sinks"
        found["single"] = [visit(browser, url, PAINTED, offline=True)[0] for _ in range(visits)]
        browser.close()
    return found


def summary(found: dict[str, object]) -> dict[str, float]:
    """The numbers of LIMITS: medians of first charts, the most of pages."""
    seconds, sent = zip(*found["first"], strict=True)
    return {
        "first_s": float(np.median(seconds)),
        "first_mb": max(sent) / 1e6,
        "single_mb": found["single_bytes"] / 1e6,
        "single_s": float(np.median(found["single"])),
        "page_s": max(took for took, _ in found["pages"].values()),
        "page_mb": max(size for _, size in found["pages"].values()) / 1e6,
        "folder_mb": found["folder_bytes"] / 1e6,
        "making_s": found["making_s"],
    }


def table(told: dict[str, float], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = ["# What a published page costs", "", "| what | measured | asked for |", "| --- | --- | --- |"]
    for name, (limit, unit, what) in LIMITS.items():
        asked = "printed" if limit is None else f"≤ {limit:g} {unit}"
        lines.append(f"| {what} | **{told[name]:.3g} {unit}** | {asked} |")
    lines += [
        "",
        f"2 runs of {facts['samples']} samples, {facts['shape']}; {facts['bytes'] / 1e6:.0f} MB; "
        f"{facts['visits']} visits of Sinks, then each page once, each in a new context; "
        "served by `python -m http.server`.",
        machine_told(facts),
        "Made by `python benchmarks/published_site.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make the runs, publish, visit, print, write, remove."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=10, help="samples of each of the two runs")
    parser.add_argument("--size", choices=("large", "tiny"), default="large", help="shape of the model")
    parser.add_argument("--visits", type=int, default=5, help="how often the first chart is opened")
    parser.add_argument("--folder", type=Path, default=None, help="where everything is made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table and its JSON")
    asked = parser.parse_args()
    if min(asked.samples, asked.visits) < 1:
        parser.error("--samples and --visits are 1 or more")
    if shutil.which("chromium") is None:
        parser.error("it needs Debian's chromium: apt install chromium")
    sizes = SIZES if asked.size == "large" else TINY
    facts = machine(("pyarrow", "numpy"), 3) | {"samples": asked.samples, "visits": asked.visits}
    facts["shape"] = (
        f"{sizes['layer']} layers × {sizes['head']} heads × {sizes['step']} steps × {sizes['token']} tokens"
    )
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="sd35h5-published-") as temporary:
        made = [
            make_run(Path(temporary) / f"{name}.h5", asked.samples, seed, gates=seed == 1, sizes=sizes)
            for seed, name in enumerate(("baseline", "headwise"))
        ]
        facts["bytes"] = sum(path.stat().st_size for path in made)
        found = measure(made, Path(temporary), asked.visits)
    told = summary(found)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = table(told, facts)
    (asked.out / "published_site.md").write_text(text, encoding="utf-8")
    record = json.dumps({**facts, "results": told, "measured": found}, indent=1) + "\n"
    (asked.out / "published_site.json").write_text(record, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
