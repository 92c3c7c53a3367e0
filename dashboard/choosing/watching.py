"""The watch over the folders of the runs' list: the page is drawn anew when a run comes, goes or is finished."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR

import streamlit as st

from dashboard import run_list
from sd35h5.store.places.runs_in_folders import stores_in
from sd35h5.store.schema import SUFFIX

EVERY = 5.0  # seconds
Look = Mapping[str, tuple[int, ...]]  # of each store's path what tells that it is another


@st.fragment(run_every=EVERY)
def watch(arguments: tuple[str, ...], root: Path, shown: Look) -> None:
    """Look at names and times every few seconds, and draw the page anew where they have changed and come to rest.

    Args: shown: what there was when the page was drawn. Nothing but this function runs while all is as it was.
    """
    if st.session_state.get("watched_for") is not shown:  # the page was drawn just now
        st.session_state["watched_for"], st.session_state["watched"] = shown, shown
        return
    now = look_lately(arguments, root)
    before, st.session_state["watched"] = st.session_state["watched"], now
    if has_changed(shown, before, now):
        st.rerun()


@st.cache_data(ttl=EVERY / 2, max_entries=4, show_spinner=False)
def look_lately(arguments: tuple[str, ...], root: Path) -> Look:
    """Return a look that is a moment old at most: tabs that watch the same folders look once."""
    return look(arguments, root)


def look(arguments: tuple[str, ...], root: Path) -> Look:
    """Return what there is at the given paths: a file by its size and times, a capture under way by whether it has a
    sample, as each one that it seals is no reason to draw a page anew."""
    found: dict[str, tuple[int, ...]] = {}
    for place in run_list.given(arguments, root):
        with suppress(OSError):  # gone, or not to be listed: then it has no stores
            found |= {str(path): _mark(path) for path in stores_in(place).stores}
    return {path: mark for path, mark in found.items() if mark}


def _mark(path: Path) -> tuple[int, ...]:
    """Return () for what is not there."""
    for place in (path, run_list.parts_of(path)):
        with suppress(OSError):
            told = place.stat()
            if S_ISDIR(told.st_mode):
                return (any(entry.name.endswith(SUFFIX) for entry in place.iterdir()),)
            return told.st_size, told.st_mtime_ns, told.st_ino
    return ()


def has_changed(shown: Look, before: Look, now: Look) -> bool:
    """Whether something is other than shown, and was so at the last look, too: a file that is being copied waits."""
    gone = any(path not in now and path not in before for path in shown)
    return gone or any(shown.get(path) != mark and before.get(path) == mark for path, mark in now.items())
