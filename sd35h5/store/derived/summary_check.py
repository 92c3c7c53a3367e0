"""Whether the means that a file holds are those of its samples: asked by `verify --deep`."""

from __future__ import annotations

import h5py
import numpy as np

from sd35h5.store.derived.summary import GROUP, is_current, means, summaries_in
from sd35h5.store.processes.object_rules import Problem, told_as

RELATIVE = 1e-5  # sums in another order, or in float32, differ by less


def check_summary(file: h5py.File) -> None:
    """Make every mean anew and compare. Raises: Problem with the first that differs."""
    if GROUP not in file:
        return
    with told_as(f"{GROUP}/ fails its checksum or cannot be read: it is damaged"):
        if not is_current(file):
            raise Problem(f"{GROUP}/ is of other samples than the file holds: pack or slice it anew")
        held = summaries_in(file)
        for name, where, values in means(file):
            if name in held and not np.allclose(file[name][where], values, RELATIVE, 1e-9, equal_nan=True):
                raise Problem(f"{name} is not the mean of its samples: it was changed, or made of others")
