"""What the dashboard costs on a real-sized store: first chart, changes of a filter, memory, payload.

    python benchmarks/dashboard.py                       100 samples x 2 runs of SD3.5-Large's shape, about 10 GB
    python benchmarks/dashboard.py --samples 2           a small one, to try it
    python benchmarks/dashboard.py --folder /mnt/fast    where the store is made; it is removed afterwards

The store is written by the real writer: 38 layers x 38 heads x 28 steps x 333 tokens, noise that does not
compress away. A real Chromium opens the page Sinks on a server just started (cold) and in new browsers (warm),
then changes steps, layers, heads, metric, branch and cell by keyboard and mouse, and looks at every other page. Server
time is from the message of the browser to `script_finished` at its socket; pixels from the key press to the last
change in a chart.
Prints its table and writes it to benchmarks/results/dashboard.md and .json.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from machine import RESULTS, machine

from sd35h5.store import schema
from sd35h5.store.schema import variable
from sd35h5.store.writer import Header, SampleWriter, begin_run, pack

SIZES = {
    "branch": 2, "step": 28, "layer": 38, "head": 38, "token": 333, "top_step": 7, "map_step": 7, "rank": 16,
    "map_token": 24, "y": 32, "x": 32, "pixel_y": 1024, "pixel_x": 1024,
}  # fmt: skip
CLIP = 77
WORDS = "a red apple left of a small cat on a wooden chair in the morning sun".split()
LIMITS = {  # what issue 7 asks for: name -> (limit, unit, what)
    "warm_s": (2.5, "s", "first chart, new browser, warm server"),
    "cold_s": (4.0, "s", "first chart, server just started"),
    "server_p95_ms": (300, "ms", "change of a filter, server time, 95th percentile"),
    "pixels_p95_ms": (600, "ms", "change of a filter, to pixels, 95th percentile"),
    "server_mb": (500, "MB", "memory of the server at its peak"),
    "payload_kb": (300, "kB", "largest chart of any page, bytes sent"),
}
WATCH = """
window.sent = []; window.got = []; window.drawn = 0; window.pressed = 0;
const Socket = window.WebSocket;
window.WebSocket = class extends Socket {
  constructor(...all) {
    super(...all);
    this.addEventListener("message", event => window.got.push([performance.now(), event.data]));
  }
  send(data) { window.sent.push(performance.now()); super.send(data); }
};
for (const kind of ["keydown", "pointerdown"])
  window.addEventListener(kind, () => { window.pressed = performance.now(); }, true);
