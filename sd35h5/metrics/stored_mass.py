"""The mass of keys as a store holds it: exact for a whole group, rounded for single tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics.targets import Target, all_positions, plain, refuse_empty, token_groups
from sd35h5.store.schema import GROUPS

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

PER_TOKEN = "masses per token are of the cond branch only, unless captured with --branches cond uncond"


def of_group(store: Store, group: str, branch: str, samples: list[int]) -> xr.DataArray:
    """Return the mass of a group, exact float32 in the file: float64 (sample, step, layer, head)."""
    mass = store.read("sinks/mass_group", sample=samples, branch=branch, query="image", group=group)
    refuse_empty(mass, f"group masses of branch {branch!r}")
    return plain(mass)


def of_groups(store: Store, prefix: str | tuple[str, ...], branch: str, samples: list[int]) -> xr.DataArray:
    """Return the summed mass of the groups whose names begin so: float64 (sample, step, layer, head)."""
    there = [name for name in store.labels("group") if name.startswith(prefix)]
    mass = store.read("sinks/mass_group", sample=samples, branch=branch, query="image", group=there)
    refuse_empty(mass, f"group masses of branch {branch!r}")
    each = [plain(mass.isel(group=place)) for place in range(len(there))]
    return sum(each[1:], each[0])


def of_tokens(store: Store, target: Target, branch: str, samples: list[int]) -> xr.DataArray:
    """Return the summed mass of a target's tokens, rounded in the file: float64 (sample, step, layer, head)."""
    tokens = store.sizes["token"]
    if target.kind == "token" and not 0 <= int(target.value) < tokens:
        raise StoreError(
            f"token {target.value} is not in {store.name}: its text has the tokens 0..{tokens - 1}"
        )
    rows = []
    for sample, positions in zip(samples, all_positions(store, target, branch, samples), strict=True):
        first = int(positions[0]) if positions.size else 0
        span = slice(first, int(positions[-1]) + 1) if positions.size else slice(0, 1)
        mass = store.read("sinks/mass_image", sample=[sample], branch=branch, token=span).astype(np.float64)
        picked = mass.isel(token=positions - first).sum("token", skipna=False)
        rows.append(picked if positions.size else picked * np.nan)
    found = xr.concat(rows, "sample")
    refuse_empty(found, f"masses of {target} for branch {branch!r}", PER_TOKEN)
    return plain(found)


def whole_group(store: Store, target: Target, branch: str, samples: list[int]) -> str | None:
    """Return the group whose mass is the target's own, if any: the group asked for, or the start token's."""
    if target.kind == "group":
        return str(target.value)
    if target.kind == "word" or not 0 <= int(target.value) < store.sizes["token"]:
        return None
    groups = token_groups(store, branch, samples)
    is_start = groups == GROUPS.index("clip_bos")
    return "clip_bos" if is_start[:, int(target.value)].all() and (is_start.sum(axis=1) == 1).all() else None
