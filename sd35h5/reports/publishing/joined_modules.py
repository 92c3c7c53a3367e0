"""Make one classic script of ES modules: pages that are opened from a file may not import modules.

Modules are our own and plain: named imports from files beside them, `export` before a declaration or as a list at the
end, no cycles. Each becomes a function that returns what it exports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_IMPORT = re.compile(r'^import\s*\{([^}]*)\}\s*from\s*"([^"]+)";?[ \t]*$', re.MULTILINE)
_DECLARED = re.compile(r"^export\s+((?:async\s+)?function\*?|const|let|class)\s+([\w$]+)", re.MULTILINE)
_LISTED = re.compile(r"^export\s*\{([^}]*)\};?[ \t]*$", re.MULTILINE)
_LEFT = re.compile(r"^(import|export)\b.*$", re.MULTILINE)


def joined(entry: str, modules: Mapping[str, str]) -> str:
    """Return the module `entry`, with all that it imports, as one script.

    Args: modules: file name -> text.
    Raises: ValueError for what this cannot join.
    """
    names: dict[str, str] = {}
    parts: list[str] = []

    def add(name: str) -> str:
        if name not in names:
            if name not in modules:
                raise ValueError(f"there is no module {name}")
            names[name] = ""  # while what it imports is added
            body = _body(name, modules[name], add)
            names[name] = f"module_{len(parts)}"
            parts.append(f"const {names[name]} = (() => {{\n{body}\n}})();")
        elif not names[name]:
            raise ValueError(f"{name} is imported by what it imports")
        return names[name]

    add(entry)
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();\n"


def _body(name: str, text: str, add: Callable[[str], str]) -> str:
    """Return a module as the inside of a function."""
    exported = []

    def imported(match: re.Match[str]) -> str:
        return f"const {{{_pairs(match[1], ': ')}}} = {add(match[2].removeprefix('./'))};"

    def declared(match: re.Match[str]) -> str:
        exported.append(match[2])
        return f"{match[1]} {match[2]}"

    def listed(match: re.Match[str]) -> str:
        exported.append(", ".join(f"{new}: {old}" for old, new in _renamed(match[1])))
        return ""

    for pattern, change in ((_IMPORT, imported), (_DECLARED, declared), (_LISTED, listed)):
        text = pattern.sub(change, text)
    if left := _LEFT.search(text):
        raise ValueError(f"{name}: this cannot be joined: {left[0]}")
    return f"{text}\nreturn {{{', '.join(exported)}}};"


def _renamed(listing: str) -> list[tuple[str, str]]:
    """Return the names of `a, b as c` as (a, a), (b, c)."""
    each = (item.split() for item in listing.split(",") if item.strip())
    return [(words[0], words[-1]) for words in each]


def _pairs(listing: str, between: str) -> str:
    return ", ".join(old if old == new else f"{old}{between}{new}" for old, new in _renamed(listing))
