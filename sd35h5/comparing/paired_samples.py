"""Pair the samples of two runs by their pairing key, and take differences of what is paired.

The pairing key is a hash of everything that must be equal (prompt, seed, steps, guidance, size …); weights
and gates may differ. A sample without a partner is listed with the field that differs, never averaged
silently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5 import metrics
from sd35h5.comparing.run_settings import IMPORTED, is_free, lacks_seeds, setting_differences, settings_of
from sd35h5.errors import StoreError
from sd35h5.metrics.averaging import finite_mean
from sd35h5.metrics.catalogue import computed
from sd35h5.metrics.piecewise import in_pieces
from sd35h5.store.schema import UNKNOWN_SEED

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

SAMPLE_FIELDS = ("prompt", "negative_prompt", "seed")
PAIR_COLUMNS = ["reference_sample", "other_sample", "prompt_id", "prompt", "seed", "pairing_key"]
MISMATCH_COLUMNS = ["field", "reference", "other"]
UNPAIRED_COLUMNS = ["run", "sample", "prompt", "seed", "field", "value", "nearest"]


@dataclass(frozen=True)
class Pairing:
    """Which samples of two runs belong together.

    Args:
        pairs: a row a pair, columns PAIR_COLUMNS.
        unpaired: a row a sample of either run that has no partner, columns UNPAIRED_COLUMNS: `field` is what
            differs from the nearest sample of the other run, `value` and `nearest` are the two values.
        mismatch: a row a field that differs although samples are paired, because the caller allowed it: columns
            field, reference, other.
    """

    reference: str
    other: str
    pairs: pd.DataFrame
    unpaired: pd.DataFrame
    mismatch: pd.DataFrame = dataclasses.field(default_factory=lambda: pd.DataFrame(columns=MISMATCH_COLUMNS))


def pair(
    reference: Store,
    other: Store,
    names: tuple[str, str] | None = None,
    allow_mismatch: Sequence[str] = (),
) -> Pairing:
    """Pair two stores' samples by pairing key; a key that comes twice is paired in order of appearance.

    Args:
        names: what to call the two runs; the stores' own names when None.
        allow_mismatch: fields (settings, or prompt, negative_prompt, seed) that may differ: samples are then
            paired by what is left of prompt, negative prompt and seed, if all other settings are equal. What
            does differ is in the result's `mismatch`. `imported` allows all that the files of another tool do not
            tell, the seed too.
    """
    first, second = names or (reference.name, other.name)
    for name, store in ((first, reference), (second, other)):
        if not len(store):
            raise StoreError(
                f"{name} has no sealed sample yet to compare: wait for the first of {store.planned}"
            )
    fields = setting_differences({"reference": reference, "other": other}, free=False)  # names may be equal
    keys, lacks_seed = ["pairing_key"], any(map(lacks_seeds, (reference, other)))
    told = [name for name in SAMPLE_FIELDS if name != "seed" or not lacks_seed]
    if allow_mismatch:
        _refuse_unknown(allow_mismatch, reference, other)
        if IMPORTED in allow_mismatch and lacks_seed:
            allow_mismatch = [*allow_mismatch, "seed"]
        fields = fields[~fields["field"].isin(allow_mismatch)]
        if fields.empty:
            keys = [name for name in SAMPLE_FIELDS if name not in allow_mismatch]
    left, right = (_numbered(store.samples, keys) for store in (reference, other))
    keys = [*keys, "occurrence"]
    both = left.merge(right[[*keys, "sample"]], on=keys, suffixes=("", "_other"))
    both = both.iloc[:0] if IMPORTED in set(fields["field"]) else both  # on request only
    pairs = both.rename(columns={"sample": "reference_sample", "sample_other": "other_sample"})[PAIR_COLUMNS]
    alone = [
        *_alone(first, left, pairs["reference_sample"], right, fields, told, flip=False),
        *_alone(second, right, pairs["other_sample"], left, fields, told, flip=True),
    ]
    return Pairing(
        first,
        second,
        pairs.reset_index(drop=True),
        pd.DataFrame(alone, columns=UNPAIRED_COLUMNS),
        _mismatch(reference, other, pairs, allow_mismatch),
    )


def paired_values(
    reference: Store,
    other: Store,
    pairing: Pairing,
    metric: str = "first_token_mean",
    target: metrics.Target = metrics.FIRST_TOKEN,
    branch: str = "cond",
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a metric of both runs for the paired samples only, in the order of `pairing.pairs`.

    Args: metric: a name of metrics.MEASURES.
    Returns: two float64 (sample, step, layer, head), `sample` being the pair's number, 0-based, in both;
        one step, the mean, where the runs have other numbers of steps and the pairing allowed it.
    """
    if pairing.pairs.empty:
        raise StoreError(f"no sample of {pairing.other} pairs with one of {pairing.reference}")
    sides = []
    for store, column in ((reference, "reference_sample"), (other, "other_sample")):
        values = computed(store, metric, target, branch, list(pairing.pairs[column]))
        sides.append(values.assign_coords(sample=np.arange(values.sizes["sample"])))
    if not pairing.mismatch.empty and sides[0].sizes["step"] != sides[1].sizes["step"]:
        sides = [side.mean("step", skipna=True).expand_dims("step", 1) for side in sides]
    if sides[0].shape != sides[1].shape:
        raise StoreError(
            f"{pairing.reference} has (step, layer, head) = {sides[0].shape[1:]}, "
            f"{pairing.other} has {sides[1].shape[1:]}"
        )
    refuse_other_numbers(sides[0], sides[1], pairing)
    return sides[0], sides[1]


