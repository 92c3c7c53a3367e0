"""The watch over the folders of the runs' list: the page is drawn anew when a run comes, goes or is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st

from dashboard import run_list
from dashboard.run_list import Mark

FOLDER, FILE = 2, 3  # numbers in the stamp of a folder, and of a file, behind which that of its folder stands
Rest = Mapping[str, tuple[int, ...] | bool]


@st.fragment(run_every=run_list.WATCHED_EVERY)
def watch(arguments: tuple[str, ...], root: Path, shown: tuple[Mark, ...]) -> None:
    """Look at names and times every few seconds, and draw the page anew where they have changed and come to rest.

    Args: shown: what the page was drawn with. Nothing but this function runs while all is as it was.
    """
    if st.session_state.get("watched_for") is not shown:  # the page was drawn just now
        st.session_state["watched_for"], st.session_state["watched"] = shown, at_rest(shown)
        return
    now = at_rest(run_list.listed_lately(arguments, root))
    before, st.session_state["watched"] = st.session_state["watched"], now
    if has_changed(at_rest(shown), before, now):
        st.rerun()


def at_rest(marks: Sequence[Mark]) -> Rest:
    """Return for each path what tells that it is another: of a file its stamp, of a capture under way that it has a
    sample, as each one that it seals is no reason to draw a page anew."""
    return {path: any(stamp) if len(stamp) == FOLDER else stamp[:FILE] for path, stamp in marks}


def has_changed(shown: Rest, before: Rest, now: Rest) -> bool:
    """Whether something is other than shown, and was so at the last look, too: a file that is being copied waits."""
    gone = any(path not in now and path not in before for path in shown)
    return gone or any(shown.get(path) != mark and before.get(path) == mark for path, mark in now.items())
