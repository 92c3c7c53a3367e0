"""The one sidebar that all pages share: it returns a View, what the pages show."""

from __future__ import annotations

import streamlit as st

from dashboard import cached_reads
from dashboard.cached_reads import plain
from dashboard.choosing import address, choose_samples, clicks, proposals
from dashboard.choosing.selection import View
from sd35h5 import metrics
from sd35h5.metrics.catalogue import MEASURES, head_axis
from sd35h5.metrics.targets import PADS
from sd35h5.reports import view_address
from sd35h5.reports.run_names import short_names
from sd35h5.store.schema import GROUPS
from sd35h5.store.showable import showable

METRIC_NAMES = {name: one.label for name, one in MEASURES.items()} | {
    "first_token_mean": "mass (0..1)",
    "first_token_share": "× average text token",
    "text_mass_fraction": "fraction of text mass (0..1)",
}
GONE = (
    "{} is not there any more: it was removed, renamed or replaced, or its disk cannot be reached. It is shown again "
    "when it is back; others can be chosen in the sidebar."
)
UNREAD = "{} cannot be shown now: the sidebar says why."
AGAINST_TEXT = ("first_token_share", "text_mass_fraction")  # of which the image is no part


def choose(runs: tuple[cached_reads.Run, ...]) -> View | None:
    """Draw the sidebar and return what is chosen, which the URL then says; None when there is no run."""
    address.open_tab()
    was_gone = bool(st.session_state.get("why_nothing"))
    st.session_state["why_nothing"] = ""
    before = st.session_state.get("open_run")  # a list that is not drawn forgets what was chosen in it
    if not runs:
        st.session_state["why_nothing"] = "" if before is None else GONE.format(plain(before))
        return None
    with st.sidebar:
        by_name = {run.name: run for run in runs}
        first = proposals.reference(by_name)
        address.begin("run", view_address.RUN, before or first, address.run_of(by_name))
        was = st.session_state["run"]
        offered = [*by_name, *([] if was in by_name else [was])]
        name = st.selectbox("Run", offered, key="run", format_func=short_names(offered).get)
        st.session_state["open_run"] = name
        if name not in by_name:
            st.session_state["why_nothing"] = GONE.format(plain(name))
            return None
        run = by_name[name]
        if was_gone and name == before:
            address.read_again()
        others = _choose_others(run, by_name)
        with cached_reads.sentence(run):
            view = _choose_within(run, others)
            _write_address(view, first)
            if sentence := address.refused():
                st.caption(f":material/link_off: {sentence}")
            return view
    st.session_state["why_nothing"] = UNREAD.format(plain(run.name))
    return None


def _choose_others(
    run: cached_reads.Run, by_name: dict[str, cached_reads.Run]
) -> tuple[cached_reads.Run, ...]:
    rest = [name for name in by_name if name != run.name]
    key = f"others-{run.name}"
    if not rest and not st.session_state.get(key):
        return ()
    address.begin(
        key,
        view_address.WITH,
        proposals.others(run, by_name),
        address.several_of(rest, "\n", address.run_of(rest)),
    )
    gone = [name for name in st.session_state[key] if name not in rest]
    chosen = st.multiselect(
        "Compare with", [*rest, *gone], key=key, format_func=short_names([*by_name, *gone]).get,
        help="shown beside the run on Overview, Maps, Gates and Compare",
    )  # fmt: skip
    if missing := [name for name in chosen if name not in by_name]:
        st.caption(f":material/link_off: {GONE.format(plain(', '.join(missing)))}")
    return tuple(by_name[name] for name in chosen if name in by_name)


def _choose_within(run: cached_reads.Run, others: tuple[cached_reads.Run, ...]) -> View:
    opened = cached_reads.store(run)
    chosen, sample = choose_samples.choose(run)
    branch = _choose_branch(run)
    target = _choose_target(run, chosen, sample, branch)
    metric = _choose_metric(run, target)
    axis = head_axis(opened, metric)
    known = {"layer": opened.numbers("layer"), "head": opened.numbers(axis), "step": opened.numbers("step")}
    ranges = [_choose_range(name, numbers) for name, numbers in known.items()]
    if axis != "head":
        st.caption("Heads are those of attn2, of which this model has others than of its joint attention.")
    if any(len(some) < len(numbers) for some, numbers in zip(ranges, known.values(), strict=True)):
        st.button(
            "All layers, heads, steps",
            icon=":material/close:",
            on_click=clicks.choose_everything,
            width="stretch",
        )
    address.begin("cell", view_address.CELL, None, address.cell_within(known["layer"], known["head"]))
    cell = st.session_state["cell"]
    if cell is not None and (cell[0] not in ranges[0] or cell[1] not in ranges[1]):
        cell = None
    if cell is not None:
        st.button(
            f"layer {cell[0]}, head {cell[1]}",
            icon=":material/close:",
            on_click=clicks.forget_cell,
            width="stretch",
            help="the clicked cell filters the charts: press to see all layers and heads again",
        )
    return View(run, others, chosen, sample, branch, target, metric, *ranges, cell, axis)


