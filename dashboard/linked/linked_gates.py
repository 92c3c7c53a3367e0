"""The linked figure of gates: the mean gate of each run's streams, with a sign on dead and open heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from dashboard import cached_metrics, cached_reads, panels
from dashboard.caching import cached
from dashboard.choosing.selection import View
from dashboard.linked import linked_bands, linked_component
from sd35h5 import metrics
from sd35h5.figures import scales
from sd35h5.figures.gate_charts import SIGNS
from sd35h5.figures.linked_view import linked_figure
from sd35h5.figures.linked_view.linked_figure import Panel
from sd35h5.metrics import gate_statistics
from sd35h5.store.showable import showable

DASHES = {"image": (), "text": (7, 4), "attn2": (2, 3)}


@dataclass(frozen=True)
class Stream:
    """One stream of a gated run: its mean gate over the samples, float32 (step, layer, head), and its lines' colour."""

    run: cached_reads.Run
    samples: tuple[int, ...]
    query: str
    values: xr.DataArray
    color: str

    @property
    def name(self) -> str:
        """What its panel is called."""
        return f"{showable(self.run.name)} · {self.query} queries"


def streams(view: View, run: cached_reads.Run, samples: tuple[int, ...]) -> list[Stream]:
    """Return the streams of a run on which there is a gate at all."""
    runs = (view.run, *view.others)
    color = scales.RUN_COLORS[runs.index(run) % len(scales.RUN_COLORS)]
    found = []
    for query in gate_statistics.gated_streams(cached_reads.store(run)):
        values = _mean_gate(run, view.branch, query, samples)
        if np.isfinite(values.values).any():
            found.append(Stream(run, samples, query, values, color))
    return found


@cached("Reading …")
def _mean_gate(run: cached_reads.Run, branch: str, query: str, samples: tuple[int, ...]) -> xr.DataArray:
    """Return the mean gate over these samples: float32 (step, layer, head)."""
    values = cached_metrics.mean_gate(run, branch, query, samples)
    return metrics.finite_mean(values, ["sample"]).astype(np.float32)


def of_equal_shape(found: list[Stream]) -> Iterator[list[Stream]]:
    """Yield the streams that can share a figure: an attn2 may have heads of its own."""
    shapes = [tuple(tuple(one.values[dim].values.tolist()) for dim in ("layer", "head")) for one in found]
    for shape in dict.fromkeys(shapes):
        yield [one for one, its in zip(found, shapes, strict=True) if its == shape]


def draw(view: View, found: list[Stream], top: float, name: str) -> None:
    """Draw the figure of some streams on one scale, from 0 to `top`."""
    label = f"mean gate (0 closed … {top:g} open)"
    sizes = cached_reads.store(view.run).sizes
    tells = panels.chooses_joint_heads() and found[0].values.sizes["head"] == sizes["head"]
    shown, added = [], {}
    for one in found:
        prompts = cached_reads.prompt_ids(one.run, one.samples)
        read = cached_metrics.mean_gate(one.run, view.branch, one.query, one.samples)
        lines = linked_bands.by_prompt(read, prompts)
        shown.append(Panel(one.name, one.values, lines, color=one.color, dash=DASHES[one.query]))
        bands = linked_bands.bands(view, read, prompts) if tells else {}
        added[one.name] = linked_figure.extras(bands, _marks(view, one))
    with linked_component.place():
        chosen = linked_component.draw(
            view, name, shown, label, title="mean gate", histogram="linear", tells=tells,
            color_scales={"values": linked_figure.value_scale(label, (0.0, top))},
        )  # fmt: skip
        linked_component.add(name, chosen, added)


def _marks(view: View, one: Stream) -> pd.DataFrame:
    """Return a sign for every dead and open head over the chosen steps."""
    table = cached_metrics.gate_heads(one.run, view.branch, one.query, one.samples, view.steps)
    marked = table[table["state"].isin(SIGNS)]
    return marked[["layer", "head"]].assign(sign=marked["state"].map(SIGNS), means=marked["state"])
