"""The list of a page: what it reads first, of runs and what is held of them, of names and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from sd35h5 import __version__
from sd35h5.comparing import telling_runs
from sd35h5.comparing.paired_samples import Pairing
from sd35h5.figures import overlays, scales
from sd35h5.metrics.piecewise import AT_ONCE
from sd35h5.reports import view_address
from sd35h5.reports.publishing import pair_pieces, shell
from sd35h5.reports.publishing.published_runs import PublishedRun, listed
from sd35h5.store.showable import all_showable, as_json


def title(runs: Sequence[PublishedRun]) -> str:
    """Return what the page is called."""
    names = ", ".join(run.name for run in runs[:3])
    return f"Attention of {names}{' …' if len(runs) > 3 else ''}"


def page_list(
    runs: Sequence[PublishedRun],
    found: dict[tuple[int, int], Pairing],
    tables: Sequence[str],
    absent: set[str],
    left_out: dict[str, dict],
) -> bytes:
    """Return what the page reads first: which runs there are, what is held of them, names and colours."""
    made = {run.name: telling_runs.made(run.store) for run in runs}
    first = telling_runs.reference_of(list(made), partial(_is_told_beside, made))  # as the dashboard opens
    told = {
        "made_by": f"sd35h5 {__version__}", "title": title(runs), "first": first, "runs": [listed(run) for run in runs],
        "pairs": pair_pieces.listed(found, list(made.values())), "absent": sorted(absent), "left_out": left_out,
        "at_once": AT_ONCE, "parameters": view_address.PARAMETERS, "none": view_address.NONE, "pages": shell.PAGES,
        "tables": list(tables),
        "colors": {
            "groups": scales.GROUP_COLORS, "runs": scales.RUN_COLORS, "mark": scales.MARK,
            "cells": scales.SEQUENTIAL, "changes": scales.DIVERGING,
            "map": overlays.colored(np.linspace(0, 1, 33)).tolist(),
        },
    }  # fmt: skip
    return as_json(all_showable(told), allow_nan=False).encode()


def _is_told_beside(made: Mapping[str, telling_runs.Made], name: str) -> bool:
    """Whether another run tells something beside this one."""
    return any(telling_runs.beside(made[name], one).tells for other, one in made.items() if other != name)
