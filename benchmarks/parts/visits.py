"""The dashboard's server and a browser that visits it: first charts, changes of filters, what was sent and drawn."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
CELLS = ((5, 3), (20, 11))  # layer, head: clicked in turn
MAP = "canvas[data-plot=map][data-area]"  # the linked figure's first heatmap, once it has its size


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
    page.locator(MAP).first.wait_for(state="attached")
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
    """What one change took: milliseconds to pixels, 0 where no chart had to change; bytes of each chart sent."""

    pixels: float = 0.0
    charts: list[int] = field(default_factory=list)


def seen(page) -> Seen:
    """Read what the socket and the charts did since the last reading."""
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    told = page.evaluate(TAKE)
    found = Seen()
    if told["sent"]:
        found.pixels = max(0.0, told["drawn"] - told["pressed"])
    for _, data in told["got"]:
        message = ForwardMsg()
        message.ParseFromString(base64.b64decode(data))
        element = message.delta.new_element
        if element.WhichOneof("type") in ("vega_lite_chart", "bidi_component"):
            found.charts.append(getattr(element, element.WhichOneof("type")).ByteSize())
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
    for layer, head in CELLS:
        page.mouse.click(*cell_place(page.locator(MAP).first, layer, head))
        yield f"cell {layer}, {head}"


def cell_place(canvas, layer: int, head: int) -> tuple[float, float]:
    """Return the middle of a cell of a heatmap on the page, by what its canvas says of itself."""
    left, top, width, height = map(float, canvas.get_attribute("data-area").split())
    first, last, up, down = map(int, canvas.get_attribute("data-window").split())
    box = canvas.bounding_box()
    across, below = (layer - first + 0.5) / (last - first + 1), (head - up + 0.5) / (down - up + 1)
    return box["x"] + left + across * width, box["y"] + top + below * height


def peak_mb(process: int) -> float:
    """Largest resident memory of a process, in MB (10^6 bytes)."""
    return _told_mb(process, "VmHWM")


def held_mb(process: int) -> float:
    """Resident memory of a process now, in MB."""
    return _told_mb(process, "VmRSS")


def _told_mb(process: int, what: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e6


def children(process: int) -> list[int]:
    """The processes that a process started and that still run: the readers."""
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@contextmanager
def browser(playwright) -> Iterator[object]:
    """Start Debian's chromium."""
    chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    try:
        yield chromium
    finally:
        chromium.close()
