"""What the dashboard costs on a real-sized store: first chart, changes of a filter, memory, payload.

    python benchmarks/dashboard.py                       100 samples x 2 runs of SD3.5-Large's shape, about 10 GB
    python benchmarks/dashboard.py --samples 2           a small one, to try it
    python benchmarks/dashboard.py --samples 1000 --different 10 --light --out DIR    a thousand samples, about 40 GB
    python benchmarks/dashboard.py --folder /mnt/fast    where the store is made; it is removed afterwards

The store is written by the real writer: 38 layers x 38 heads x 28 steps x 333 tokens, noise that does not
compress away. A real Chromium opens the page Sinks on a server just started (cold) and in new browsers (warm),
then changes steps, layers, heads, metric, branch and cell by keyboard and mouse, and looks at every other page:
pixels are from the key press to the last change in a chart. The same changes without a browser, over Streamlit's
socket, give the server's time: from the request to the last message of its answer.
Prints its table and writes it to benchmarks/results/dashboard.md and .json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from parts.machine import RESULTS, machine, machine_told
from parts.synthetic import SIZES, make_run
from parts.visitor import Session
from parts.visits import CELLS, PAGES, browser, changes, children, first_chart, peak_mb, seen, server, settle

LIMITS = {  # what issue 18 asks for of 100 samples, of 1,000 half as much again: name -> (limit, unit, what)
    "warm_s": (2.2, "s", "first chart, new browser, warm server"),
    "cold_s": (3.8, "s", "first chart, server just started"),
    "first_seen_ms": (1000, "ms", "metric or branch seen for the first time, server time, the slowest"),
    "server_p95_ms": (250, "ms", "change of a filter, server time, 95th percentile"),
    "server_most_ms": (None, "ms", "slowest change of a filter, server time"),
    "pixels_p95_ms": (600, "ms", "change of a filter, to pixels, 95th percentile"),
    "server_mb": (450, "MB", "memory of the server at its peak"),
    "payload_kb": (300, "kB", "largest chart of any page, bytes sent"),
}
NEW = ("branch uncond", "metric 1")  # of the changes, those of which nothing was read before
LIGHT = {**SIZES, "token": 112, "y": 16, "x": 16, "map_token": 6, "pixel_y": 256, "pixel_x": 256}


# ---- what is measured ------------------------------------------------------------------------------------


def answers(address: str, rounds: int) -> Iterator[tuple[str, float]]:
    """Change one filter after the other without a browser. Yields: its name, milliseconds of the server."""
    last = {"Steps": SIZES["step"] - 1, "Layers": SIZES["layer"] - 1, "Heads": SIZES["head"] - 1}
    with Session(address, "sinks") as session:
        for _ in range(3):  # until the browser that was there before has ended
            session.rerun()
            time.sleep(1)
        for turn in range(rounds):
            for name, high in last.items():
                yield f"{name} narrower", session.slide(name, turn + 1, high) * 1e3
                yield f"{name} whole", session.slide(name, 0, high) * 1e3
            for place, name in ((1, "uncond"), (0, "cond")):
                yield f"branch {name}", session.press("Branch", place) * 1e3
            for place in (1, 0):
                yield f"metric {place}", session.choose("Metric", place) * 1e3
            for layer, head in CELLS:
                yield f"cell {layer}, {head}", session.pin("linked-sinks", layer, head) * 1e3


def measure(folder: Path, runs: int, rounds: int) -> dict[str, object]:
    """Open, change and weigh the dashboard. Returns: every measured value by name."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list] = {
        "start_s": [],
        "cold_s": [],
        "warm_s": [],
        "answers": [],
        "changes": [],
        "pages": [],
        "payload_bytes": [],
    }
    with sync_playwright() as playwright:
        for run in range(runs):
            with server(folder) as (address, process, start):
                found["start_s"].append(start)
                with browser(playwright) as chromium:
                    _, seconds = first_chart(chromium, address)
                    found["cold_s"].append(seconds)
                found["answers"] += answers(address, rounds)
                with browser(playwright) as chromium:
                    page, seconds = first_chart(chromium, address)
                    found["warm_s"].append(seconds)
                    found["payload_bytes"] += seen(page).charts
                    for _ in range(rounds):
                        for name in changes(page):
                            settle(page)
                            one = seen(page)
                            found["payload_bytes"] += one.charts
                            found["changes"].append([name, one.pixels])
                    for name in PAGES:
                        page.get_by_role("link", name=name, exact=True).click()
                        settle(page)
                        found["payload_bytes"] += (charts := seen(page).charts)
                        found["pages"].append([name, len(charts), max(charts, default=0)])
                found.setdefault("server_mb", []).append(peak_mb(process))
                found.setdefault("readers_mb", []).append(sum(map(peak_mb, children(process))))
            print(f"run {run + 1} of {runs}", file=sys.stderr)
    return found


