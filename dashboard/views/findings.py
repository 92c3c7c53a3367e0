"""Findings: the views that were kept with a note, of all runs; each opens again, and can be taken along."""

import math
from pathlib import Path

import streamlit as st

from dashboard import cached_reads, panels
from dashboard.choosing import address
from sd35h5.errors import StoreError
from sd35h5.reports.findings import findings_file, kept_views
from sd35h5.reports.findings.findings_file import Finding
from sd35h5.store.showable import seen, showable

A_PAGE = 20  # findings


def one_finding(run: cached_reads.Run, kept: Finding) -> None:
    """Draw a finding: its figure, its note, what it selects, and what can be done with it."""
    with st.container(border=True):
        left, right = st.columns([2, 3])
        if kept.picture:
            left.image(kept.picture, width="stretch")
        with right:
            if kept.note:
                st.text(seen(kept.note))
            figure = f" · {panels.plain(kept.figure)}" if kept.figure else ""
            st.markdown(f"**{panels.plain(kept.page)}**{figure}")
            st.caption(
                f"{panels.plain(kept.about)} · kept {panels.plain(kept.made_utc[:16].replace('T', ' '))} UTC"
            )
            with cached_reads.sentence(run):
                change = kept_views.told_change(kept, run.path, cached_reads.samples(run))
                if change:
                    st.caption(f":material/warning: {panels.plain(change)}")
            actions(run, kept)
            if kept.code:
                with st.expander("The Python that reads its numbers", icon=":material/code:"):
                    st.code(seen(kept.code), language="python")


def actions(run: cached_reads.Run, kept: Finding) -> None:
    """Offer to open the view, to change the note, and to delete the finding."""
    place = findings_file.beside(run.path)
    with st.container(horizontal=True):
        st.link_button(
            "Open the view", kept_views.address_in(kept, run.name), icon=":material/open_in_new:",
            help=showable(kept.address, 300),
        )  # fmt: skip
        with (
            st.popover("Note", icon=":material/edit:"),
            st.form(f"note-{run.name}-{kept.id}", border=False),
        ):
            note = st.text_area("Note", kept.note, max_chars=findings_file.LONGEST["note"])
            if st.form_submit_button("Change the note", width="stretch"):
                change(run, lambda: findings_file.annotate(place, kept.id, note.strip()))
        with st.popover("Delete", icon=":material/delete:"):
            if st.button("Delete for good", key=f"delete-{run.name}-{kept.id}"):
                change(run, lambda: findings_file.remove(place, kept.id))


def change(run: cached_reads.Run, write) -> None:
    """Write what was asked for and draw the page anew, or say why not."""
    with cached_reads.sentence(run):
        write()
        st.rerun()


def homeless(runs: tuple[cached_reads.Run, ...]) -> None:
    """Tell of findings whose run is not here, and under which name its values are where they are."""
    for path in kept_views.orphans([run.path for run in runs]):
        try:
            found = findings_file.read(path)
        except StoreError as error:
            st.caption(panels.plain(str(error)))
            continue
        now = next((run for run in runs for kept in found[:1] if holds(run, kept)), None)
        where = "it was moved, or is not among the runs that this dashboard shows"
        if now is not None:
            where = (
                f"its values are in {Path(now.path).name} now: call the file of findings "
                f"{findings_file.beside(now.path).name}"
            )
        count = panels.counted(len(found), "finding")
        st.caption(
            f":material/link_off: {panels.plain(f'{path.name}: {count} of a run that is not here: {where}')}"
        )


def holds(run: cached_reads.Run, kept: Finding) -> bool:
    """Whether a run holds what a finding of another file showed."""
    with cached_reads.sentence(run):
        return kept_views.holds_sample(kept, cached_reads.samples(run))
    return False


view = panels.current()
st.subheader("Findings: the views that were kept")
everything = {run.name: run for run in st.session_state["found"].runs}
only_this = address.switch(
    lambda key: st.toggle("Of the chosen run only", key=key), "findings-run", "only", False
)
runs = {view.run.name: view.run} if only_this else everything
found, refused = kept_views.of_runs({name: run.path for name, run in runs.items()})
for sentence in refused:
    st.info(panels.plain(sentence), icon=":material/info:")
found.sort(key=lambda each: each[1].made_utc, reverse=True)
if not found:
    st.caption("Nothing yet: the star beside a page's heading keeps what it shows, with a note.")
first = 0
if len(found) > A_PAGE:
    first = A_PAGE * (st.number_input("Page", 1, math.ceil(len(found) / A_PAGE)) - 1)
for name, kept in found[first : first + A_PAGE]:
    one_finding(runs[name], kept)
for _, kept in found:
    panels.keep(kept_views.shown(kept))
homeless(tuple(everything.values()))
