"""Pages of the dashboard by Streamlit's AppTest, and what they show, for tests."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import xarray as xr
from streamlit.testing.v1 import AppTest

from sd35h5.figures.linked_view import linked_figure

ROOT = Path(__file__).resolve().parents[2]


def open_page(
    monkeypatch, *paths: Path, page: str = "overview", url: dict[str, str] | None = None, **state
) -> AppTest:
    """Start the dashboard with these paths on one of its pages, with a URL's query and a session's state."""
    monkeypatch.setattr(sys, "argv", ["app.py", *map(str, paths)])
    test = AppTest.from_file(str(ROOT / "dashboard" / "app.py"), default_timeout=60)
    for name, value in (url or {}).items():
        test.query_params[name] = value
    for name, value in state.items():
        test.session_state[name] = value
    test.switch_page(f"views/{page}.py")
    test.run()
    assert not test.exception, test.exception
    return test


def text_of(test: AppTest) -> str:
    """Return all words of the page."""
    kinds = (test.markdown, test.caption, test.info, test.warning, test.error, test.subheader)
    captions = [image.caption for pictures in test.get("image") for image in pictures.proto.imgs]
    return "\n".join([str(element.value) for kind in kinds for element in kind] + captions)


def frames_of(test: AppTest) -> list[pd.DataFrame]:
    """Return the data of each chart, as the browser gets it."""
    found = []
    for chart in test.get("vega_lite_chart"):
        for dataset in chart.proto.datasets:
            found.append(pa.ipc.open_stream(io.BytesIO(dataset.data.data)).read_pandas())
    return found


def frame_with(test: AppTest, *columns: str) -> pd.DataFrame:
    """Return the data of the first chart that has these columns."""
    return next(frame for frame in frames_of(test) if set(columns) <= set(frame.columns))


@dataclass
class Linked:
    """A linked figure as the browser gets it: panels by name, (step, layer, head), what is chosen, bands and marks."""

    facts: dict
    panels: dict[str, xr.DataArray]
    chosen: dict = field(default_factory=dict)
    extras: dict = field(default_factory=dict)

    def cells(self, name: str | None = None) -> pd.Series:
        """Return the mean over the chosen steps of each chosen cell of a panel, the first one when None."""
        values = self.panels[name or next(iter(self.panels))]
        parts = {
            dim: slice(*self.chosen[f"{dim}s"]) for dim in values.dims if self.chosen[f"{dim}s"] is not None
        }
        mean = values.sel(parts).astype(float).mean("step")
        return mean.transpose("layer", "head").to_series().rename("value").sort_index()


def answers_of(test: AppTest) -> list[list[dict]]:
    """Return the sentences that the page opens with: of each its parts, with their text and what they select."""
    found = []
    for element in test.get("bidi_component"):
        if element.proto.component_name.endswith("answers"):
            found += json.loads(element.proto.json)["sentences"]
    return found


def said_first(test: AppTest) -> list[str]:
    """Return the same as texts."""
    return ["".join(part["text"] for part in parts) for parts in answers_of(test)]


def linked_of(test: AppTest) -> list[Linked]:
    """Return the linked figures of the page."""
    found: dict[str, Linked] = {}
    for element in test.get("bidi_component"):
        if element.proto.component_name.endswith("linked_numbers"):
            facts, numbers = linked_figure.read_packed(element.proto.bytes)
            found[facts["name"]] = Linked(
                facts, {one["name"]: _panel(one, numbers) for one in facts["panels"]}
            )
            continue
        if not element.proto.component_name.endswith("linked_said"):
            continue
        told = json.loads(element.proto.json)
        one = found[told["name"]]
        one.chosen = told["said"].get("selection", one.chosen)
        if "extras" in told["said"]:
            assert told["said"]["extras"]["of"] == one.chosen
            one.extras = told["said"]["extras"]["panels"]
    return list(found.values())


def _panel(facts: dict, numbers: np.ndarray) -> xr.DataArray:
    coords = {dim: facts[f"{dim}s"] for dim in linked_figure.DIMS}
    shape = [len(each) for each in coords.values()]
    values = numbers[facts["at"] : facts["at"] + int(np.prod(shape))].reshape(shape)
    return xr.DataArray(values, dims=linked_figure.DIMS, coords=coords)


def shown_table(test: AppTest, name: str) -> pd.DataFrame:
    """Return the numbers of a figure of the page, as its exports give them."""
    return next(one for one in test.session_state["shown"] if one.name == name).table
