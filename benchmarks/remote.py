"""What reading a packed file from afar takes: requests, bytes and seconds, by this package and by h5wasm in a browser.

    python benchmarks/remote.py                          100 samples of SD3.5-Large's layers, heads and steps, 1.8 GB
    python benchmarks/remote.py --samples 4              a small one, to try it
    python benchmarks/remote.py --h5wasm h5wasm.js       also in Chromium: dist/iife/h5wasm.js of `npm install h5wasm`

A server on this machine answers ranges and waits 60 ms before each answer. fsspec's own caches open the same file with
h5py, for the reason why this package has one of its own. Needs the extras remote and dev.
Prints its table and writes it to benchmarks/results/remote.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from making.range_server import Served, serving
from parts.machine import RESULTS, machine
from parts.synthetic import SIZES, make_run

WAIT_SECONDS = 0.06
SHAPE = {**SIZES, "token": 112, "y": 16, "x": 16, "map_token": 6, "pixel_y": 256, "pixel_x": 256}
DIFFERENT = 10  # samples with numbers of their own
LIMITS = {"open and list": (3, None), "first heatmap": (6, 5e6), "one map": (3, None)}  # requests, bytes
FSSPEC = ("readahead", "blockcache", "bytes", "mmap")
PAGE = """<script>
const worker = new Worker("/worker.js");
worker.onmessage = event => { window.told = event.data; };
worker.postMessage("/ADDRESS");
</script>"""
WORKER = """importScripts("/h5wasm.js");
onmessage = async event => {
  try {
    const {FS} = await h5wasm.ready;
    FS.createLazyFile("/", "run.h5", event.data, true, false);
    const file = new h5wasm.File("/run.h5", "r");
    const names = [...file.keys()].map(name => {
      const one = file.get(name);
      return one.keys ? [...one.keys()].map(inner => one.get(inner).shape) : one.shape;
    });
    const listed = (await (await fetch("/count")).text());
    const map = file.get("maps/image_to_text");
    const shape = map.shape;
    const values = map.slice([[2, 3], [0, 1], [1, 2], [1, 2]]);
    postMessage({names: names.length, listed, map: (await (await fetch("/count")).text()),
                 sum: values.reduce((a, b) => a + b, 0), length: values.length});
  } catch (error) { postMessage({error: String(error)}); }
};"""

Row = tuple[str, int, int, float]  # what, requests, bytes, seconds


def of_package(served: Served) -> Iterator[Row]:
    """Open, look and read as a person would."""
    from sd35h5 import metrics, open_store

    with open_store(served.address) as store:
        yield "open and list", *_taken(served, lambda: store.samples)
        yield "first heatmap", *_taken(served, lambda: metrics.mean_over_samples(store, "first_token_mean"))
        where = {"sample": len(store) // 2, "branch": "cond", "map_step": 3, "map_token": 2}
        yield "one map", *_taken(served, lambda: store.read("maps/image_to_text", **where))
        some = range(len(store) // 2)
        yield (
            "heatmap of half of the samples",
            *_taken(served, lambda: metrics.first_token_mean(store, samples=some)),
        )


def _taken(served: Served, read: Callable[[], object]) -> tuple[int, int, float]:
    """What was asked for until a read has its answer, since the last one."""
    begin = time.perf_counter()
    read()
    taken = len(served.requests), served.bytes, time.perf_counter() - begin
    served.forget()
    return taken


def of_fsspec(served: Served, kind: str) -> Row:
    """List the file with h5py over one of fsspec's caches, with blocks as large as ours."""
    import fsspec
    import h5py

    from sd35h5.store.places.block_cache import BLOCK_BYTES

    def listed() -> None:
        more = {"block_size": BLOCK_BYTES, "cache_type": kind}
        with fsspec.open(served.address, "rb", **more) as file, h5py.File(file) as store:
            store.visititems(lambda name, each: getattr(each, "shape", None))

    return f"h5py over fsspec's {kind}: list alone", *_taken(served, listed)