def refuse_other_numbers(first: xr.DataArray, second: xr.DataArray, pairing: Pairing) -> None:
    """Refuse to set values of other layers, heads or steps against each other: of slices, say.

    Raises: StoreError naming them.
    """
    for dim in ("step", "layer", "head"):
        one, other = (side[dim].values.tolist() for side in (first, second))
        if one != other:
            told, there = (", ".join(map(str, numbers[:12])) for numbers in (one, other))
            raise StoreError(
                f"{pairing.reference} holds the {dim}s {told}, {pairing.other} {there}: cut both alike"
            )


def step_means(
    reference: Store, other: Store, pairing: Pairing, name: str, branch: str = "cond"
) -> tuple[xr.DataArray, ...]:
    """Return difference, reference and other of every pair, mean over steps, a few pairs read at a time.

    Returns: three float32 (sample, layer, head).
    """

    def make(some: list[int]) -> xr.DataArray:
        part = dataclasses.replace(pairing, pairs=pairing.pairs.iloc[some])
        before, after = paired_values(reference, other, part, name, branch=branch)
        each = (difference(before, after), before, after)
        return xr.concat([finite_mean(values, ["step"]) for values in each], "part")

    means = in_pieces(make, range(len(pairing.pairs)))
    return tuple(means.isel(part=place) for place in range(3))


