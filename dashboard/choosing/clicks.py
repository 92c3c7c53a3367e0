"""What clicks and brushes in charts choose for all pages: a cell, a token, a sample, a range; and forgetting it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import streamlit as st

from dashboard import cached_reads
from dashboard.choosing import address
from dashboard.choosing.selection import View
from sd35h5 import metrics
from sd35h5.metrics.targets import PADS


def chart_key(name: str) -> str:
    """Return the key of a chart whose cells can be clicked."""
    return f"{name}-{st.session_state.get('cell_charts', 0)}"


def remember_cell(key: str) -> None:
    """Keep what was clicked or brushed in the chart with that key, for all pages: a cell, which a double click
    forgets, or a range of layers and heads."""
    selection = st.session_state[key]["selection"]
    brushed = selection.get("brush") or {}
    if brushed.get("layer") and brushed.get("head"):
        for name in ("layer", "head"):
            _choose_between(f"{name}s", [int(place) for place in brushed[name]])
        _begin_charts_anew()
        return
    cells = selection.get("cell") or []
    st.session_state["cell"] = (int(cells[0]["layer"]), int(cells[0]["head"])) if cells else None


def remember_linked(told: Mapping[str, object]) -> None:
    """Keep what was pinned and brushed in a linked figure for all pages, and its x axis.

    Args: told: a selection as linked_view.js tells it, by true indices.
    """
    pinned = told.get("pinned")
    st.session_state["cell"] = (pinned[0], pinned[1]) if pinned else None
    for name in ("layers", "heads", "steps"):
        ends = told.get(name)
        _choose_between(name, list(_numbers(name) if ends is None else ends))
    st.session_state["x"] = told.get("x") or "step"


def remember_steps(key: str, x: str, places: dict[int, float]) -> None:
    """Keep the steps that were brushed in a curve over x: `places` tells where each step lies on it."""
    brushed = (st.session_state[key]["selection"].get("brush") or {}).get(x)
    if not brushed:
        return
    steps = [step for step, place in places.items() if min(brushed) <= place <= max(brushed)]
    if steps:
        _choose_between("steps", steps)
        _begin_charts_anew()


def remember_range(key: str, along: str) -> None:
    """Keep the layers, or the captured steps, that were brushed in a chart over them."""
    brushed = (st.session_state[key]["selection"].get("brush") or {}).get(along)
    if not brushed:
        return
    first, last = math.ceil(min(brushed)), math.floor(max(brushed))
    if first <= last:
        _choose_between({"layer": "layers", "top_step": "steps"}[along], [first, last])
        _begin_charts_anew()


def remember_region(key: str, keys: tuple[str, str], sizes: tuple[int, int]) -> None:
    """Keep the patches that were brushed in a picture as the first and last of their rows and columns.

    Args: key: of the chart; keys: of the state of rows and columns; sizes: how many there are.
    """
    brushed = st.session_state[key]["selection"].get("brush") or {}
    if not (brushed.get("y0") and brushed.get("x0")):
        return
    for name, field, size in zip(keys, ("y0", "x0"), sizes, strict=True):
        first, last = math.floor(min(brushed[field]) + 0.5), math.ceil(max(brushed[field]) - 0.5)
        first = min(max(first, 0), size - 1)
        st.session_state[name] = (first, min(max(last, first), size - 1))
    _begin_charts_anew()


def remember_choice(key: str, name: str, field: str, state: str) -> None:
    """Put what was clicked in a chart, the `field` of its selection `name`, into the state of a widget."""
    clicked = st.session_state[key]["selection"].get(name) or []
    if clicked:
        st.session_state[state] = int(clicked[0][field])


def remember_token(view: View, key: str, by_word: bool = False) -> None:
    """Make the clicked token, or its word, the token of all pages."""
    clicked = st.session_state[key]["selection"].get("token") or []
    table = cached_reads.tokens(view.run, view.sample, view.branch).set_index("token", drop=False)
    if clicked and int(clicked[0]["token"]) in table.index:
        token = table.loc[int(clicked[0]["token"])].to_dict()
        st.session_state["target"] = target_of(token, by_word or len(view.samples) > 1)


def target_of(token: dict, by_word: bool) -> metrics.Target:
    """Return what a clicked row of `cached_reads.tokens` means: its word or group, or itself."""
    if token["group"] == "clip_bos":
        return metrics.FIRST_TOKEN
    if token["group"] in PADS or (by_word and not token["word_text"]):
        return metrics.Target("group", token["group"])
    if by_word:
        return metrics.Target("word", token["word_text"])
    return metrics.Target("token", int(token["token"]))


def remember_sample(run: cached_reads.Run, key: str) -> None:
    """Make the clicked sample of a run the shown sample of all pages."""
    clicked = st.session_state[key]["selection"].get("sample") or []
    if clicked and int(clicked[0]["sample"]) in st.session_state["view"].samples:
        st.session_state[f"sample-{run.name}"] = int(clicked[0]["sample"])


def choose(selects: Mapping[str, object], page: object = None) -> None:
    """Select what a URL would with these parameters, and open another page: one of the navigation's, by its name.

    The next run of the script reads them as it reads those of a URL: what it has not is told, and not chosen.
    """
    for name, value in selects.items():
        lines = value if isinstance(value, list) else [value]
        if isinstance(name, str) and all(isinstance(line, str) for line in lines):
            st.session_state["address"][name] = "\n".join(lines)[: address.LONGEST]
    st.session_state["page_to_open"] = page
    _begin_charts_anew()


def forget_cell() -> None:
    """Forget the clicked cell, and start the charts anew so that they forget it too."""
    st.session_state["cell"] = None
    _begin_charts_anew()


def choose_everything() -> None:
    """Choose all layers, heads and steps again."""
    for key in [key for key in st.session_state if _is_range(str(key))]:
        del st.session_state[key]
    _begin_charts_anew()


def _is_range(key: str) -> bool:
    name, _, rest = key.partition("-")
    return name in ("layers", "heads", "steps") and rest.replace("-", "").isdigit()


def _begin_charts_anew() -> None:
    st.session_state["cell_charts"] = st.session_state.get("cell_charts", 0) + 1


def range_key(name: str, numbers: tuple[int, ...]) -> str:
    """Return the key of the sidebar's range of layers, heads or steps: another for other indices."""
    cut = "" if numbers == tuple(range(len(numbers))) else f"-{numbers[0]}-{numbers[-1]}"
    return f"{name}s-{len(numbers)}{cut}"


def _numbers(name: str) -> tuple[int, ...]:
    """The true indices of which the sidebar's range of that name chooses."""
    view = st.session_state["view"]
    axis = view.head_axis if name == "heads" else name.removesuffix("s")
    return cached_reads.store(view.run).numbers(axis)


def _choose_between(name: str, places: list[int]) -> None:
    """Set the sidebar's range of that name to hold those of these indices that are there."""
    numbers = _numbers(name)
    inside = [number for number in numbers if min(places) <= number <= max(places)]
    if len(numbers) > 1 and inside:
        st.session_state[range_key(name.removesuffix("s"), numbers)] = (inside[0], inside[-1])
