"""The one sidebar that all pages share: it returns a View, what the pages show."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st
import xarray as xr

from dashboard import data
from sd35h5.analysis import metrics
from sd35h5.store.schema import GROUPS

METRIC_NAMES = {
    "first_token_mean": "mass (0..1)",
    "first_token_share": "× average text token",
    "text_mass_fraction": "fraction of text mass (0..1)",
}


@dataclass(frozen=True)
class View:
    """What is chosen: everything a page needs to draw. Positions are 0-based; ranges hold every chosen
    position."""

    run: data.Run
    others: tuple[data.Run, ...]
    samples: tuple[int, ...]
    sample: int
    branch: str
    target: metrics.Target
    metric: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    steps: tuple[int, ...]
    cell: tuple[int, int] | None

    @property
    def label(self) -> str:
        """What the metric is, with its unit."""
        return metrics.LABELS[self.metric]

    def within(self, values: xr.DataArray) -> xr.DataArray:
        """Return the values of the chosen layers, heads and steps."""
        chosen = {"layer": self.layers, "head": self.heads, "step": self.steps}
        return values.isel({dim: list(places) for dim, places in chosen.items()})

    def at_cell(self, values: xr.DataArray) -> xr.DataArray:
        """Return the values of the clicked cell, or of all chosen layers and heads when none is."""
        if self.cell is None:
            return self.within(values)
        return values.isel(layer=[self.cell[0]], head=[self.cell[1]], step=list(self.steps))


def choose(runs: tuple[data.Run, ...]) -> View | None:
    """Draw the sidebar and return what is chosen; None when there is no run."""
    if not runs:
        return None
    with st.sidebar:
        by_name = {run.name: run for run in runs}
        first = next((name for name in by_name if "baseline" in name), runs[0].name)
        run = by_name[st.selectbox("Run", list(by_name), index=list(by_name).index(first), key="run")]
        rest = [name for name in by_name if name != run.name]
        others = (
            st.multiselect(
                "Compare with",
                rest,
                default=_comparable(run, by_name, rest),
                key=f"others-{run.name}",
                help="shown beside the run on Overview, Maps and Compare",
            )
            if rest
            else []
        )
        with data.sentence(run):
            return _choose_within(run, tuple(by_name[name] for name in others))
    return None


def _comparable(run: data.Run, by_name: dict[str, data.Run], rest: list[str]) -> list[str]:
    """Return the runs that pair with this one, at most three: a fresh start shows them side by side."""
    paired = []
    for name in rest:
        with data.sentence(run, by_name[name]):
            if len(data.pairing(run, by_name[name]).pairs):
                paired.append(name)
    return paired[:3]


def _choose_within(run: data.Run, others: tuple[data.Run, ...]) -> View:
    opened = data.store(run)
    table = data.samples(run)
    names = {row["sample"]: f"{row['sample']} · {row['prompt']}" for row in table.to_dict("records")}
    chosen = st.multiselect(
        "Samples",
        list(names),
        format_func=names.get,
        key=f"samples-{run.name}",
        placeholder="all samples",
        help="numbers are means over these; none chosen means all",
    ) or list(names)
    sample = st.selectbox(
        "Shown sample",
        chosen,
        format_func=names.get,
        key=f"sample-{run.name}",
        help="whose tokens and maps are shown: they belong to one prompt",
    )
    branches = list(opened.labels("branch"))
    branch = (
        st.segmented_control("Branch", branches, default=branches[0], key=f"branch-{run.name}") or branches[0]
    )
    target = _choose_target(run, tuple(chosen), sample, branch)
    allowed = [
        name
        for name in METRIC_NAMES
        if target != metrics.Target("group", "image") or name == "first_token_mean"
    ]
    metric = st.selectbox("Metric", allowed, format_func=METRIC_NAMES.get, key=f"metric-{len(allowed)}")
    ranges = [_choose_range(name, opened.sizes[name]) for name in ("layer", "head", "step")]
    cell = st.session_state.get("cell")
    if cell is not None and (cell[0] not in ranges[0] or cell[1] not in ranges[1]):
        cell = None
    if cell is not None:
        st.button(
            f"layer {cell[0]}, head {cell[1]}",
            icon=":material/close:",
            on_click=forget_cell,
            width="stretch",
            help="the clicked cell filters the charts: press to see all layers and heads again",
        )
    return View(run, others, tuple(chosen), sample, branch, target, metric, *ranges, cell)


def _choose_target(run: data.Run, chosen: tuple[int, ...], sample: int, branch: str) -> metrics.Target:
    """Offer the first token, the groups that are there, words by their string, and the shown sample's
    tokens."""
    table = data.tokens(run, sample, branch)
    there = set(table["group"])
    options = {"first token (clip_bos)": metrics.FIRST_TOKEN}
    options |= {
        f"group {name}": metrics.Target("group", name) for name in GROUPS if name in there or name == "image"
    }
    words: dict[str, None] = {}
    for place in chosen[:100]:
        words |= dict.fromkeys(word for word in data.tokens(run, place, branch)["word_text"] if word)
    options |= {f"word “{word}”": metrics.Target("word", word) for word in words}
    if len(chosen) == 1:
        shown = table[~table["group"].isin(["clip_bos", "clip_pad", "t5_pad", "t5_absent"])]
        for row in shown.to_dict("records"):
            text = metrics.clean(row["text"]) or row["text"]
            options[f"token {row['token']}: {text} ({row['encoder']})"] = metrics.Target(
                "token", int(row["token"])
            )
    name = st.selectbox("Token or group", list(options), key=f"target-{run.name}-{branch}")
    return options[name]


def _choose_range(name: str, size: int) -> tuple[int, ...]:
    if size == 1:
        return (0,)
    low, high = st.slider(f"{name.capitalize()}s", 0, size - 1, (0, size - 1), key=f"{name}s-{size}")
    return tuple(range(low, high + 1))


def forget_cell() -> None:
    """Forget the clicked cell, and start the charts anew so that they forget it too."""
    st.session_state["cell"] = None
    st.session_state["cell_charts"] = st.session_state.get("cell_charts", 0) + 1


def chart_key(name: str) -> str:
    """Return the key of a chart whose cells can be clicked."""
    return f"{name}-{st.session_state.get('cell_charts', 0)}"


def remember_cell(key: str) -> None:
    """Keep the clicked cell of the chart with that key for all pages; a double click forgets it."""
    cells = st.session_state[key]["selection"].get("cell") or []
    st.session_state["cell"] = (int(cells[0]["layer"]), int(cells[0]["head"])) if cells else None
