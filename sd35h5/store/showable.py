"""Texts of files made safe: what a file may hold, and how anything is shown in a chart, a page, a terminal or a table.

A control character ends the process that draws a chart with it, a lone surrogate cannot be written anywhere, a
direction override makes a name read as another, and a spreadsheet runs a cell that begins with `=`.
"""

from __future__ import annotations

import re
from typing import Any

#: no text of a file may hold these: they are no characters of XML, and end the renderer of charts
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
#: what acts in place of being seen: those, the other controls, and overrides of the direction of writing
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_BREAKS = re.compile("[ \t\n\r\v\f\x85\u2028\u2029]+")
_FORMULA = re.compile(r"\s*[=+\-@\t\r]")
_STAND_IN = "\ufffd"


def forbidden(text: str) -> str:
    """Name the first character that no text of a file may hold: `U+001B at character 12`, "" for none."""
    found = _FORBIDDEN.search(text)
    return f"U+{ord(found[0]):04X} at character {found.start()}" if found else ""


def readable(value: Any) -> Any:
    """Return a text, or JSON with texts anywhere in it, with a stand-in for each character that no file may hold:
    places in the text stay what they were."""
    if isinstance(value, str):
        return _FORBIDDEN.sub(_STAND_IN, value)
    if isinstance(value, dict):
        return {readable(name): readable(one) for name, one in value.items()}
    return [readable(one) for one in value] if isinstance(value, list) else value


def showable(text: object, longest: int | None = None) -> str:
    r"""Return any text as one line in which every character is seen: what would act is written as `\x1b` or `\u202e`.

    Args: longest: in characters; more ends in `…`.
    """
    line = _ACTING.sub(_told, _BREAKS.sub(" ", str(text)))
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def all_showable(value: Any) -> Any:
    """Return JSON with `showable` of every text in it, names too."""
    if isinstance(value, str):
        return showable(value) if _ACTING.search(value) or _BREAKS.search(value) else value
    if isinstance(value, dict):
        return {all_showable(name): all_showable(one) for name, one in value.items()}
    return [all_showable(one) for one in value] if isinstance(value, list | tuple) else value


def cell(value: object) -> object:
    """Return what a table of comma-separated values holds: a text that a spreadsheet would run begins with `'`."""
    if not isinstance(value, str):
        return value
    text = showable(value)
    return f"'{text}" if _FORMULA.match(text) else text


def _told(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
