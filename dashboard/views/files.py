"""Files: is the run's file whole, what is in it, how large, where it comes from, and how to capture what it
lacks."""

import streamlit as st

from dashboard import cached_reads, panels, recipes
from dashboard.answering import answer_panel
from sd35h5.reports import file_tables, missing_tiers
from sd35h5.reports.answers import run_answers
from sd35h5.reports.answers.sentence import Sentence
from sd35h5.reports.info import nbytes
from sd35h5.reports.view_page import Shown
from sd35h5.store.showable import as_json

PARTS = {
    "config": "Configuration",
    "components": "Components",
    "environment": "Environment",
    "events": "Events",
    "origin": "Origin",
}


def verdict(run: cached_reads.Run) -> None:
    """Say what verification found; check every value on request."""
    left, right = st.columns([4, 1], vertical_alignment="center")
    with right:
        deep = st.button("Check every value", key=f"deep-{run.name}", width="stretch", help=(
            "reads the whole file and compares each sample with the hash that sealed it; "
            "large files take minutes"
        ))  # fmt: skip
    with left:
        if not deep:
            st.success(
                "Verified before it was opened: format, types, links and sizes are sound.",
                icon=":material/verified:",
            )
        elif problem := cached_reads.deep_problem(run):
            st.error(panels.plain(problem), icon=":material/error:")
        else:
            st.success("Every value is the one that was sealed.", icon=":material/verified:")


def sizes(run: cached_reads.Run) -> None:
    """Draw what the variables take, and list them as the file has them."""
    table = cached_reads.variables(run)
    stored, raw = int(table["stored"].sum()), int(table["raw"].sum())
    st.markdown("**Sizes by dataset**")
    st.caption(
        f"{nbytes(cached_reads.store(run).bytes_on_disk())} on disk; the variables take {nbytes(stored)}, "
        f"raw {nbytes(raw)}"
    )
    code = recipes.opened(run).replace("sd35h5 import metrics", "sd35h5.reports import file_tables")
    code += "table = file_tables.variables(store)"
    panels.chart(file_tables.size_bars(table), "Sizes by dataset", table, code)


def schema(run: cached_reads.Run) -> None:
    """List the variables as the file has them."""
    st.markdown("**Schema**")
    panels.table(cached_reads.variables(run), column_config={
        "stored": st.column_config.NumberColumn("stored, bytes", format="localized"),
        "raw": st.column_config.NumberColumn("raw, bytes", format="localized"),
    })  # fmt: skip


def held(run: cached_reads.Run) -> None:
    """List the tiers, those in the file marked."""
    st.markdown("**Tiers**")
    st.dataframe(missing_tiers.tiers(cached_reads.store(run)), hide_index=True, column_config={
        "tier": st.column_config.TextColumn(width=110),
        "held": st.column_config.CheckboxColumn("in file", width=60),
    })  # fmt: skip


def answer(run: cached_reads.Run) -> list[Sentence]:
    """Say how large the file is, what takes most of it, and what it lacks."""
    store = cached_reads.store(run)
    contents = run_answers.contents(run.name, store.bytes_on_disk(), cached_reads.variables(run), len(store))
    return [contents, run_answers.tiers(missing_tiers.tiers(store))]


def lacking(run: cached_reads.Run) -> None:
    """Give the command line that captures the run again with the tiers that the file lacks."""
    store = cached_reads.store(run)
    table = missing_tiers.tiers(store)
    st.markdown("**Capture what is missing**")
    absent, cut = table.loc[~table["held"], "tier"].tolist(), missing_tiers.left_out(store)
    for file in dict.fromkeys(cut.values()):
        names = ", ".join(name for name in cut if cut[name] == file)
        st.caption(f"Left out of this slice, and in {panels.plain(file)}, of which it was cut: {names}.")
    absent = [name for name in absent if name not in cut]
    if not absent:
        st.caption("Nothing else is missing." if cut else "Every tier is in the file.")
        return
    wanted = st.multiselect(
        "Capture also", absent, default=[name for name in absent if name != "raw"], key=f"tiers-{run.name}"
    )
    with cached_reads.sentence(run):
        st.code(
            missing_tiers.capture_command(store, wanted, f"{store.name}-more.h5"),
            language="bash",
            wrap_lines=True,
        )
        if prompts := missing_tiers.prompts_file(store):
            st.download_button(
                missing_tiers.PROMPTS_FILE,
                as_json(prompts, indent=1),
                missing_tiers.PROMPTS_FILE,
                "application/json",
                icon=":material/download:",
                help="the prompts that the command reads",
            )
        st.caption(
            "The same pictures again, as every option is that of this file: samples of both files pair. "
            "`--dry_run` behind it tells what it will take."
        )


def provenance(run: cached_reads.Run) -> None:
    """Show where the file comes from, as the capture wrote it."""
    store = cached_reads.store(run)
    st.markdown("**Provenance**")
    told = {**store.provenance, "config": store.config}
    parts = {title: told[name] for name, title in PARTS.items() if told.get(name)}
    parts["Attributes"] = store.attributes
    for part, tab in zip(parts.values(), st.tabs(list(parts)), strict=True):
        with tab:
            panels.table(file_tables.facts(part))


view = panels.current(open_refused=True)
st.subheader(panels.plain(f"{view.run.name}: what is in the file"))
(answers,) = answer_panel.places()
with cached_reads.sentence(view.run):
    verdict(view.run)
left, right = st.columns([3, 5])  # a tier's sentence fits at 1280 pixels
with left, cached_reads.sentence(view.run):
    sizes(view.run)
with right, cached_reads.sentence(view.run):
    held(view.run)
with cached_reads.sentence(view.run):
    answer_panel.draw(answers, "file", answer(view.run))
for part in (lacking, schema, provenance):
    with cached_reads.sentence(view.run):
        part(view.run)
with cached_reads.sentence(view.run):
    panels.keep(Shown("Samples", None, cached_reads.samples(view.run), recipes.run_samples(view.run)))
