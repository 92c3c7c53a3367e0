"""What a fresh tab compares: a run, and those beside it that can tell something."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from dashboard import cached_reads
from dashboard.cached_reads import Run
from sd35h5.comparing import telling_runs
from sd35h5.errors import Sd35h5Error


def reference(by_name: Mapping[str, Run]) -> str:
    """Return the run that is shown first."""
    return telling_runs.reference_of(list(by_name), lambda name: bool(others(by_name[name], by_name)))


def others(run: Run, by_name: Mapping[str, Run]) -> list[str]:
    """Return the runs that are proposed beside this one."""
    return telling_runs.ranked(_beside(run, by_name))


def why_none(run: Run, by_name: Mapping[str, Run]) -> str:
    """Say why none is proposed beside this one, "" where one is or there is no other."""
    found = _beside(run, by_name)
    return telling_runs.why_none(run.name, found) if found and not telling_runs.ranked(found) else ""


def _beside(run: Run, by_name: Mapping[str, Run]) -> dict[str, telling_runs.Beside]:
    found = {}
    for name, other in by_name.items():
        if name != run.name:
            with suppress(Sd35h5Error, OSError):  # told where that run is looked at
                found[name] = telling_runs.beside(cached_reads.made(run), cached_reads.made(other))
    return found
