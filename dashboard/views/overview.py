"""Overview: the runs as cards, their images as a contact sheet, and what differs between their settings."""

from pathlib import Path

import streamlit as st

from dashboard import cached_reads, panels, recipes
from dashboard.answering import answer_panel, page_answers
from dashboard.choosing import choose_samples
from dashboard.run_list import parts_of
from sd35h5.reports.info import nbytes
from sd35h5.reports.run_table import duration, rate
from sd35h5.reports.view_page import Shown
from sd35h5.store.sharing.run_progress import run_progress
from sd35h5.store.showable import showable

PAGE = 12
SHEET_ROOM = 60  # letters of a caption: two lines
ACROSS = 5


def card(run: cached_reads.Run) -> None:
    """Draw one run: model, gates, size, and how far it is while it is still being captured."""
    store = cached_reads.store(run)
    sizes = store.sizes
    with st.container(border=True, height="stretch"):
        st.markdown(f"**{panels.plain(run.name)}**")
        model = str(store.attributes.get("model_id") or "no name in the file")
        st.caption(f"model: {panels.plain(model[:80])}")
        gate, caution = panels.told_gates(store.attributes)
        st.caption(
            f"gate: {panels.plain(gate)} · {sizes['layer']} layers × {sizes['head']} heads · "
            f"{sizes['step']} steps · {sizes['token']} text tokens"
        )
        if caution:
            st.caption(f":material/warning: {caution}")
        if intervention := panels.told_intervention(store.attributes):
            st.caption(f":material/content_cut: intervention: {panels.plain(intervention)}")
        if store.status == "capturing":
            under_way(run, sizes["sample"], store.planned)
        else:
            size = nbytes(store.bytes_on_disk())
            st.caption(
                f":material/verified: {panels.counted(sizes['sample'], 'sample')}, complete, verified · {size}"
            )


def under_way(run: cached_reads.Run, done: int, planned: int) -> None:
    """Draw how far a capture is, how fast, how long it will take, and which samples could not be drawn."""
    path = Path(run.path)
    told = run_progress(path if path.is_dir() else parts_of(path), planned - done)
    parts = [f"capturing: {done} of {planned} samples"]
    if told.is_held and told.per_hour:
        parts.append(f"{rate(told.per_hour)} an hour, {duration(told.seconds_left)} left")
    elif told.seconds_since is not None:
        parts.append(f"the last one {duration(told.seconds_since)} ago")
    st.progress(min(1.0, done / max(planned, 1)), " · ".join(parts))
    for index, why in [*told.failed.items()][:3]:
        st.caption(
            f":material/error: sample {index} could not be drawn: {panels.plain(showable(why['why'], 160))}"
        )
    if len(told.failed) > 3:
        st.caption(f"… and {len(told.failed) - 3} more: `python -m sd35h5 missing`")


def contact_sheet(view) -> None:
    """Draw the images: a row a sample, a column a run, paired by pairing key; a single run fills the rows."""
    runs = (view.run, *view.others)
    start = 0
    if len(view.samples) > PAGE:
        pages = -(-len(view.samples) // PAGE)
        start = (st.number_input(f"Page of 1 to {pages}", 1, pages, 1, key="page", width=160) - 1) * PAGE
    shown = view.samples[start : start + PAGE]
    names = choose_samples.names(view.run, SHEET_ROOM)
    if len(runs) == 1:
        for row in (shown[i : i + ACROSS] for i in range(0, len(shown), ACROSS)):
            for column, sample in zip(st.columns(ACROSS), row, strict=False):
                _picture(column, view.run, sample, names[sample])
        return
    partner = {other: _partners(view.run, other) for other in view.others}
    widths = [1] * (1 + max(3, len(runs)))
    for column, run in zip(st.columns(widths)[1:], runs, strict=False):
        column.markdown(f"**{panels.plain(run.name)}**")
    for sample in shown:
        columns = st.columns(widths)
        columns[0].markdown(panels.plain(names[sample]))
        for column, run in zip(columns[1:], runs, strict=False):
            _picture(column, run, sample if run == view.run else partner[run].get(sample), "")


def _partners(reference: cached_reads.Run, other: cached_reads.Run) -> dict[int, int]:
    pairs = cached_reads.pairing(reference, other).pairs
    return dict(zip(pairs["reference_sample"], pairs["other_sample"], strict=True))


def _picture(column, run: cached_reads.Run, sample: int | None, name: str) -> None:
    pixels = None if sample is None else cached_reads.image(run, sample, 320)
    with column:
        if pixels is not None:
            st.image(pixels, caption=panels.plain(name) or None, width="stretch")
        else:
            st.caption("no paired sample" if sample is None else f"no image kept {panels.plain(name)}")


view = panels.current(open_refused=True)
found = st.session_state["found"]
(answers,) = answer_panel.places()
st.subheader("Runs")
for start in range(0, len(found.runs), 3):
    for column, run in zip(st.columns(3), found.runs[start : start + 3], strict=False):
        with column, cached_reads.sentence(run):
            card(run)
st.subheader("Images")
with cached_reads.sentence(view.run, *view.others):
    contact_sheet(view)
    panels.keep(Shown("Samples", None, cached_reads.samples(view.run), recipes.run_samples(view.run)))
with cached_reads.sentence(view.run, *view.others):
    answer_panel.draw(answers, "runs", page_answers.overview(view, found.runs))
if view.others:
    st.subheader("What differs between these runs")
    with cached_reads.sentence(view.run, *view.others):
        panels.table(cached_reads.setting_differences((view.run, *view.others)))
