"""Overview: the runs as cards, their images as a contact sheet, and what differs between their settings."""

import streamlit as st

from dashboard import data, panels

PAGE = 12


def card(run: data.Run) -> None:
    """Draw one run: model, gate, size, and how far it is while it is still being captured."""
    store = data.store(run)
    sizes = store.sizes
    with st.container(border=True):
        st.markdown(f"**{panels.plain(run.name)}**")
        gate = store.attributes.get("gate_type") or "none"
        st.caption(
            f"gate: {panels.plain(gate)} · {sizes['layer']} layers × {sizes['head']} heads · {sizes['step']} steps · "
            f"{sizes['token']} text tokens"
        )
        if store.status == "capturing":
            done = sizes["sample"]
            st.progress(min(1.0, done / max(store.planned, 1)), f"capturing: {done} of {store.planned} samples")
        else:
            st.caption(f":material/verified: {sizes['sample']} samples, complete, verified")


def contact_sheet(view) -> None:
    """Draw the images: a row a prompt, a column a run, paired by pairing key."""
    runs = (view.run, *view.others)
    partner = {other.name: _partners(view.run, other) for other in view.others}
    count = len(view.samples)
    start = 0
    if count > PAGE:
        start = (st.number_input(f"Images, {PAGE} at a time: page", 1, -(-count // PAGE), 1, key="page") - 1) * PAGE
    shown = view.samples[start : start + PAGE]
    across = len(runs) if len(runs) > 1 else 4
    if len(runs) > 1:
        for column, run in zip(st.columns(across), runs, strict=True):
            column.markdown(f"**{panels.plain(run.name)}**")
    prompts = data.samples(view.run).set_index("sample")["prompt"]
    rows = [(sample,) for sample in shown] if len(runs) > 1 else [shown[i : i + 4] for i in range(0, len(shown), 4)]
    for row in rows:
        columns = st.columns(across)
        if len(runs) == 1:
            for column, sample in zip(columns, row, strict=False):
                _picture(column, view.run, sample, prompts[sample])
            continue
        sample = row[0]
        for column, run in zip(columns, runs, strict=True):
            place = sample if run == view.run else partner[run.name].get(sample)
            _picture(column, run, place, prompts[sample])


def _partners(reference: data.Run, other: data.Run) -> dict[int, int]:
    pairs = data.pairing(reference, other).pairs
    return dict(zip(pairs["reference_sample"], pairs["other_sample"], strict=True))


def _picture(column, run: data.Run, sample: int | None, prompt: str) -> None:
    pixels = None if sample is None else data.image(run, sample, 320)
    with column:
        if pixels is not None:
            st.image(pixels, caption=panels.plain(prompt), width="stretch")
        else:
            st.caption("no paired sample" if sample is None else f"no image kept: {panels.plain(prompt)}")


view = panels.current()
found = st.session_state["found"]
st.subheader("Runs")
for start in range(0, len(found.runs), 3):
    for column, run in zip(st.columns(3), found.runs[start : start + 3], strict=False):
        with column, data.sentence(run):
            card(run)
st.subheader("Images")
with data.sentence(view.run, *view.others):
    contact_sheet(view)
if view.others:
    st.subheader("What differs between these runs")
    with data.sentence(view.run, *view.others):
        st.dataframe(data.setting_differences((view.run, *view.others)), hide_index=True)
