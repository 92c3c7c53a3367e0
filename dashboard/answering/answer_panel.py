"""Where a page's sentences stand, and what a click on a part of them selects: on the page itself, without a reload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.choosing import clicks
from sd35h5.reports.answers import sentence
from sd35h5.reports.answers.sentence import Part, Sentence
from sd35h5.store.showable import seen

HERE = Path(__file__).parent

_answers = st.components.v2.component(
    "sd35h5.answers",
    css=(HERE / "answers_component.css").read_text(encoding="utf-8"),
    js=(HERE / "answers_component.js").read_text(encoding="utf-8"),
)


def places(count: int = 1) -> list[DeltaGenerator]:
    """Return places for sentences below each other: they are drawn once their numbers are there, after the charts."""
    with st.container(key="answers", gap=None):
        return [st.empty() for _ in range(count)]


def draw(place: DeltaGenerator, name: str, found: Iterable[Sentence | None]) -> None:
    """Draw the sentences that there are, at most sentence.MOST, and keep them for the exports of the view.

    Args: name: one of this page, the same on each run of its script.
    """
    kept: list[str] = st.session_state["answers"]
    told = sentence.at_most(found)[: sentence.MOST - len(kept)]
    if not told:
        return
    kept += [seen(sentence.text_of(one)) for one in told]
    key = f"answers-{name}"
    with place:
        _answers(
            key=key,
            data={"sentences": [[_told(part) for part in one] for one in told]},
            on_chosen_change=partial(_remember, key),
        )


def _told(part: Part) -> dict[str, object]:
    """Return a part as the component takes it."""
    return {
        "text": seen(part.text),
        "link": part.is_link,
        "selects": dict(part.selects),
        "page": part.page,
    }


def _remember(key: str) -> None:
    """Select what was clicked in the sentences with that key."""
    told = st.session_state[key].get("chosen")
    if isinstance(told, Mapping) and isinstance(told.get("selects"), Mapping):
        clicks.choose(told["selects"], told.get("page"))
