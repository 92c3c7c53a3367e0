"""What is chosen on all pages, as one value: runs, samples, branch, token, metric, ranges and the clicked cell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import xarray as xr

from dashboard import cached_reads
from sd35h5 import metrics
from sd35h5.metrics import averaging
from sd35h5.metrics.catalogue import MEASURES


@dataclass(frozen=True)
class View:
    """What is chosen: everything a page needs to draw. Layers, heads and steps are told by their true indices, of which
    a slice holds some; samples by their position. Heads and the cell's head are of the metric: an attn2 in sd-scripts'
    layout has others (`head_axis`) than the joint attention."""

    run: cached_reads.Run
    others: tuple[cached_reads.Run, ...]
    samples: tuple[int, ...]
    sample: int
    branch: str
    target: metrics.Target
    metric: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    steps: tuple[int, ...]
    cell: tuple[int, int] | None
    head_axis: str = "head"

    @property
    def of_joint(self) -> View:
        """The choice for numbers of the joint attention: all of its heads where others are chosen."""
        if self.head_axis == "head":
            return self
        heads = cached_reads.store(self.run).numbers("head")
        return replace(self, heads=heads, cell=None, head_axis="head")

    @property
    def label(self) -> str:
        """What the metric is, with its unit."""
        return metrics.LABELS.get(self.metric, MEASURES[self.metric].label)

    @property
    def looked_at(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Layers and heads of the numbers: the clicked cell's, or all chosen ones when none is."""
        return (self.layers, self.heads) if self.cell is None else ((self.cell[0],), (self.cell[1],))

    def within(self, values: xr.DataArray) -> xr.DataArray:
        """Return the values of the chosen layers, heads and steps."""
        return averaging.within(values, self.layers, self.heads, self.steps)

    def at_cell(self, values: xr.DataArray) -> xr.DataArray:
        """Return the values of the clicked cell, or of all chosen layers and heads when none is."""
        return averaging.within(values, *self.looked_at, self.steps)