# ---- what is told ------------------------------------------------------------------------------------------


def summary(found: dict[str, list]) -> dict[str, float]:
    """The numbers of LIMITS: medians of first charts, percentiles of changes, the largest of sizes."""
    server = [milliseconds for _, milliseconds in found["answers"]]
    pixels = [milliseconds for _, milliseconds in found["changes"] if milliseconds]
    per_server = len(found["answers"]) // max(1, len(found["cold_s"]))
    servers = [
        found["answers"][first : first + per_server] for first in range(0, len(found["answers"]), per_server)
    ]
    seen_first = [next(each for name, each in one if name == new) for one in servers for new in NEW]
    return {
        "first_seen_ms": max(seen_first),
        "warm_s": float(np.median(found["warm_s"])),
        "cold_s": float(np.median(found["cold_s"])),
        "server_p95_ms": float(np.percentile(server, 95)),
        "server_most_ms": max(server),
        "pixels_p95_ms": float(np.percentile(pixels, 95)),
        "server_mb": max(found["server_mb"]),
        "payload_kb": max(found["payload_bytes"]) / 1e3,
    }


def table(told: dict[str, float], found: dict[str, list], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = ["# What the dashboard costs", "", "| what | measured | asked for |", "| --- | --- | --- |"]
    for name, (limit, unit, what) in LIMITS.items():
        asked = "printed" if limit is None else f"≤ {limit:g} {unit}"
        lines.append(f"| {what} | **{told[name]:.3g} {unit}** | {asked} |")
    lines += [
        "",
        f"{facts['samples']} samples × 2 runs of 38 layers × 38 heads × 28 steps × {facts['tokens']} tokens, "
        f"{facts['bytes'] / 1e9:.2f} GB; page Sinks at 1280 pixels; {facts['runs']} servers, "
        f"{len(found['answers'])} changes of steps, layers, heads, metric, branch and cell without a browser and "
        f"{len(found['changes'])} in one; slowest: {max(found['answers'], key=lambda one: one[1])[0]}, the first time; "
        f"then every other page once, {sum(count for _, count, _ in found['pages'])} charts. "
        f"The server answered after {np.median(found['start_s']):.1f} s; its readers held "
        f"{max(found['readers_mb']):.0f} MB together.",
        machine_told(facts),
        "Made by `python benchmarks/dashboard.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make the store, measure, print, write, remove the store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100, help="samples of each of the two runs")
    parser.add_argument(
        "--runs", type=int, default=3, help="servers that are started, each measured cold and warm"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of changes of the filters on each server"
    )
    parser.add_argument(
        "--different",
        type=int,
        default=None,
        help="samples with numbers of their own, repeated by the others",
    )
    parser.add_argument("--light", action="store_true", help="fewer tokens and smaller maps: 18 MB a sample")
    parser.add_argument("--folder", type=Path, default=None, help="where the store is made")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for dashboard.md and dashboard.json"
    )
    asked = parser.parse_args()
    if min(asked.samples, asked.runs, asked.rounds) < 1:
        parser.error("--samples, --runs and --rounds are 1 or more")
    if asked.different is not None and asked.different < 1:
        parser.error("--different is 1 or more")
    if asked.folder is not None and not asked.folder.is_dir():
        parser.error(f"--folder {asked.folder}: there is no such folder")
    if shutil.which("chromium") is None:
        parser.error("it needs Debian's chromium: apt install chromium")
    facts = machine(("streamlit", "altair", "h5py", "numpy"), 3)
    facts |= {"samples": asked.samples, "runs": asked.runs}
    facts["tokens"] = (LIGHT if asked.light else SIZES)["token"]
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="sd35h5-dashboard-") as temporary:
        shape = LIGHT if asked.light else SIZES
        made = [
            make_run(Path(temporary) / f"{name}.h5", asked.samples, seed, seed == 1, shape, asked.different)
            for seed, name in enumerate(("baseline", "headwise"))
        ]
        facts["bytes"] = sum(path.stat().st_size for path in made)
        found = measure(Path(temporary), asked.runs, asked.rounds)
    told = summary(found)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = table(told, found, facts)
    (asked.out / "dashboard.md").write_text(text, encoding="utf-8")
    (asked.out / "dashboard.json").write_text(
        json.dumps({**facts, "results": told, "measured": found}, indent=1) + "\n"
    )
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
