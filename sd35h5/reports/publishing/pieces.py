"""What a published page is made of: files of some kind, each made when it is asked for, in the order of importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: kind -> what it is, the most important first: a page of limited size is filled in this order
KINDS = {
    "index": "the list of what is there",
    "numbers": "numbers of all samples for the first token",
    "pairs": "numbers of paired samples",
    "tokens": "tokens with their mass",
    "pictures": "pictures",
    "maps": "maps of words, mean over layers",
    "targets": "numbers for other tokens, groups and words",
    "provenance": "where the files come from",
    "cells": "tokens with their mass at single heads and steps",
    "samples": "numbers of single samples",
    "layers": "maps of words at single layers",
}


@dataclass(frozen=True)
class Piece:
    """A file of a page.

    Args:
        name: its path in the page's folder `data`; kind: of KINDS.
        make: returns its bytes, or None where nothing of it was measured.
        sample: of which sample it is, -1 where of all.
    """

    name: str
    kind: str
    make: Callable[[], bytes | None]
    sample: int = -1

    @property
    def rank(self) -> tuple[int, int]:
        """Its place in the order of importance: by kind, then by sample."""
        return list(KINDS).index(self.kind), self.sample
