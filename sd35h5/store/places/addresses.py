"""Addresses of files that are not on this machine, and what of them may be shown: never what may be a secret."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sd35h5.errors import StoreError

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(//|:)")  # two letters or more: C:\ is a drive


def is_address(place: str | Path) -> bool:
    """Whether a text is the address of a file elsewhere, as https://…, hf://…, s3://…"""
    return isinstance(place, str) and _ADDRESS.match(place) is not None


def place(text: str) -> Path | str:
    """What a command line names: a path, or an address as it is."""
    return text if is_address(text) else Path(text)


def shown_name(address: str) -> str:
    """The file's name in an address, without account, query and fragment, which may hold secrets."""
    path = unquote(urlsplit(address).path if "?" in address or "#" in address else address).rstrip("/")
    return path.rpartition("/")[2].rpartition("@")[2] or "the address"


def name_of(place: str | Path) -> str:
    """The name of a file here or elsewhere."""
    return shown_name(place) if is_address(place) else Path(place).name


def shown_host(address: str) -> str:
    """Where an address leads: its scheme and host, without account and port."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{(parts.netloc.rpartition('@')[2]).partition(':')[0]}"


def refuse_chained(address: str) -> None:
    """Refuse addresses that would be fetched whole, as those of an archive or of a copy in a cache."""
    if "::" in address:
        raise StoreError(
            f"{shown_name(address)}: an address of several parts joined by :: is fetched whole: give that of the file "
            "itself"
        )
