"""A file of prompts as its entries, each with where it stands: JSON, JSON Lines, or plain text one a line. Torch-free.

Files come from many programs: UTF-8 with and without a byte-order mark, UTF-16, and lines that end in CRLF.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sd35h5.errors import ConfigError

MAX_BYTES = 64 << 20
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins like that of UTF-16
_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv", ".xlsx", ".ods", ".parquet")
HOW = 'write ["a red apple", …] or [{"id": "…", "prompt": "…"}, …]'


class Entry(NamedTuple):
    """One entry of a file and where it stands: `prompts.jsonl, line 3`."""

    where: str
    value: object


def read_entries(name: str) -> list[Entry]:
    """Read a file of prompts.

    Raises:
        ConfigError: a sentence with the file and the line.
    """
    path = Path(name)
    if path.suffix.lower() in _TABLES:
        raise ConfigError(
            f"--prompts_json {name} is a table: save its prompts as JSON Lines, or as text, one a line"
        )
    text = _text(path, name)
    start = text.lstrip()[:1]
    if path.suffix.lower() in _LINES:
        return _json_lines(name, text)
    if path.suffix.lower() != ".json" and start not in ("[", "{"):
        return _lines(name, text)
    try:
        told = json.loads(text)
    except RecursionError:
        raise ConfigError(f"--prompts_json {name}: it is nested too deeply for a list of prompts") from None
    except ValueError as error:
        if start in ("{", '"') and _is_json(next(line for line in text.splitlines() if line.strip())):
            return _json_lines(name, text)  # whatever the file is called
        if path.suffix.lower() == ".txt":
            return _lines(name, text)  # a prompt may begin with a bracket
        raise ConfigError(f"--prompts_json {name} is no JSON: {_at(error)}") from None
    return _of_document(name, told)


def _text(path: Path, name: str) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"--prompts_json {name} is larger than {MAX_BYTES >> 20} MiB: is it a list of prompts?"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"--prompts_json {name}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"--prompts_json {name} cannot be read: {error.strerror or error}") from error
    if data.startswith(_WIDE_MARKS):
        raise ConfigError(f"--prompts_json {name} is in UTF-32: save it as UTF-8")
    mark, encoding = next(((mark, kind) for mark, kind in _MARKS if data.startswith(mark)), (b"", ""))
    data = data[len(mark) :]
    encoding = encoding or _unmarked(data)
    try:
        text = data.decode(encoding).replace("\ufeff", "")  # files that were joined have marks within
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "replace").count("\n") + 1
        raise ConfigError(
            f"--prompts_json {name}, line {line}: this is not {encoding.upper()}: save the file as UTF-8"
        ) from None


def _unmarked(data: bytes) -> str:
    """UTF-16 without a mark is told by its zero bytes: a list of prompts holds commas, quotes or line ends."""
    even, odd = data[:4096:2].count(0), data[1:4096:2].count(0)
    if max(even, odd) * 4 <= len(data[:4096]) // 2 or min(even, odd) * 8 > max(even, odd):
        return "utf-8"
    return "utf-16-be" if even > odd else "utf-16-le"


def _of_document(name: str, told: object) -> list[Entry]:
    if isinstance(told, Mapping) and not {"prompt", "text", "caption"} & set(told):
        told = told.get("prompts")
    if isinstance(told, Mapping):
        told = [told]
    if not isinstance(told, list):
        raise ConfigError(f"--prompts_json {name} is no list: {HOW}")
    return [Entry(f"{name}, entry {number}", value) for number, value in enumerate(told)]


def _json_lines(name: str, text: str) -> list[Entry]:
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entries.append(Entry(f"{name}, line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"--prompts_json {name}, line {number} is no JSON: {_at(error)}") from None
    return entries


def _lines(name: str, text: str) -> list[Entry]:
    return [
        Entry(f"{name}, line {number}", line.strip())
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _at(error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} at line {error.lineno}, column {error.colno}"
