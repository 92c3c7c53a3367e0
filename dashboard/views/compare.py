"""Compare: one reference run and others, paired by pairing key: side by side, as difference, and what cannot
be paired."""

import streamlit as st

from dashboard import cached_reads, gate_panels, pair_panels, panels
from dashboard.answering import answer_panel, page_answers
from dashboard.choosing import proposals
from dashboard.linked import linked_pairs
from sd35h5.metrics import gate_statistics


def gates(view) -> None:
    """Draw the gates of the runs that have some, over the samples that pair."""
    found = {run: gate_panels.partners(view, run) for run in (view.run, *view.others)}
    found = {
        run: samples
        for run, samples in found.items()
        if samples and gate_statistics.gated_streams(cached_reads.store(run))
    }
    if found:
        st.markdown("**Mean gate by layer, head and stream**")
        gate_panels.draw(view.of_joint, found, "compare-gates")


def show(view, answers) -> None:
    """Lay out the page for the chosen runs; the numbers of the pairs live as long as this call.

    Args: answers: where its sentences stand.
    """
    all_pairings = [pair_panels.pairing_of(view, other) for other in view.others]
    st.caption(panels.plain(panels.about(view)))
    pairs = []
    for other, pairing in zip(view.others, all_pairings, strict=True):
        if pairing.pairs.empty:
            st.warning(
                f"No chosen sample of {panels.plain(other.name)} pairs with {panels.plain(view.run.name)}: "
                "the list below says why."
            )
            continue
        with cached_reads.sentence(view.run, other):
            pairs.append(pair_panels.read(view, other, pairing))
    if pairs:
        side_by_side(view, pairs, answers)
    pair_panels.unpaired(view, all_pairings)


def side_by_side(view, pairs: list[pair_panels.Paired], answers) -> None:
    """Draw everything of the pairs that there are."""
    linked_pairs.draw(view, pairs)
    with cached_reads.sentence(view.run, *view.others):
        answer_panel.draw(answers, "changes", page_answers.changes(view, pairs))
    with cached_reads.sentence(view.run, *view.others):
        pair_panels.draw_changes(view, pairs)
        where = "" if view.cell is None else f" · {panels.told_cell(view.cell)}"
        left, right = st.columns(2)
        with left:
            st.markdown(f"**Each pair**{where}")
            pair_panels.slopes(view, pairs)
        with right:
            pair_panels.scatter(view, pairs)
    st.markdown(f"**Images** · {panels.plain(panels.told_prompt(view.run, view.sample))}")
    pair_panels.images(view, pairs)
    with cached_reads.sentence(view.run, *view.others):
        gates(view)


view = panels.current()
st.subheader("Compare")
(answers,) = answer_panel.places()
if view.others:
    show(view, answers)
else:
    why = proposals.why_none(view.run, {run.name: run for run in st.session_state["found"].runs})
    told = f"{panels.plain(why)} " if why else ""
    st.info(f"{told}Choose at least one run under “Compare with” in the sidebar.", icon=":material/info:")
    pair_panels.scatter(view, [])
