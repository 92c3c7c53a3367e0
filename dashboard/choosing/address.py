"""The address of a view: what the page's URL says of the choices, read when a tab opens and written after each
change.

A widget's state is begun by `begin` with what the URL said under its name, once, else with its default; what the URL
said and this run has not is remembered for one sentence on the page. Pages are in the path (`/sinks?cell=3.5`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

import streamlit as st

from sd35h5 import metrics
from sd35h5.errors import Sd35h5Error
from sd35h5.metrics.targets import parse_target
from sd35h5.reports import view_address

T = TypeVar("T")
LONGEST = 2000  # characters of a value that is looked at: a prompt's word or a list of samples is shorter


def open_tab() -> None:
    """Remember what the URL said when this tab opened; values of a repeated name are lines."""
    if "address" not in st.session_state:
        st.session_state["address"] = _told()
        st.session_state["address_refused"] = []


def read_again() -> None:
    """Take up what the URL still says of a run that was gone for a time: widgets that are not drawn forget theirs."""
    st.session_state["address"] = {name: text for name, text in _told().items() if name != view_address.RUN}


def _told() -> dict[str, str]:
    return {name: "\n".join(st.query_params.get_all(name))[:LONGEST] for name in st.query_params}


def begin(key: str, name: str, default: T, read: Callable[[str], T | None]) -> None:
    """Give the state `key` its first value: the URL's under `name` if `read` can take it, else the default."""
    text = st.session_state["address"].pop(name, None)
    if text is not None:
        value = read(text)
        if value is None:
            st.session_state["address_refused"].append(name)
        else:
            st.session_state[key] = value
    if key not in st.session_state:
        st.session_state[key] = default


def write(name: str, value: str | list[str], default: str | list[str] = "") -> None:
    """Put a choice into the URL, or take it out where it is the default."""
    if value == default:
        st.query_params.pop(name, None)
    elif isinstance(value, list) and st.query_params.get_all(name) != value:
        st.query_params[name] = value
    elif isinstance(value, str) and st.query_params.get(name) != value:
        st.query_params[name] = value


def choice(
    draw: Callable[..., T | None],
    key: str,
    name: str,
    default: T,
    read: Callable[[str], T | None],
    text_of: Callable[[T], str] = str,
) -> T:
    """Draw a widget whose choice the URL keeps under `name`. Returns: its value, the default where it has none."""
    begin(key, name, default, read)
    value = draw(key=key)
    value = default if value is None else value
    write(name, text_of(value), text_of(default))
    return value


def switch(draw: Callable[..., bool], key: str, name: str, default: bool) -> bool:
    """Draw a toggle that the URL keeps as 1 or 0."""
    return choice(draw, key, name, default, {"1": True, "0": False}.get, lambda on: "1" if on else "0")


def refused() -> str:
    """Return a sentence about what the URL asked for and is not there, "" when it all was."""
    names = st.session_state["address_refused"]
    if not names:
        return ""
    return f"The link also asked for another {', '.join(names)}, which this run does not have: the default is shown."


# ---- values as text: each reader returns None for what it cannot take ----------------------------------------


def one_of(options: Iterable[T], text_of: Callable[[T], str] = str) -> Callable[[str], T | None]:
    """Return a reader of one of these options."""
    known = {text_of(option): option for option in options}
    return known.get


def several_of(
    options: Iterable[T], separator: str = ",", read_one: Callable[[str], T | None] | None = None
) -> Callable[[str], list[T] | None]:
    """Return a reader of a list of these options; `-` is an empty list."""
    read_one = read_one or {str(option): option for option in options}.get

    def read(text: str) -> list[T] | None:
        found = [] if text == view_address.NONE else [read_one(name) for name in text.split(separator)]
        return None if None in found else found

    return read


def run_of(names: Collection[str]) -> Callable[[str], str | None]:
    """Return a reader of a run's name, also of what it was called where a folder above or below was looked at."""

    def read(text: str) -> str | None:
        if text in names:
            return text
        found = [name for name in names if name.endswith(f"/{text}") or text.endswith(f"/{name}")]
        return found[0] if len(found) == 1 else None

    return read


def span_within(first: int, last: int) -> Callable[[str], tuple[int, int] | None]:
    """Return a reader of `3-5` or `4` within first..last."""

    def read(text: str) -> tuple[int, int] | None:
        ends = [position(part) for part in text.split("-")]
        if len(ends) > 2 or None in ends:
            return None
        low, high = ends[0], ends[-1]
        return (low, high) if first <= low <= high <= last else None

    return read


def cell_within(layers: Collection[int], heads: Collection[int]) -> Callable[[str], tuple[int, int] | None]:
    """Return a reader of `layer.head`."""

    def read(text: str) -> tuple[int, int] | None:
        layer, _, head = text.partition(".")
        cell = position(layer), position(head)
        return cell if None not in cell and cell[0] in layers and cell[1] in heads else None

    return read


def position(text: str) -> int | None:
    """Return the number that the text is, None for all but 1 to 6 plain digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None


def target(text: str) -> metrics.Target | None:
    """Return the target that `token:5`, `group:t5_pad` or `word:cat` names."""
    try:
        return parse_target(text)
    except (Sd35h5Error, ValueError):
        return None


def target_text(chosen: metrics.Target) -> str:
    """Return what `target` reads back."""
    return f"{chosen.kind}:{chosen.value}"


def span_text(places: tuple[int, ...]) -> str:
    """Return what `span_within` reads back."""
    return str(places[0]) if len(places) == 1 else f"{places[0]}-{places[-1]}"
