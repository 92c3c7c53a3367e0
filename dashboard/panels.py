"""Pieces of page that several pages draw: charts at full width, and what to say when there is nothing to
show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import altair as alt
import pandas as pd
import streamlit as st

from dashboard import cached_reads
from dashboard.cached_reads import plain
from dashboard.choosing import address, clicks
from dashboard.choosing.selection import View
from sd35h5 import metrics
from sd35h5.figures import narrow, printing
from sd35h5.figures.prompt_names import folded
from sd35h5.metrics import prompt_chips
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.reports import view_address
from sd35h5.reports.view_page import Later, Shown
from sd35h5.store.showable import all_showable, showable

PROMPT_ROOM = 160  # letters
MANY_TOKENS = 200  # from which on words are shown, each once
#: Streamlit's wide layout leaves 5 rem on each side, which charts need at 1280 pixels
STYLE = """<style>[data-testid=stMainBlockContainer] {padding: 4rem 2rem 2rem 2rem}
[data-testid=stVegaLiteChart] {overflow: auto hidden}
.st-key-answers {min-height: 3.25rem}</style>"""  # room for sentences, which come after the first chart
GATE_FACTS = ("target", "activation", "layers", "override")
CAUTIONS = {  # attribute gate_weights -> what to know before comparing
    "untrained": "untrained gates: all weights are zero, so that each gate is a constant",
    "dropped": "a gated model drawn without its gates, which is not the baseline",
}
NOTHING = (
    "There is no run to show yet. Capture one with `python capture_cli.py --demo`, or open others: "
    "`streamlit run dashboard/app.py -- FOLDER_OR_FILE`."
)


def current(open_refused: bool = False) -> View:
    """Return what the sidebar says; without a run, say what to do and end the page."""
    st.html(STYLE)
    st.session_state["shown"], st.session_state["answers"] = [], []
    open_refused = open_refused or st.session_state["view"] is None
    refused = st.session_state["found"].refused
    if refused:
        lines = [f"**{plain(name)}**: {plain(reason)}" for name, reason in refused]
        title = f"{len(lines)} file{'s are' if len(lines) > 1 else ' is'} not shown"
        with st.expander(title, icon=":material/error:", expanded=open_refused):
            st.markdown("  \n".join(lines))
    view = st.session_state["view"]
    if view is None:
        st.info(st.session_state["why_nothing"] or NOTHING, icon=":material/info:")
        st.stop()
    return view


class Drawn:
    """What Streamlit asks of a chart, not checked against Vega-Lite's schema: that takes a quarter of a change's time,
    and tests check every chart of every page."""

    def __init__(self, figure: alt.TopLevelMixin, stretches: bool) -> None:
        self._figure, self._stretches = figure, stretches

    def to_dict(self) -> dict[str, object]:
        """Return the chart as Vega-Lite, every character of its texts seen."""
        spec = all_showable(printing.showable_chart(self._figure).to_dict(validate=False))
        return narrow.fitting(spec) if self._stretches else spec


def table(rows: pd.DataFrame, **options) -> None:
    """List a table whose texts come from files."""
    st.dataframe(printing.showable_table(rows), hide_index=True, **options)


def draw(figure: alt.TopLevelMixin, **options) -> None:
    """Draw a chart with Streamlit's options."""
    st.altair_chart(Drawn(figure, options.get("width") == "stretch"), **options)


def chart(
    figure: alt.TopLevelMixin, name: str, table: pd.DataFrame, code: str = "", key: str | None = None
) -> None:
    """Draw a chart at the width of its column, and keep it with its numbers for the exports of the view."""
    keep(Shown(name, figure, table, code))
    draw(figure, width="stretch", key=key)


def clickable(figure: alt.TopLevelMixin, key: str, name: str, table: pd.DataFrame, code: str = "") -> None:
    """Draw a layer × head chart whose clicked cell, or brushed layers and heads, filter the charts of all pages."""
    keep(Shown(name, figure, table, code))
    key = clicks.chart_key(key)
    draw(
        figure, width="stretch", key=key, on_select=partial(clicks.remember_cell, key),
        selection_mode=["cell", "brush"],
    )  # fmt: skip