new MutationObserver(changes => {
  if (changes.some(one => one.target.closest && one.target.closest("[data-testid=stVegaLiteChart]")))
    requestAnimationFrame(() => { window.drawn = performance.now(); });
}).observe(document, {childList: true, subtree: true, attributes: true, characterData: true});
"""
TAKE = """async () => {
  const got = [];
  for (const [at, data] of window.got) {
    const buffer = data instanceof Blob ? await data.arrayBuffer() : data;
    const url = await new Promise(done => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(new Blob([buffer]));
    });
    got.push([at, url.slice(url.indexOf(",") + 1)]);
  }
  const all = {sent: window.sent, got, drawn: window.drawn, pressed: window.pressed};
  window.sent = []; window.got = [];
  return all;
}"""
PAGES = ("Tokens", "Maps", "Gates", "Compare", "Evidence", "Files", "Overview")
CELL = "[data-testid=stVegaLiteChart] path[aria-roledescription]"


# ---- the store ---------------------------------------------------------------------------------------------


def make_run(path: Path, samples: int, seed: int, gates: bool, sizes: dict[str, int] | None = None) -> Path:
    """Write a run of random but possible numbers with the writer of a capture, and pack it."""
    sizes = sizes or SIZES
    scales = {name: np.arange(size) for name, size in sizes.items()}
    steps = sizes["step"]
    scales |= {
        "timestep": np.linspace(1000, 1000 / steps, steps), "sigma": np.linspace(1, 1 / steps, steps),
        "token_encoder": (np.arange(sizes["token"]) >= CLIP).astype(int),
        "top_step": np.linspace(0, steps - 1, sizes["top_step"]).astype(int),
        "map_step": np.linspace(0, steps - 1, sizes["map_step"]).astype(int),
        "y": np.arange(sizes["y"]) * 2 + 0.5, "x": np.arange(sizes["x"]) * 2 + 0.5,
    }  # fmt: skip
    config = {"model_id": "synthetic", "steps": steps, "prompts": [" ".join(WORDS)] * samples}
    attributes = {"model_id": "synthetic", "gate_type": "headwise" if gates else "none"}
    header = Header(attributes, scales, {"config": json.dumps(config)})
    parts = begin_run(path, config, samples)
    for index in range(samples):
        write_sample(SampleWriter(parts, index, header), index, np.random.default_rng([seed, index]), gates)
        print(f"{path.name}: sample {index + 1} of {samples}", file=sys.stderr)
    return pack(parts, path, keep_parts=False)


def write_sample(writer: SampleWriter, index: int, rng: np.random.Generator, gates: bool) -> None:
    """Write one sample: tables, masses, heaviest keys, maps, gates and an image."""
    sizes = writer.sizes
    texts = {"sample_id": f"{index:06d}", "prompt_id": f"p{index:03d}", "prompt": f"{' '.join(WORDS)} {index}",
             "negative_prompt": "", "tags": "", "pairing_key": f"key {index}"}  # fmt: skip
    numbers = {
        "prompt_index": index,
        "image_index": 0,
        "seed": index,
        "row_sum_error": 1e-6,
        "kept_chars": 70,
    }
    for name, value in (texts | numbers).items():
        spec = variable(f"samples/{name}")
        writer.put(spec.name, np.full(spec.shape({**sizes, "sample": 1})[1:], value))
    group = write_tokens(writer)
    layer_head = (sizes["layer"], sizes["head"])
    for step in range(sizes["step"]):
        mass = rng.lognormal(-7, 1, (*layer_head, sizes["token"])).astype(np.float32)
        mass[..., 0] *= 200
        mass /= mass.sum(-1, keepdims=True) * 2  # half of the attention is on the text
        writer.put("sinks/mass_image", mass, branch=0, step=step)
        sums = np.stack([mass[..., group == g].sum(-1) for g in range(len(schema.GROUPS))])
        sums[-1] = 1 - sums.sum(0)
        for branch, query in np.ndindex(sizes["branch"], 2):
            where = {"branch": branch, "query": query, "step": step}
            writer.put("sinks/mass_group", sums, **where)
            writer.put("sinks/entropy_text", rng.uniform(0, 5, layer_head), **where)
            for name in ("mean", "std", "min", "max", "below_0_1", "below_0_5") if gates else ():
                writer.put(f"gates/{name}", rng.random(layer_head), **where)
    write_top_and_maps(writer, rng)
    pixels = rng.integers(0, 256, (sizes["pixel_y"] // 16, sizes["pixel_x"] // 16, 3), np.uint8)
    writer.put("images/image", pixels.repeat(16, 0).repeat(16, 1))
    writer.seal()


def write_tokens(writer: SampleWriter) -> np.ndarray:
    """Write the token table: a start token, words, an end token and padding of each encoder. Returns: groups."""
    names = ["clip_bos", *["clip_word"] * len(WORDS), "clip_eos"]
    names += ["clip_pad"] * (CLIP - len(names)) + ["t5_word"] * len(WORDS) + ["t5_eos"]
    names += ["t5_pad"] * (writer.sizes["token"] - len(names))
    words, place = [], {"clip_word": iter(range(len(WORDS))), "t5_word": iter(range(len(WORDS)))}
    words = [next(place[name]) if name in place else -1 for name in names]
    group = np.array([schema.GROUPS.index(name) for name in names])
    text = [WORDS[word] if word >= 0 else f"<{name}>" for name, word in zip(names, words, strict=True)]
    starts = [sum(len(one) + 1 for one in WORDS[:word]) if word >= 0 else -1 for word in words]
    ends = [start + len(WORDS[word]) if word >= 0 else -1 for start, word in zip(starts, words, strict=True)]
    table = {"token_text": np.array(text, object), "token_group": group, "token_word": np.array(words),
             "token_char_start": np.array(starts), "token_char_end": np.array(ends)}  # fmt: skip
    branches = writer.sizes["branch"]
    for name, column in table.items():
        writer.put(f"tokens/{name}", np.stack([column] * branches))
    ids = np.arange(len(names))
    writer.put("tokens/token_id", np.tile(ids, (branches, len(schema.ENCODERS), 1)))
    return group


def write_top_and_maps(writer: SampleWriter, rng: np.random.Generator) -> None:
    """Write the heaviest keys and the maps of the cond branch."""
    sizes = writer.sizes
    shape = (sizes["layer"], sizes["head"], sizes["rank"])
    for query, step in np.ndindex(2, sizes["top_step"]):
        where = {"branch": 0, "query": query, "top_step": step}
        stream = rng.integers(0, 2, shape)
        patches = 4 * sizes["y"] * sizes["x"]  # maps are pooled two by two
        index = np.where(stream == 1, rng.integers(0, sizes["token"], shape), rng.integers(0, patches, shape))
        writer.put("topk/top_stream", stream, **where)
        writer.put("topk/top_index", index, **where)
        writer.put("topk/top_mass", -np.sort(-rng.random(shape) / 10, axis=-1), **where)
        writer.put("topk/top_value_norm", rng.uniform(1, 9, shape), **where)
    writer.put("maps/map_token_index", np.arange(sizes["map_token"]), branch=0)
    for step, token in np.ndindex(sizes["map_step"], sizes["map_token"]):
        maps = rng.lognormal(-6, 0.5, (sizes["layer"], sizes["y"], sizes["x"]))
        writer.put("maps/image_to_text", maps, branch=0, map_step=step, map_token=token)


# ---- the server and the browser ----------------------------------------------------------------------------


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Run the dashboard as a person would. Yields: its address, its process, seconds until it answered."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "dashboard/app.py", "--server.port", str(port), "--"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - begin > 60:
                    raise RuntimeError("the dashboard did not start") from None
                time.sleep(0.02)
        yield f"http://localhost:{port}", process.pid, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait(timeout=20)


def first_chart(browser, address: str) -> tuple[object, float]:
    """Open Sinks in a new context. Returns: the page, and seconds until the first chart has its cells."""
    page = browser.new_context(viewport={"width": 1280, "height": 1400}).new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(WATCH)
    begin = time.perf_counter()
    page.goto(f"{address}/sinks", wait_until="commit")
    page.locator(CELL).first.wait_for(state="attached")
    seconds = time.perf_counter() - begin
    settle(page)
    return page, seconds


def settle(page) -> None:
    """Wait until something was sent, the script has ended, and no chart was drawn for a second."""
    page.wait_for_function("() => window.got.length > 0", polling=20)
    ended = "document.querySelector('[data-testid=stApp]').dataset.testScriptState !== 'running'"
    still = f"() => {ended} && performance.now() - Math.max(window.drawn, ...window.got.map(one => one[0])) > 1000"
    page.wait_for_function(still, polling=100)


@dataclass
class Seen:
    """What one change took: milliseconds on the server and to pixels; bytes of each chart that was sent."""

    server: float = 0.0
    pixels: float = 0.0
    charts: list[int] = field(default_factory=list)


def seen(page) -> Seen:
    """Read what the socket and the charts did since the last reading."""
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    told = page.evaluate(TAKE)
    found = Seen()
    ends = []
    for at, data in told["got"]:
        message = ForwardMsg()
        message.ParseFromString(base64.b64decode(data))
        if message.WhichOneof("type") == "script_finished":
            ends.append(at)
        element = message.delta.new_element
        if element.WhichOneof("type") == "vega_lite_chart":
            found.charts.append(element.vega_lite_chart.ByteSize())
    if told["sent"] and ends:
        found.server = ends[-1] - told["sent"][0]
        found.pixels = max(0.0, told["drawn"] - told["pressed"])  # 0: no chart had to change
    return found


def changes(page) -> Iterator[str]:
    """Change one filter at a time; yields its name when the change is under way."""
    for name in ("Steps", "Layers", "Heads"):
        slider = (
            page.locator("[data-testid=stSlider]")
            .filter(has_text=name)
            .locator("[role=slider], input[type=range]")
            .first
        )
        for key in ("ArrowRight", "ArrowLeft"):
            slider.press(key)
            yield f"{name} {key}"
    for branch in ("uncond", "cond"):
        page.get_by_role("radio", name=branch, exact=True).or_(
            page.get_by_role("button", name=branch, exact=True)
        ).first.click()
        yield f"branch {branch}"
    for key in ("ArrowDown", "ArrowUp"):
        metric = page.locator("[data-testid=stSelectbox]").filter(has_text="Metric").locator("input")
        metric.click()
        metric.press(key)
        metric.press("Enter")
        yield f"metric {key}"
    for layer, head in ((5, 3), (20, 11)):
        page.locator(f'{CELL}[aria-label^="layer: {layer}; head: {head};"]').first.click()
        yield f"cell {layer}, {head}"


def peak_mb(process: int) -> float:
    """Largest resident memory of a process, in MB (10^6 bytes)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def children(process: int) -> list[int]:
    """The processes that a process started and that still run: the readers."""
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def measure(folder: Path, runs: int, rounds: int) -> dict[str, object]:
    """Open, change and weigh the dashboard. Returns: every measured value by name."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list] = {
        "start_s": [],
        "cold_s": [],
        "warm_s": [],
        "changes": [],
        "pages": [],
        "payload_bytes": [],
    }
    with sync_playwright() as playwright:
        for run in range(runs):
            with server(folder) as (address, process, start), _browser(playwright) as browser:
                found["start_s"].append(start)
                _, seconds = first_chart(browser, address)
                found["cold_s"].append(seconds)
                with _browser(playwright) as other:
                    page, seconds = first_chart(other, address)
                    found["warm_s"].append(seconds)
                    found["payload_bytes"] += seen(page).charts
                    for _ in range(rounds):
                        for name in changes(page):
                            settle(page)
                            one = seen(page)
                            found["payload_bytes"] += one.charts
                            if one.server:
                                found["changes"].append([name, one.server, one.pixels])
                    for name in PAGES:
                        page.get_by_role("link", name=name, exact=True).click()
                        settle(page)
                        found["payload_bytes"] += (charts := seen(page).charts)
                        found["pages"].append([name, len(charts), max(charts, default=0)])
                found.setdefault("server_mb", []).append(peak_mb(process))
                found.setdefault("readers_mb", []).append(sum(map(peak_mb, children(process))))
            print(f"run {run + 1} of {runs}", file=sys.stderr)
    return found


@contextmanager
def _browser(playwright) -> Iterator[object]:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    try:
        yield browser
    finally:
        browser.close()


# ---- what is told ------------------------------------------------------------------------------------------


def summary(found: dict[str, list]) -> dict[str, float]:
    """The numbers of LIMITS: medians of first charts, percentiles of changes, the largest of sizes."""
    server, pixels = ([one[place] for one in found["changes"] if one[place]] for place in (1, 2))
    return {
        "warm_s": float(np.median(found["warm_s"])),
        "cold_s": float(np.median(found["cold_s"])),
        "server_p95_ms": float(np.percentile(server, 95)),
        "pixels_p95_ms": float(np.percentile(pixels, 95)),
        "server_mb": max(found["server_mb"]),
        "payload_kb": max(found["payload_bytes"]) / 1e3,
    }


def table(told: dict[str, float], found: dict[str, list], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = ["# What the dashboard costs", "", "| what | measured | asked for |", "| --- | --- | --- |"]
    for name, (limit, unit, what) in LIMITS.items():
        lines.append(f"| {what} | **{told[name]:.3g} {unit}** | ≤ {limit:g} {unit} |")
    lines += [
        "",
        f"{facts['samples']} samples × 2 runs of 38 layers × 38 heads × 28 steps × 333 tokens, "
        f"{facts['bytes'] / 1e9:.2f} GB; page Sinks at 1280 pixels; {facts['runs']} servers, "
        f"{len(found['changes'])} changes of steps, layers, heads, metric, branch and cell; "
        f"then every other page once, {sum(count for _, count, _ in found['pages'])} charts. "
        f"The server answered after {np.median(found['start_s']):.1f} s; its readers held "
        f"{max(found['readers_mb']):.0f} MB together.",
        f"{facts['cpu']}, {facts['cores']} cores, load before the runs {facts['load_before']:.2f}; "
        f"{facts['system']}, {', '.join(f'{name} {number}' for name, number in facts['versions'].items())}. "
        f"{facts['date']}.",
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
    parser.add_argument("--folder", type=Path, default=None, help="where the store is made")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for dashboard.md and dashboard.json"
    )
    asked = parser.parse_args()
    if min(asked.samples, asked.runs, asked.rounds) < 1:
        parser.error("--samples, --runs and --rounds are 1 or more")
    if asked.folder is not None and not asked.folder.is_dir():
        parser.error(f"--folder {asked.folder}: there is no such folder")
    if shutil.which("chromium") is None:
        parser.error("it needs Debian's chromium: apt install chromium")
    facts = machine(("streamlit", "altair", "h5py", "numpy"), 3)
    facts |= {"samples": asked.samples, "runs": asked.runs}
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="sd35h5-dashboard-") as temporary:
        made = [
            make_run(Path(temporary) / f"{name}.h5", asked.samples, seed, gates=seed == 1)
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