def _choose_metric(run: cached_reads.Run, target: metrics.Target) -> str:
    """Offer the metrics that the file holds; the choice stays from run to run where the other holds it too."""
    missing = cached_reads.absent_metrics(run)
    if target == metrics.Target("group", "image"):
        missing = {*missing, *AGAINST_TEXT}
    allowed = [name for name in METRIC_NAMES if name not in missing]
    before = st.session_state.get("metric")
    key = f"metric-{'+'.join(allowed)}"
    address.begin(key, view_address.METRIC, allowed[0], address.one_of(allowed))
    if before in allowed and st.session_state.get("metric-key") != key:
        st.session_state[key] = before
    st.session_state["metric"] = st.selectbox("Metric", allowed, format_func=METRIC_NAMES.get, key=key)
    st.session_state["metric-key"] = key
    return st.session_state["metric"]


def _choose_branch(run: cached_reads.Run) -> str:
    branches, key = list(cached_reads.store(run).labels("branch")), f"branch-{run.name}"
    address.begin(key, view_address.BRANCH, branches[0], address.one_of(branches))
    return st.segmented_control("Branch", branches, key=key) or branches[0]


def _choose_target(
    run: cached_reads.Run, chosen: tuple[int, ...], sample: int, branch: str
) -> metrics.Target:
    """Offer the first token, the groups that are there, words by their string, and the shown sample's
    tokens; one choice for all runs and branches, where they have it."""
    options = target_options(run, chosen, sample, branch)
    names = {target: name for name, target in options.items()}
    known = {address.target_text(target): target for target in names}
    address.begin("target", view_address.TARGET, metrics.FIRST_TOKEN, known.get)
    key = f"target-{run.name}-{branch}"
    wanted = names.get(st.session_state["target"])
    if wanted is not None:
        st.session_state[key] = wanted
    name = st.selectbox(
        "Token or group",
        list(options),
        key=key,
        on_change=lambda: st.session_state.update(target=options[st.session_state[key]]),
    )
    return options[name]


def target_options(
    run: cached_reads.Run, chosen: tuple[int, ...], sample: int, branch: str
) -> dict[str, metrics.Target]:
    """Return what can be chosen as the token: name -> target."""
    table = cached_reads.tokens(run, sample, branch)
    there = set(table["group"])
    options = {"first token (clip_bos)": metrics.FIRST_TOKEN}
    options |= {
        f"group {name}": metrics.Target("group", name) for name in GROUPS if name in there or name == "image"
    }
    options |= {
        f"word “{showable(word)}”": metrics.Target("word", word)
        for word in cached_reads.words(run, chosen[:100], branch)
    }
    if len(chosen) == 1:
        shown = table[~table["group"].isin(["clip_bos", *PADS])]
        for row in shown.to_dict("records"):
            text = showable(metrics.clean(row["text"]) or row["text"])
            options[f"token {row['token']}: {text} ({row['encoder']})"] = metrics.Target(
                "token", int(row["token"])
            )
    return options


def chosen_tokens(view: View) -> frozenset[int]:
    """Return the shown sample's tokens that are the token of all pages."""
    table = cached_reads.tokens(view.run, view.sample, view.branch)
    column = {"token": "token", "group": "group", "word": "word_text"}[view.target.kind]
    return frozenset(table.loc[table[column] == view.target.value, "token"].tolist())


def _choose_range(name: str, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Offer a range of true indices: of a slice, those that it holds."""
    if len(numbers) == 1:
        if numbers[0]:
            st.caption(f"This file holds {name} {numbers[0]} alone.")
        return numbers
    key = clicks.range_key(name, numbers)
    ends = numbers[0], numbers[-1]
    address.begin(key, view_address.SPANS[name], ends, address.span_within(*ends))
    if numbers == tuple(range(ends[0], ends[1] + 1)):
        low, high = st.slider(f"{name.capitalize()}s", *ends, key=key)
    else:
        # without a value, Streamlit takes it for a slider of one end from its second run on
        low, high = st.select_slider(f"{name.capitalize()}s", numbers, value=ends, key=key)
    return tuple(number for number in numbers if low <= number <= high)


def _write_address(view: View, first: str) -> None:
    """Say in the URL what is chosen where it is not the default."""
    sizes = cached_reads.store(view.run).sizes
    count = len(cached_reads.samples(view.run))
    address.write(view_address.RUN, view.run.name, first)
    if f"others-{view.run.name}" in st.session_state:
        address.write(view_address.WITH, [other.name for other in view.others] or view_address.NONE)
    address.write(view_address.SAMPLES, ",".join(map(str, view.samples)) if len(view.samples) < count else "")
    address.write(view_address.SAMPLE, str(view.sample), str(view.samples[0]))
    address.write(view_address.BRANCH, view.branch, cached_reads.store(view.run).labels("branch")[0])
    address.write(
        view_address.TARGET, address.target_text(view.target), address.target_text(metrics.FIRST_TOKEN)
    )
    address.write(view_address.METRIC, view.metric, next(iter(METRIC_NAMES)))
    for name, places in (("layer", view.layers), ("head", view.heads), ("step", view.steps)):
        size = sizes[view.head_axis if name == "head" else name]
        address.write(view_address.SPANS[name], address.span_text(places) if len(places) < size else "")
    address.write(view_address.CELL, "" if view.cell is None else f"{view.cell[0]}.{view.cell[1]}")