def chooses_joint_heads() -> bool:
    """Return whether the sidebar's heads are those of the joint attention, which a click in its charts can choose."""
    return st.session_state["view"].head_axis == "head"


def curve(figure: alt.TopLevelMixin, key: str, name: str, table: pd.DataFrame, code: str, x: str) -> None:
    """Draw a curve over denoising steps whose brushed steps filter the charts of all pages.

    Args: table: with the columns step and `x`.
    """
    keep(Shown(name, figure, table, code))
    key = clicks.chart_key(f"{key}-{x}")
    places = dict(zip(table["step"].tolist(), table[x].tolist(), strict=True))
    draw(
        figure, width="stretch", key=key, on_select=partial(clicks.remember_steps, key, x, places),
        selection_mode="brush",
    )  # fmt: skip


def brushed(
    figure: alt.TopLevelMixin, key: str, name: str, table: pd.DataFrame, code: str, along: str
) -> None:
    """Draw a chart over layers or captured steps whose brushed ones filter the charts of all pages.

    Args: along: the column on the x axis, layer or top_step.
    """
    keep(Shown(name, figure, table, code))
    key = clicks.chart_key(f"{key}-{along}")
    draw(
        figure, width="stretch", key=key, on_select=partial(clicks.remember_range, key, along),
        selection_mode="brush",
    )  # fmt: skip


def tokens(
    view: View, figure: alt.TopLevelMixin, name: str, table: pd.DataFrame, code: str, by_word: bool = False
) -> None:
    """Draw a prompt's chips; a clicked one becomes the token of all pages, or its word."""
    keep(Shown("Tokens of the prompt", figure, table, code))
    key = f"{name}-{view.run.name}-{view.sample}-{view.branch}-{len(view.samples) > 1}"
    draw(
        figure, width="content", key=key, on_select=partial(clicks.remember_token, view, key, by_word),
        selection_mode="token",
    )  # fmt: skip


def chips(view: View, masses: pd.DataFrame, by_word: bool) -> pd.DataFrame:
    """Return what `tokens` draws: the shown sample's tokens with padding folded, or its words, each once.

    Args: masses: of `metrics.token_mass`.
    """
    if not by_word:
        return prompt_chips.token_chips(masses)
    words = cached_reads.tokens(view.run, view.sample, view.branch)["word_text"]
    return prompt_chips.word_chips(masses.assign(word_text=words.to_numpy()))


def points(
    view: View, figure: alt.TopLevelMixin, key: str, name: str, table: pd.DataFrame, code: str
) -> None:
    """Draw a scatter of samples; a clicked one becomes the shown sample of all pages."""
    keep(Shown(name, figure, table, code))
    key = f"{key}-{view.run.name}-{view.sample}"
    draw(
        figure, width="stretch", key=key, on_select=partial(clicks.remember_sample, view.run, key),
        selection_mode="sample",
    )  # fmt: skip


def told_cell(cell: tuple[int, int]) -> str:
    """Return which cell was pinned, in words."""
    return f"layer {cell[0]}, head {cell[1]}"


def keep(shown: Shown | Later) -> None:
    """Keep a figure of this view for its exports; `current` begins a view anew."""
    st.session_state["shown"].append(shown)


def choose_x() -> str:
    """Offer the x axes of curves over denoising steps."""
    options = ["step", "timestep", "sigma"]
    draw = partial(st.segmented_control, "x axis", options, label_visibility="collapsed")
    return address.choice(draw, "x", view_address.X_AXIS, "step", address.one_of(options))