def difference(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Return second − first, pair by pair: float64 (sample, step, layer, head), in the metric's own unit."""
    change = np.subtract(second.values, first.values, dtype=np.float64)
    return xr.DataArray(change, dims=first.dims, coords=first.coords)


def must_be_allowed(reference: Store, other: Store, pairing: Pairing, allowed: Sequence[str]) -> list[str]:
    """Return all fields that `allow_mismatch` has to name for samples to pair, those it names already too."""
    settings = setting_differences({"reference": reference, "other": other}, free=False)["field"]
    of_samples = {*pairing.unpaired["field"], *allowed}
    return [*settings, *(name for name in SAMPLE_FIELDS if name in of_samples and name not in set(settings))]


def sentence(first: xr.DataArray, second: xr.DataArray, pairing: Pairing, what: str) -> str:
    """Say the mean of both runs over their pairs, and the change, in one sentence made from the numbers."""
    before, after = (float(finite_mean(values, values.dims)) for values in (first, second))
    change = f"{(after - before) / before:+.1%}" if before else "from zero"
    pairs = f"{len(pairing.pairs)} pair{'s' if len(pairing.pairs) != 1 else ''}"
    means = f"{before:.3g} in {pairing.reference}, {after:.3g} in {pairing.other}"
    return f"{what}: {means} ({change}, mean of {pairs})."


def _numbered(samples: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    table = samples.copy()
    table["occurrence"] = table.groupby(keys).cumcount() if keys else range(len(table))
    return table


def _refuse_unknown(allowed: Sequence[str], reference: Store, other: Store) -> None:
    known = {*SAMPLE_FIELDS, *settings_of(reference, free=False), *settings_of(other, free=False)}
    unknown = sorted(name for name in set(allowed) - known if not is_free(name))
    if unknown:
        raise StoreError(
            f"allow_mismatch names {', '.join(unknown)}, which is no field: the fields are {', '.join(sorted(known))}"
        )


def _mismatch(reference: Store, other: Store, pairs: pd.DataFrame, allowed: Sequence[str]) -> pd.DataFrame:
    """Return the allowed fields that do differ: field, reference, other (for fields of samples, in how many)."""
    if not allowed or pairs.empty:
        return pd.DataFrame(columns=MISMATCH_COLUMNS)
    fields = setting_differences({"reference": reference, "other": other}, free=False)
    rows = fields[fields["field"].isin(allowed)].values.tolist()
    left = reference.samples.loc[pairs["reference_sample"]]
    right = other.samples.loc[pairs["other_sample"]]
    for name in (name for name in SAMPLE_FIELDS if name in allowed):
        differ = left[name].to_numpy() != right[name].to_numpy()
        if differ.any():
            values = (_shown(name, side[name].to_numpy()[differ][0]) for side in (left, right))
            rows.append([name, *(f"{value} (first of {differ.sum()} pairs)" for value in values)])
    return pd.DataFrame(rows, columns=MISMATCH_COLUMNS)


def _alone(
    run: str,
    own: pd.DataFrame,
    paired: pd.Series,
    others: pd.DataFrame,
    fields: pd.DataFrame,
    told: Sequence[str],
    flip: bool,
) -> list[list[object]]:
    rows = []
    for sample in own[~own["sample"].isin(paired)].to_dict("records"):
        field, value, nearest = _reason(sample, others, fields, told, flip)
        rows.append([run, sample["sample"], sample["prompt"], sample["seed"], field, value, nearest])
    return rows


def _reason(
    sample: dict, others: pd.DataFrame, fields: pd.DataFrame, told: Sequence[str], flip: bool
) -> tuple[str, str, str]:
    """Return (field, own value, the other run's value) for the nearest sample of the other run."""
    near, is_imported = others, IMPORTED in set(fields["field"])
    for name in told:
        equal = near[near[name] == sample[name]]
        if equal.empty:
            there = sorted({_shown(name, value) for value in near[name]})
            return name, _shown(name, sample[name]), "; ".join(there[:3]) + (" …" if len(there) > 3 else "")
        near = equal
    if not is_imported and (near["pairing_key"] == sample["pairing_key"]).any():
        return "repetition", "the same sample again", "fewer of it"
    if len(fields):
        own, nearest = (2, 1) if flip else (1, 2)
        names, mine, theirs = (
            "; ".join(str(row[i]) for row in fields.itertuples(index=False)) for i in (0, own, nearest)
        )
        return names, mine, theirs
    return "pairing_key", _short(sample["pairing_key"], 12), _short(near["pairing_key"].iloc[0], 12)


def _shown(name: str, value: object) -> str:
    return "unknown" if name == "seed" and value == UNKNOWN_SEED else _short(value)


def _short(value: object, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"
