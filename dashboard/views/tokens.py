"""Tokens: the prompt as its real tokens, coloured by mass; a click makes a token the token of all pages."""

from dataclasses import replace
from functools import partial

import streamlit as st

from dashboard import cached_metrics, cached_reads, panels, recipes
from dashboard.answering import answer_panel, page_answers
from dashboard.choosing import address, sidebar
from sd35h5 import metrics
from sd35h5.figures import token_charts
from sd35h5.figures.prompt_names import folded
from sd35h5.metrics import prompt_chips
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.reports import view_address

COUNTS = {f"top {count}": count for count in (12, 24, 48, 96)}


def read_masses(view):
    """Return the shown sample's tokens with their mass, at the clicked cell or over all chosen layers and heads."""
    layers, heads = view.looked_at
    return cached_metrics.token_mass(view.run, view.sample, view.branch, view.steps, layers, heads)


def prompt(view, masses) -> None:
    """Draw the prompt as chips."""
    hint = "so that one heavy token leaves the others apart"
    log = address.switch(
        partial(st.toggle, "Logarithmic colours", help=hint), "chips-log", view_address.LOG, True
    )
    told = "each word once, with all its tokens"
    many = len(masses) > panels.MANY_TOKENS
    by_word = address.switch(
        partial(st.toggle, "Words", help=told), f"chips-words-{many}", view_address.WORDS, many
    )
    figure = token_charts.token_chips(
        panels.chips(view, masses, by_word),
        log=log,
        chosen=sidebar.chosen_tokens(view),
        select="token",
        room=145,
    )
    panels.tokens(view, figure, f"chips-{by_word}", masses, recipes.tokens(view), by_word)
    st.caption(
        "Click a token, or choose it under “Token or group” in the sidebar: it becomes the token of all pages"
        + (", by its word or group, since several samples are chosen. " if len(view.samples) > 1 else ". ")
        + "The foot of a chip tells its group; padding is one chip, and so is a word that comes again, "
        "coloured by the mean of its tokens, Σ their sum."
    )
    for encoder, rest in cached_reads.truncation(view.run, view.sample, view.branch).items():
        end = panels.plain(folded(rest, 120))
        st.warning(
            f"{encoder.upper().replace('_', '-')} did not see the end of this text, “{end}”.",
            icon=":material/content_cut:",
        )


def bars(view, masses) -> None:
    """Draw the groups and the tokens ranked by mass."""
    left, right = st.columns(2)
    with left:
        st.markdown("**Groups of text tokens**")
        totals = prompt_chips.group_totals(masses)
        panels.chart(
            token_charts.group_bars(totals), "Groups of text tokens", totals, recipes.token_groups(view)
        )
        if len(view.samples) > 1:
            across_prompts(view)
    with right:
        st.markdown("**Heaviest text tokens**")
        draw = partial(st.selectbox, "How many", list(COUNTS), label_visibility="collapsed")
        top = COUNTS[address.choice(draw, "token-count", view_address.TOP, "top 24", address.one_of(COUNTS))]
        keys = cached_reads.store(view.run).sizes["token"] + panels.patches(view.run)
        uniform = 1 / keys if panels.patches(view.run) else None
        panels.chart(
            token_charts.token_bars(metrics.with_pads_averaged(masses), top=top, uniform=uniform, room=120),
            "Heaviest text tokens",
            masses,
            recipes.tokens(view),
        )
        st.caption("dashed: uniform attention, 1 ÷ number of keys" if uniform else "")


def across_prompts(view) -> None:
    """Draw the chosen group or word in every chosen sample: its mass where the metric is about all keys."""
    if not MEASURES[view.metric].of_target:
        view = replace(view, metric="first_token_mean")
    st.markdown(f"**{panels.plain(str(view.target).capitalize())} across prompts**")
    with cached_reads.sentence(view.run):
        values = cached_metrics.metric(view.run, view.metric, view.target, view.branch, view.samples)
        table = cached_reads.samples(view.run).set_index("sample", drop=False).loc[list(view.samples)]
        found = prompt_chips.sample_means(view.at_cell(values), table)
        figure = token_charts.sample_bars(found, view.label)
        panels.chart(figure, f"{view.target} across prompts", found, recipes.across_prompts(view))
        absent = int(found["value"].isna().sum())
        if absent:
            st.caption(f"{absent} of {len(found)} chosen samples do not have it")


view = panels.current().of_joint
where = "" if view.cell is None else f" · layer {view.cell[0]}, head {view.cell[1]}"
st.subheader("Tokens: how much attention each gets")
(answers,) = answer_panel.places()
st.caption(
    panels.plain(f"{panels.told_prompt(view.run, view.sample)} · {panels.about(view, one=True)}{where}")
)
panels.whole_prompt(view.run, view.sample)
with cached_reads.sentence(view.run):
    found = read_masses(view)
    prompt(view, found)
    answer_panel.draw(answers, "tokens", page_answers.tokens(view, found))
    bars(view, found)
