"""The star: it keeps the view that a page shows, with a note and one of its figures, beside the run."""

from __future__ import annotations

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from dashboard import cached_reads, panels
from dashboard.choosing.selection import View
from sd35h5.reports import view_address
from sd35h5.reports.findings import findings_file, kept_views
from sd35h5.store.showable import showable

KEY = "star"
KEPT = "findings"  # the page that lists them
#: what the URL says on every page, which `panels.about` tells in words
OF_ALL_PAGES = {
    view_address.RUN, view_address.WITH, view_address.SAMPLES, view_address.SAMPLE, view_address.TAGS,
    view_address.FIND, view_address.BRANCH, view_address.TARGET, view_address.METRIC, view_address.CELL,
    *view_address.SPANS.values(),
}  # fmt: skip
#: in the bar above the page, beside Streamlit's menu and what it says while it works: there it overlaps nothing
STYLE = f"<style>.st-key-{KEY} {{position: fixed; top: 0.6rem; right: 9rem; width: auto; z-index: 999991}}</style>"


def offer(page: StreamlitPage) -> None:
    """Draw the star of a view. Call it last: figures and the URL are then what the page made of them."""
    view: View | None = st.session_state["view"]
    if view is None or page.url_path == KEPT:
        return
    st.html(STYLE)
    with st.container(key=KEY), st.popover("", icon=":material/star:", help="keep this view with a note"):
        shown = st.session_state.get("shown", [])
        with st.form(f"{KEY}-{page.url_path}", clear_on_submit=True, border=False):
            longest = findings_file.LONGEST["note"]
            note = st.text_area("Note", max_chars=longest, placeholder="What is to be seen here?")
            names = {place: showable(one.name, 80) for place, one in enumerate(shown)}
            place = st.selectbox("Figure", list(names), format_func=names.get) if names else None
            wanted = st.form_submit_button("Keep this view", icon=":material/star:", width="stretch")
        if wanted:
            with cached_reads.sentence(view.run):
                keep(page, view, note, None if place is None else shown[place])
                st.toast("Kept: it is on the page Findings.", icon=":material/star:")


def keep(page: StreamlitPage, view: View, note: str, figure) -> None:
    """Write a view beside its run."""
    samples, cell = cached_reads.samples(view.run), panels.told_cell(view.cell) if view.cell else ""
    asked = parameters(view)
    own = [f"{name.replace('_', ' ')} {value}" for name, value in asked if name not in OF_ALL_PAGES]
    about = " · ".join(filter(None, (view.run.name, panels.about(view), cell, *own)))
    address = kept_views.address(page.url_path, asked)
    made = kept_views.finding(figure, note, page.title, address, about, view.run.path, samples, view.sample)
    findings_file.add(findings_file.beside(view.run.path), made)


def parameters(view: View) -> list[tuple[str, str]]:
    """Return what the URL says of the view, with its run."""
    names = [name for name in st.query_params if name != view_address.RUN]
    said = [(name, value) for name in names for value in st.query_params.get_all(name)]
    return [(view_address.RUN, view.run.name), *said]
