"""Texts from files, made fit for pages, terminals and JSON: no half characters, and none that act."""

from __future__ import annotations

from typing import Any

from sd35h5.store.showable import FORBIDDEN

_DEEPEST = 40  # of nested JSON; what lies deeper is no configuration


def well_formed(text: str) -> str:
    """Put U+FFFD in place of what no text of a file may hold: control characters end renderers, and lone surrogates,
    which broken UTF-8 and JSON's \\ud800 become, encode to nothing. Places in the text stay what they were."""
    return FORBIDDEN.sub("\ufffd", text)


def well_formed_json(value: Any, depth: int = 0) -> Any:
    """Return parsed JSON with well-formed texts, also as names."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict | list) and depth == _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {well_formed(str(name)): well_formed_json(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [well_formed_json(each, depth + 1) for each in value]
    return value


def as_text(value: object) -> str:
    """Return a value of an attribute or a dataset as well-formed text."""
    return well_formed(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
