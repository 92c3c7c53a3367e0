"""The linked view on a page of its own, without Streamlit, for tests in a browser; and what it tells there."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import xarray as xr

from sd35h5.figures.linked_view import linked_figure


def made_cube(
    layers=(0, 1, 2, 4, 5), heads=(0, 1, 2), steps=(0, 1, 2, 3, 4, 5), seed: int = 0
) -> xr.DataArray:
    """Return masses by true indices: layer 3 is missing, and one cell was not measured."""
    random = np.random.default_rng(seed)
    values = np.exp(random.normal(-5, 1, (len(steps), len(layers), len(heads)))).astype(np.float32)
    values[:, 1, -1] = np.nan
    noise = np.linspace(1, 0.1, len(steps))
    return xr.DataArray(
        values,
        dims=("step", "layer", "head"),
        coords={
            "step": list(steps), "layer": list(layers), "head": list(heads),
            "sigma": ("step", noise), "timestep": ("step", 1000 * noise),
        },
    )  # fmt: skip


def write_page(path: Path, panels: list[linked_figure.Panel], rest: int = 50, **more) -> Path:
    """Write a page with a linked view of these panels; `view` is its handle, `told` what it told its host."""
    data = linked_figure.packed(
        *linked_figure.payload(panels, "attention mass (0..1)", title="attention mass", **more)
    )
    path.write_text(
        f"""<!doctype html><meta charset="utf-8"><title>linked view</title>
<style>body {{ margin: 16px; background: Canvas; color-scheme: light dark }} {linked_figure.style()}</style>
<div id="here"></div><script type="module">{linked_figure.script()}
const bytes = Uint8Array.from(atob("{base64.b64encode(data).decode()}"), letter => letter.charCodeAt(0));
window.told = [];
window.options = {{...unpacked(bytes), rest: {rest}, onChange: selection => window.told.push(selection)}};
window.view = linkedView(document.getElementById("here"), window.options);
</script>""",
        encoding="utf-8",
    )
    return path


def place_of(canvas, layer: int, head: int) -> tuple[float, float]:
    """Return the middle of a cell of a heatmap on the page, by what its canvas says of itself."""
    left, top, width, height = map(float, canvas.get_attribute("data-area").split())
    first, last, up, down = map(int, canvas.get_attribute("data-window").split())
    box = canvas.bounding_box()
    across, wide = (layer - first + 0.5) / (last - first + 1), (head - up + 0.5) / (down - up + 1)
    return box["x"] + left + across * width, box["y"] + top + wide * height


def along(canvas, part: float, down: float = 0.5) -> tuple[float, float]:
    """Return a point of a plot's area on the page: parts of its width and height."""
    left, top, width, height = map(float, canvas.get_attribute("data-area").split())
    box = canvas.bounding_box()
    return box["x"] + left + part * width, box["y"] + top + down * height


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Press, move and release as a hand would."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=5)
    page.mouse.move(*end, steps=5)
    page.mouse.up()


def told(page) -> str:
    """Return the line that the figure tells, once it has painted."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".lv-told").first.inner_text()


def number(text: str) -> float:
    """Return the number that the figure tells so."""
    return float(text.replace("−", "-"))


def values_told(line: str) -> list[float]:
    """Return the numbers of a told line that are values: neither places nor multiples of uniform."""
    line = re.sub(r"(layer|head|step)s? [\d–]+", "", line)
    line = re.sub(r"[\d.e-]+ × uniform", "", line)
    return [number(one) for one in re.findall(r"(?<= )−?\d[\d.]*(?:e-?\d+)?(?= |$)", line)]
