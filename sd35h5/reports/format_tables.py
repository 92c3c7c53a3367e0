"""The tables of docs/format.md, made from the schema: `python -m sd35h5.reports.format_tables docs/format.md`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sd35h5.store.schema import SCALES, SUMMARIES, VARIABLES, Variable

BEGIN, END = (
    "<!-- {name}: made by python -m sd35h5.reports.format_tables docs/format.md -->\n",
    "<!-- end {name} -->",
)


def updated(text: str) -> str:
    """The document with its tables made anew."""
    for name, table in TABLES.items():
        begin, end = BEGIN.format(name=name), END.format(name=name)
        before, _, rest = text.partition(begin)
        if not rest or end not in rest:
            raise ValueError(f"the document has no table {name!r} between its two comments")
        text = before + begin + table() + end + rest.partition(end)[2]
    return text


def scale_table() -> str:
    """A row a scale."""
    rows = [
        (f"`{s.name}`", f"`{s.along}`", s.dtype, "" if s.labels else s.units,
         ", ".join(f"{flag} {word}" for flag, word in enumerate(s.labels)),
         f"{SCALES[s.along].cap:,}", s.long_name)
        for s in SCALES.values()
    ]  # fmt: skip
    return _table(("scale", "along", "type", "units", "flags", "at most", "meaning"), rows)


def variable_table() -> str:
    """A row a variable."""
    return _variables(VARIABLES)


def summary_table() -> str:
    """A row a mean."""
    return _variables(SUMMARIES)


def _variables(specs: Mapping[str, Variable]) -> str:
    rows = [
        (f"`{v.name}`", " ".join(f"`{dim}`" for dim in v.dims), v.dtype + (" [r]" if v.rounded else ""),
         _chunk(v), _fill(v), "" if v.is_text or v.labels else v.units, v.long_name)
        for v in specs.values()
    ]  # fmt: skip
    return _table(("variable", "dimensions", "type", "chunk", "fill", "units", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "scales": scale_table,
    "variables": variable_table,
    "summaries": summary_table,
}


def _chunk(spec: Variable) -> str:
    """The chunk rule with a letter for a whole dimension, as a file of unbounded sizes would have it."""
    if spec.is_text:
        return "contiguous"
    unbounded = spec.chunks(dict.fromkeys(spec.dims, 1 << 40))
    return ", ".join("all" if length == 1 << 40 else str(length) for length in unbounded)


def _fill(spec: Variable) -> str:
    return "" if spec.fill is None else str(spec.fill)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def lines() -> Iterator[str]:
        yield f"| {' | '.join(head)} |"
        yield f"|{'|'.join(' --- ' for _ in head)}|"
        for row in rows:
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(updated(document.read_text(encoding="utf-8")), encoding="utf-8")
