"""The exports of a view: CSV, PNG, SVG and Python of each figure, and all of them as one self-contained HTML page."""

from __future__ import annotations

import streamlit as st

from dashboard import panels
from dashboard.choosing.selection import View
from sd35h5.reports import view_page
from sd35h5.reports.output_files import csv_text, safe_name
from sd35h5.store.showable import showable

OPEN = "exports"  # key of whether they are asked for


def offer(title: str) -> None:
    """Draw the view's exports below it, once they are asked for; files are made when their button is pressed.

    Streamlit's highlighter of Python takes a browser half a second to load, which a first chart would wait for.
    """
    shown: list[view_page.Shown | view_page.Later] = st.session_state.get("shown", [])
    view = st.session_state["view"]
    if not shown or view is None:
        return
    box = st.expander(
        "Take it along: CSV, PNG, SVG, Python, HTML", icon=":material/download:", key=OPEN, on_change="rerun"
    )
    if box.open:
        with box:
            _draw(title, view, shown)


def _draw(title: str, view: View, shown: list[view_page.Shown | view_page.Later]) -> None:
    """Draw the choice of a figure, its buttons and its Python."""
    place = st.selectbox(
        "Figure",
        range(len(shown)),
        format_func=lambda at: showable(shown[at].name),
        key=f"export-{title}-{len(shown)}",
    )
    one, name = shown[place], f"{safe_name(title)}-{safe_name(shown[place].name)}"
    columns = st.columns(4)
    _button(columns[0], "CSV", f"{name}.csv", lambda: csv_text(one.table), "text/csv")
    if one.figure is not None:
        _button(columns[1], "PNG", f"{name}.png", lambda: view_page.png(one), "image/png")
    if one.figure is not None and not isinstance(one.figure, bytes):
        _button(columns[2], "SVG", f"{name}.svg", lambda: view_page.svg(one), "image/svg+xml")
    about = f"{view.run.name} · {panels.about(view)}"
    answers = tuple(st.session_state["answers"])
    whole = f"{safe_name(view.run.name)}-{safe_name(title)}.html"
    _button(
        columns[3],
        "Whole view as HTML",
        whole,
        lambda: view_page.page(title, about, shown, answers),
        "text/html",
    )
    if one.code:
        st.code(one.code, language="python")


def _button(column, label: str, name: str, make, kind: str) -> None:
    column.download_button(
        label, make, file_name=name, mime=kind, on_click="ignore", width="stretch", key=f"download-{label}",
        icon=":material/download:",
    )  # fmt: skip
