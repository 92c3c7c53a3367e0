"""How long the linked figure takes from the hand to pixels, in Chromium, on the page Compare at SD3.5-Large's shape.

    python benchmarks/pointer.py                     38 layers × 38 heads × 28 steps, reference, run and difference
    python benchmarks/pointer.py --moves 60          a short one, to try it

Two synthetic runs are opened in the dashboard; the pointer goes over cells, drags over cells, steps and layers, clicks,
and the arrow keys walk, as often as a held key repeats. A time is from the event's own time stamp to the first task
after the frame that it asked for was painted (requestAnimationFrame, then a message).
The browser's event timing (PerformanceObserver) tells of
presses and keys what it holds to be their time to the next paint; it leaves moves out.
Prints its table and writes it to benchmarks/results/pointer.md and .json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from parts.machine import RESULTS, machine, machine_told
from parts.synthetic import SIZES, make_run
from parts.visits import MAP, browser, cell_place, server

LIMIT = 50  # milliseconds at the 95th percentile
REPEAT = 33  # milliseconds between two keys of one that is held; without a pause keys go before what tells the time
WATCH = """
window.taken = []; window.timed = [];
for (const kind of ["pointermove", "pointerdown", "pointerup", "keydown"])
  window.addEventListener(kind, event => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => window.taken.push(performance.now() - event.timeStamp);
    channel.port2.postMessage(0);
  }), true);
new PerformanceObserver(list => list.getEntries().forEach(one => window.timed.push(one.duration)))
  .observe({type: "event", durationThreshold: 16});
"""
TAKE = """async () => {
  await new Promise(done => setTimeout(done, 100));
  const all = {taken: window.taken, timed: window.timed};
  window.taken = []; window.timed = [];
  return all;
}"""


def gestures(page, moves: int):
    """Make one gesture after the other. Yields: its name, once it is made."""
    canvas = page.locator(MAP).first
    layers, heads = SIZES["layer"], SIZES["head"]
    curve, profile = (
        page.locator(f"canvas[data-plot={kind}]").first.bounding_box() for kind in ("curve", "profile")
    )
    for place in range(moves):
        page.mouse.move(*cell_place(canvas, (place * 7) % layers, (place * 3) % heads))
    yield "pointing at cells"
    page.mouse.click(*cell_place(canvas, 5, 3))
    for place in range(moves):
        page.mouse.move(*cell_place(canvas, (place * 7) % layers, (place * 3) % heads))
    yield "pointing at cells, one pinned"
    page.mouse.move(*cell_place(canvas, 1, 1))
    page.mouse.down()
    for place in range(moves):
        page.mouse.move(*cell_place(canvas, 2 + place % (layers - 2), 2 + (place * 5) % (heads - 2)))
    yield "dragging over cells"
    page.mouse.up()
    for name, box in (("steps", curve), ("layers", profile)):
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 60)
        page.mouse.down()
        for place in range(moves):
            page.mouse.move(box["x"] + box["width"] * (0.35 + 0.5 * (place % 20) / 20), box["y"] + 60)
        yield f"dragging over {name}"
        page.mouse.up()
    canvas.focus()
    for place in range(moves):
        page.keyboard.press("ArrowRight" if place % (2 * layers) < layers else "ArrowLeft")
        page.wait_for_timeout(REPEAT)
    yield "walking with arrow keys"


def measure(folder: Path, moves: int) -> dict[str, dict[str, list[float]]]:
    """Open Compare and make every gesture. Returns: gesture -> `taken` and `timed`, milliseconds of each event."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright, server(folder) as (address, _, _), browser(playwright) as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(120_000)
        page.add_init_script(WATCH)
        page.goto(f"{address}/compare")
        page.locator(MAP).nth(2).wait_for()
        page.get_by_text("Images · “").wait_for()
        page.wait_for_timeout(2000)
        page.evaluate(TAKE)
        for name in gestures(page, moves):
            found[name] = page.evaluate(TAKE)
            page.mouse.move(3, 3)
            page.wait_for_timeout(2500)  # what was chosen reaches the server, and its answer this page
            page.evaluate(TAKE)
    return found


def table(found: dict[str, dict[str, list[float]]], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = [
        "# From the hand to pixels", "",
        "| gesture | events | median | 95th percentile | slowest | event timing, slowest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, one in found.items():
        half, most = np.percentile(one["taken"], (50, 95))
        timed = f"{max(one['timed']):.0f} ms" if one["timed"] else "under 16 ms"
        slowest = f"{max(one['taken']):.0f} ms | {timed}"
        lines.append(f"| {name} | {len(one['taken'])} | {half:.0f} ms | **{most:.0f} ms** | {slowest} |")
    every = [one for each in found.values() for one in each["taken"]]
    lines += [
        "",
        f"All: {np.percentile(every, 95):.0f} ms at the 95th percentile, asked for: ≤ {LIMIT} ms. "
        f"{SIZES['layer']} layers × {SIZES['head']} heads × {SIZES['step']} steps, three panels of Compare.",
        machine_told(facts),
        "Made by `python benchmarks/pointer.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make the stores, measure, print, write, remove the stores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moves", type=int, default=300, help="moves of each gesture")
    parser.add_argument("--samples", type=int, default=2, help="samples of each of the two runs")
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for pointer.md and pointer.json")
    asked = parser.parse_args()
    if min(asked.moves, asked.samples) < 1:
        parser.error("--moves and --samples are 1 or more")
    if asked.folder is not None and not asked.folder.is_dir():
        parser.error(f"--folder {asked.folder}: there is no such folder")
    if shutil.which("chromium") is None:
        parser.error("it needs Debian's chromium: apt install chromium")
    facts = machine(("streamlit", "playwright", "numpy"), 1)
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="sd35h5-pointer-") as temporary:
        for seed, name in enumerate(("baseline", "headwise")):
            make_run(Path(temporary) / f"{name}.h5", asked.samples, seed, gates=seed == 1)
        found = measure(Path(temporary), asked.moves)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = table(found, facts)
    (asked.out / "pointer.md").write_text(text, encoding="utf-8")
    (asked.out / "pointer.json").write_text(json.dumps({**facts, "measured": found}, indent=1) + "\n")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
