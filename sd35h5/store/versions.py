"""Which version this program is, and which of the format it may read: told by two attributes of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from sd35h5.store import schema

_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})")


def program() -> str:
    """This program and its version, as files name it."""
    try:
        return f"sd35h5 {version('sd35h5')}"
    except PackageNotFoundError:  # a bare checkout
        return "sd35h5 (checkout)"


def min_reader(scales: Iterable[str]) -> str:
    """The oldest version that understands a file with these scales: 1.0 would leave measurements out of its hash."""
    return "1.1" if "head_attn2" in scales else "1.0"


def version_of(text: str) -> tuple[int, int]:
    """Major and minor of a version; (0, 0) for what is none."""
    found = _VERSION.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def version_problem(told: Mapping[str, str]) -> str:
    """Say why a file may not be read, "" if it may: another major version, or one that asks for a later reader.

    Args: told: `schema_version` and `min_reader` of a file, "" where it lacks them.
    """
    own = tuple(map(int, schema.SCHEMA_VERSION.split(".")))
    for name in ("schema_version", "min_reader"):
        text = told.get(name, "")
        if not text:
            return f"it has no {name}"
        shown = "".join(c if c.isprintable() else "?" for c in text[:40])
        found = _VERSION.fullmatch(text)
        if not found or int(found[1]) != own[0]:
            return f"its {name} is {shown}, this reader knows {own[0]}.x: update sd35h5"
        if name == "min_reader" and (int(found[1]), int(found[2])) > own:
            return f"it asks for a reader of version {shown}, this one is of {schema.SCHEMA_VERSION}: update sd35h5"
    return ""
