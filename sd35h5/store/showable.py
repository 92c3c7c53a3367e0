"""Texts of files made safe: what a file may hold, and how anything is shown in a chart, a page, a terminal or a table.

A control character ends the process that draws a chart with it, a lone surrogate cannot be written anywhere, a
direction override makes a name read as another, and a spreadsheet runs a cell that begins with `=`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

#: no text of a file may hold these: they are no characters of XML, and end the renderer of charts
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
#: what acts in place of being seen: those, the other controls, line breaks, overrides of the direction of writing
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_BREAKS = re.compile("[ \t\n\r\v\f\x85\u2028\u2029]+")
_DEEPEST = 40  # of nested JSON; what lies deeper is no configuration
_KEPT = "\t\n\r"  # in what may have several lines
_FORMULA = re.compile(r"\s*[=+\-@]|[\t\r]")


def forbidden(text: str) -> str:
    """Name the first character that no text of a file may hold: `U+001B at character 12`, "" for none."""
    found = _FORBIDDEN.search(text)
    return f"U+{ord(found[0]):04X} at character {found.start()}" if found else ""


def forbidden_within(value: Any) -> bool:
    """Whether any text of parsed JSON holds such a character."""
    found: list[str] = []
    _each_text(value, lambda text: found.append(forbidden(text)) or text)
    return any(found)


def well_formed(text: str) -> str:
    """Put U+FFFD in place of what no text of a file may hold; halves of a surrogate pair become their character."""
    if not _FORBIDDEN.search(text):
        return text
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _FORBIDDEN.sub("\ufffd", whole)


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


def acts(text: str) -> bool:
    """Whether a text holds what acts in place of being seen, line breaks too."""
    return _ACTING.search(text) is not None


def showable(text: object, longest: int | None = None) -> str:
    r"""Return any text as one line in which every character is seen: what would act is written as `\x1b` or `\u202e`.

    Args: longest: in characters; more ends in `…`.
    """
    line = seen(_BREAKS.sub(" ", str(text)).strip())
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def seen(text: str) -> str:
    """Return a text of several lines in which every character is seen."""
    return _ACTING.sub(_told, text)


def all_showable(value: Any) -> Any:
    """Return JSON with `showable` of every text in it that needs it, names too."""
    return _each_text(value, lambda text: showable(text) if acts(text) else text)


def as_json(value: Any, **options: Any) -> str:
    r"""Return JSON in which every character is seen, what would act as `\u001b`."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _ACTING.sub(lambda found: found[0] if found[0] in _KEPT else f"\\u{ord(found[0]):04x}", text)


def cell(value: object) -> object:
    """Return what a table of comma-separated values holds: a text that a spreadsheet would run begins with `'`."""
    if not isinstance(value, str):
        return value
    return seen(f"'{value}" if _FORMULA.match(value) else value)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_each_text(name, change): _each_text(one, change) for name, one in value.items()}
    return [_each_text(one, change) for one in value] if isinstance(value, list | tuple) else value


def _told(found: re.Match[str]) -> str:
    code = ord(found[0])
    return found[0] if found[0] in _KEPT else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