def about(view: View, one: bool = False) -> str:
    """Say in a line which part of the run the numbers are means over; `one` where they are of the shown sample only."""

    def span(name: str, places: tuple[int, ...]) -> str:
        return f"{name} {places[0]}" if len(places) == 1 else f"{name}s {places[0]}–{places[-1]}"

    count = f"{len(view.samples)} sample{'s' if len(view.samples) > 1 else ''}"
    count = f"sample {view.sample}" if one else f"mean of {count}"
    heads = span("head", view.heads) + " of attn2" * (view.head_axis != "head")
    where = [span("layer", view.layers), heads, span("step", view.steps)]
    target = "first token (token 0)" if view.target == metrics.FIRST_TOKEN else view.target
    target = f"{target} · " if MEASURES[view.metric].of_target else ""
    return f"{target}{view.branch} · {count} · {' · '.join(where)}"


METRIC_TITLES = {name: one.title for name, one in MEASURES.items()} | {
    "first_token_share": "share, × average text token"
}


def prompt(run: cached_reads.Run, sample: int) -> str:
    """Return the prompt of a sample."""
    return str(cached_reads.samples(run).set_index("sample")["prompt"][sample])


def told_prompt(run: cached_reads.Run, sample: int) -> str:
    """Return the prompt of a sample in quotation marks, for a line: a long one is folded."""
    return f"“{folded(prompt(run, sample), PROMPT_ROOM)}”"


def counted(count: float, what: str) -> str:
    """Return a number with its noun, `1 sample` or `3 samples`."""
    return f"{count:.0f} {what}{'s' if count != 1 else ''}"


def whole_prompt(run: cached_reads.Run, sample: int) -> None:
    """Offer a prompt that `told_prompt` folds."""
    text = prompt(run, sample)
    if folded(text, PROMPT_ROOM) != text:
        with st.expander(f"The whole prompt, {len(text.split())} words", icon=":material/notes:"):
            st.text(showable(text))


def patches(run: cached_reads.Run) -> int:
    """Return the number of image keys of a run, 0 when nothing in the file tells: the image's pixels ÷ 16 ×
    16."""
    sizes = cached_reads.store(run).sizes
    return (sizes.get("pixel_y", 0) // 16) * (sizes.get("pixel_x", 0) // 16)


def tall(view: View, height: int) -> int:
    """Return the height of a heatmap: more for many heads, so that a cell can still be hit."""
    return height if len(view.heads) <= 16 else round(height * 1.4)


def told_gates(attributes: Mapping[str, str]) -> tuple[str, str]:
    """Return which gates a run drew with, in a line, and what to beware of, empty if nothing."""
    told = {
        name: str(attributes.get(f"gate_{name}") or "none")[:400] for name in ("type", *GATE_FACTS, "weights")
    }
    line = told["type"]
    if "gate_type" not in attributes:
        line = "not told"  # by what was imported
    elif line != "none":
        facts = (told["target"], told["activation"], told_layers(told["layers"]))
        line = " · ".join([line, *(fact for fact in facts if fact not in ("none", ""))])
        line += f" · forced {told['override']}" if told["override"] != "none" else ""
    return line, CAUTIONS.get(told["weights"], "")


def told_layers(text: str) -> str:
    """Return a list of layers in short, "layers 0–2, 5", also of both attentions; another text as it is."""
    if both := re.fullmatch(r'\{"joint": (\[[\d, ]+\]), "attn2": (\[[\d, ]+\])\}', text):
        return f"joint {told_layers(both[1])} · attn2 {told_layers(both[2])}"
    if not re.fullmatch(r"\[\d{1,4}(, ?\d{1,4})*\]", text):
        return text.replace("[]", "")[:80]
    layers = sorted(map(int, text[1:-1].split(",")))
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    named = (str(first) if first == last else f"{first}–{last}" for first, last in spans)
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(named)}"


def told_intervention(attributes: Mapping[str, str]) -> str:
    """Return what was altered in a run's attention, in a line, empty if nothing."""
    told = str(attributes.get("intervention") or "none")
    control = str(attributes.get("intervention_control") or "none")
    if told == "none":
        return ""
    return told[:200] if control == "none" else f"as much mass as {told[:200]} in other keys ({control[:40]})"
