"""The linked figure as a Streamlit component: its numbers in one message that changes when they do, what is chosen and
what is made for that in small ones, and what the hand chose, once it rests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import cached_reads
from dashboard.choosing import address, clicks
from dashboard.choosing.selection import View
from sd35h5.figures.linked_view import linked_figure
from sd35h5.figures.linked_view.linked_figure import Panel
from sd35h5.reports import view_address

HERE = Path(__file__).parent
X_AXES = ("step", "timestep", "sigma")

_numbers = st.components.v2.component(
    "sd35h5.linked_numbers",
    css=linked_figure.style(),
    js=linked_figure.script() + (HERE / "numbers_component.js").read_text(encoding="utf-8"),
)
_said = st.components.v2.component(
    "sd35h5.linked_said", js=(HERE / "said_component.js").read_text(encoding="utf-8")
)


def x_axis() -> str:
    """Return the x axis of curves that is chosen in linked figures, or that the URL asks for."""
    address.begin("x", view_address.X_AXIS, "step", address.one_of(X_AXES))
    return st.session_state["x"]


def place() -> DeltaGenerator:
    """Return a container for a figure and for what is said to it, which takes no room."""
    return st.container(gap=None)


def draw(
    view: View,
    name: str,
    panels: Sequence[Panel],
    label: str,
    *,
    title: str = "",
    color_scales: Mapping[str, Mapping[str, object]] | None = None,
    histogram: str = "log",
    notes: Mapping[str, str] | None = None,
    tells: bool = True,
) -> dict[str, object]:
    """Draw a linked figure and say what is chosen in it, within `place`. Returns: what that is, for `add`.

    Args: name: one of this page, the same on each run of its script; tells: whether what is chosen in it is chosen for
        all charts (its heads are the sidebar's); others as in `linked_figure.payload`.
    """
    facts, numbers = linked_figure.payload(
        panels, label, title=title, color_scales=color_scales, histogram=histogram, notes=notes
    )
    layers, heads = (facts["panels"][0][name] for name in ("layers", "heads"))
    chosen = selection(view, layers, heads, tells)
    key = f"linked-{name}"
    _numbers(
        key=key,
        data=linked_figure.packed({**facts, "name": name, "tells": tells}, numbers),
        on_rested_change=partial(_remember, key),
    )
    _said(key=f"{key}-said", data={"name": name, "said": {"selection": chosen}})
    address.write(view_address.X_AXIS, x_axis(), "step")
    return chosen


def add(name: str, chosen: Mapping[str, object], panels: Mapping[str, Mapping[str, object]]) -> None:
    """Add bands and marks to the panels of a figure: they hold for what was chosen when it was drawn.

    Args: chosen: of `draw`; panels: of panels by their names, what `linked_figure.extras` gives.
    """
    said = {"extras": {"of": dict(chosen), "panels": dict(panels)}}
    _said(key=f"linked-{name}-extras", data={"name": name, "said": said})


def selection(view: View, layers: list[int], heads: list[int], tells: bool = True) -> dict[str, object]:
    """Return what the view chooses as linked_view.js takes it: by true indices, of which these lists hold all.

    Args: tells: whether the figure's heads are the sidebar's.
    """
    steps = cached_reads.store(view.run).numbers("step")
    return {
        "pinned": list(view.cell) if tells and view.cell is not None else None,
        "layers": _range(view.layers, layers),
        "heads": _range(view.heads, heads) if tells else None,
        "steps": _range(view.steps, steps),
        "step": None,
        "x": x_axis(),
        "zoom": None,
    }


def _range(chosen: Sequence[int], known: Sequence[int]) -> list[int] | None:
    """Return the first and last of chosen indices, None where they are all."""
    return None if len(chosen) == len(known) else [chosen[0], chosen[-1]]


def _remember(key: str) -> None:
    """Keep what was pinned and brushed in the figure with that key for all pages."""
    told = st.session_state[key].get("rested")
    if told:
        clicks.remember_linked(dict(told))
