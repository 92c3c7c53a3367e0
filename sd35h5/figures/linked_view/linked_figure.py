"""What the linked view is given, from Python: panels as facts and bytes, and its script and style as text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.figures import scales

HERE = Path(__file__).parent
#: the modules of linked_view.js, each after those that it imports
MODULES = (
    "cube", "axes", "drawing", "model", "gestures", "page", "plots", "lines", "telling", "linked_view",
)  # fmt: skip
DIMS = ("step", "layer", "head")
MARKS = ("layer", "head", "sign", "means")
#: "chosen" or "pinned" -> "curve" or "profile" -> low, high
Bands = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]


@dataclass(frozen=True)
class Panel:
    """One heatmap of a linked view, with its lines.

    Args:
        name: what it is called: text of a file as `showable` gives it.
        values: an array over step, layer and head, with true indices as coordinates where it has some and timestep and
            sigma beside step; or a table with the columns step, layer, head, value. NaN is what was not measured.
        lines: the same numbers where samples are weighed otherwise in curve and profile; `values` when None.
        scale: name of its colour scale; curves: whether it has lines in curve, profile and histogram.
        color, dash: of its lines.
        uniform: what uniform attention would give, None where that says nothing.
        marks: a row a marked cell: layer, head, sign, means; true indices.
        bands: {"chosen" | "pinned": {"curve" | "profile": (low, high)}}, of the selection that goes along.
    """

    name: str
    values: xr.DataArray | pd.DataFrame
    lines: xr.DataArray | None = None
    scale: str = "values"
    curves: bool = True
    color: str = scales.RUN_COLORS[0]
    dash: tuple[int, ...] = ()
    uniform: float | None = None
    marks: pd.DataFrame | None = None
    bands: Bands = field(default_factory=dict)


def value_scale(label: str, domain: tuple[float, float] | None = None) -> dict[str, object]:
    """Return the colour scale of a quantity: between these ends, or from 0 to the largest that is shown."""
    return {
        "colors": list(scales.SEQUENTIAL),
        "domain": domain and list(domain),
        "symmetric": False,
        "label": label,
    }


def difference_scale(label: str) -> dict[str, object]:
    """Return the colour scale of differences: purple below 0, orange above, as wide as the largest that is shown."""
    return {"colors": list(scales.DIVERGING), "domain": None, "symmetric": True, "label": label}


def payload(
    panels: Sequence[Panel],
    label: str,
    *,
    title: str = "",
    color_scales: Mapping[str, Mapping[str, object]] | None = None,
    selection: Mapping[str, object] | None = None,
    histogram: str = "log",
    titles: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> tuple[dict[str, object], bytes]:
    """Return a linked view's facts, to be sent as JSON, and its numbers: little-endian float32, each panel step-major.

    Args: label: what the numbers are, with their unit; title: without it; the others as in linked_view.js.
    """
    numbers: list[np.ndarray] = []
    facts = {
        "title": title or label,
        "label": label,
        "panels": [_panel(one, numbers) for one in panels],
        "scales": dict(color_scales or {"values": value_scale(label)}),
        "selection": dict(selection or {}),
        "histogram": histogram,
        "titles": dict(titles or {}),
        "notes": dict(notes or {}),
    }
    return facts, b"".join(one.tobytes() for one in numbers)


def extras(bands: Bands | None = None, marks: pd.DataFrame | None = None) -> dict[str, object]:
    """Return a panel's bands and marks as its facts hold them: both follow from what is chosen, and may come later."""
    return {
        "marks": [] if marks is None else marks[list(MARKS)].to_dict("records"),
        "bands": {
            whose: {name: [_finite(side) for side in ends] for name, ends in each.items()}
            for whose, each in (bands or {}).items()
        },
    }


def packed(facts: Mapping[str, object], numbers: bytes) -> bytes:
    """Return facts and numbers in one: the length of the JSON as uint32, the JSON, the numbers."""
    text = json.dumps(facts, allow_nan=False).encode()
    return len(text).to_bytes(4, "little") + text + numbers


def read_packed(data: bytes) -> tuple[dict[str, object], np.ndarray]:
    """Return the facts and all numbers, float32, of what `packed` gave."""
    end = 4 + int.from_bytes(data[:4], "little")
    return json.loads(data[4:end]), np.frombuffer(data[end:], "<f4")


def script() -> str:
    """Return the whole linked view as the text of one ES module: what its modules import stands above each."""
    texts = [(HERE / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    return "\n".join(
        re.sub(r'^(im|ex)port \{[^}]*\} from "\./\w+\.js";\n', "", one, flags=re.M) for one in texts
    )


def style() -> str:
    """Return the linked view's stylesheet."""
    return (HERE / "linked_view.css").read_text(encoding="utf-8")


def cube(values: xr.DataArray | pd.DataFrame) -> xr.DataArray:
    """Return the numbers as an array (step, layer, head) with true indices, from a table too."""
    if isinstance(values, pd.DataFrame):
        values = values.set_index(list(DIMS))["value"].sort_index().to_xarray()
    values = values.transpose(*DIMS)
    missing = [dim for dim in DIMS if dim not in values.coords]
    return values.assign_coords({dim: range(values.sizes[dim]) for dim in missing})


def _panel(panel: Panel, numbers: list[np.ndarray]) -> dict[str, object]:
    """Return a panel's facts, and put its numbers behind those that are there."""
    values = cube(panel.values)
    facts: dict[str, object] = {
        "name": panel.name,
        "at": _put(values, numbers),
        **{f"{dim}s": values[dim].values.astype(int).tolist() for dim in DIMS},
        "timesteps": _along_steps(values, "timestep"),
        "sigmas": _along_steps(values, "sigma"),
        "scale": panel.scale,
        "curves": panel.curves,
        "color": panel.color,
        "dash": list(panel.dash),
        "uniform": panel.uniform,
        **extras(panel.bands, panel.marks),
    }
    if panel.lines is not None:
        facts["lines_at"] = _put(cube(panel.lines), numbers)
    return facts


def _put(values: xr.DataArray, numbers: list[np.ndarray]) -> int:
    at = sum(one.size for one in numbers)
    numbers.append(np.ascontiguousarray(values.values, "<f4"))
    return at


def _along_steps(values: xr.DataArray, name: str) -> list[float] | None:
    if name not in values.coords or not np.isfinite(values[name].values).all():
        return None
    return values[name].values.astype(float).tolist()


def _finite(values: Sequence[float]) -> list[float | None]:
    """Return the numbers for JSON, which knows no NaN."""
    return [float(one) if np.isfinite(one) else None for one in values]