def of_browser(served: Served, script: Path, folder: Path) -> Iterator[Row]:
    """List the file and read a map with h5wasm in Chromium, as a lazy file in a worker; check the map's sum."""
    import h5py
    from playwright.sync_api import sync_playwright

    pages = {"index.html": PAGE.replace("ADDRESS", served.path.name), "worker.js": WORKER}
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
        served.pages[f"/{name}"] = folder / name
    served.pages["/h5wasm.js"] = script
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page()
        begin = time.perf_counter()
        page.goto(f"{served.address.rpartition('/')[0]}/index.html")
        page.wait_for_function("window.told", timeout=120_000)
        told, seconds = page.evaluate("window.told"), time.perf_counter() - begin
        chromium.close()
    if "error" in told:
        raise RuntimeError(told["error"])
    with h5py.File(served.path) as file:
        expected = file["maps/image_to_text"][2, 0, 1, 1].sum(dtype=float)
    if abs(told["sum"] - expected) > 1e-6 * abs(expected):
        raise RuntimeError(f"h5wasm read a map of {told['sum']}, not {expected}")
    (first, first_bytes), (last, last_bytes) = (map(int, told[name].split()) for name in ("listed", "map"))
    yield "h5wasm in Chromium: list", first, first_bytes, seconds
    yield "h5wasm in Chromium: one map", last - first, last_bytes - first_bytes, seconds


def table(rows: list[Row], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = ["# What reading from afar takes", "", "| what | requests | bytes | seconds | asked for |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for what, requests, count, seconds in rows:
        most, most_bytes = LIMITS.get(what, (None, None))
        asked = f"≤ {most} requests" if most else "printed"
        asked += f", ≤ {most_bytes / 1e6:g} MB" if most_bytes else ""
        lines.append(f"| {what} | **{requests}** | {count / 1e6:.2f} MB | {seconds:.2f} | {asked} |")
    lines += [
        "",
        f"{facts['samples']} samples of 38 layers × 38 heads × 28 steps, {facts['bytes'] / 1e9:.2f} GB; a server on "
        f"this machine, {WAIT_SECONDS * 1e3:.0f} ms a request. Verifying is in the requests of the first row, the "
        "start of checker and readers is not in its seconds; h5wasm's seconds are of the whole visit.",
        f"{facts['cpu']}, {facts['cores']} cores; {facts['system']}, "
        f"{', '.join(f'{name} {number}' for name, number in facts['versions'].items())}. {facts['date']}.",
        "Made by `python benchmarks/remote.py`.",
    ]
    return "\n".join(lines) + "\n"


def measured(path: Path, script: Path | None, folder: Path) -> list[Row]:
    """Every row of the table, of one packed file."""
    rows: list[Row] = []
    with serving(Served(path, seconds=WAIT_SECONDS)) as served:
        rows += of_package(served)
        rows += [of_fsspec(served, kind) for kind in FSSPEC]
        if script is not None:
            rows += of_browser(served, script, folder)
    return rows


def main() -> int:
    """Make the file, measure, print, write, remove the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100, help="samples of the file")
    parser.add_argument("--file", type=Path, help="a packed file to read in place of one that is made")
    parser.add_argument("--h5wasm", type=Path, help="h5wasm's dist/iife/h5wasm.js")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for remote.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sd35h5-remote-") as temporary:
        folder = Path(temporary)
        path = asked.file or make_run(
            folder / "run.h5", asked.samples, 0, gates=False, sizes=SHAPE, different=DIFFERENT
        )
        facts = machine(("h5py", "fsspec", "aiohttp"), 1) | {
            "samples": asked.samples,
            "bytes": path.stat().st_size,
        }
        rows = measured(path, asked.h5wasm, folder)
    text = table(rows, facts)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "remote.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
