"""Which runs can tell something beside each other: what they are made of differs, and samples of them pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sd35h5.comparing.run_settings import IMPORTED

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

MOST = 3  # runs that are proposed beside another
TRIED = 8  # runs that are tried as the one that others are compared with
_GATES = ("gate_type", "gate_activation", "gate_target", "gate_layers", "gate_override", "gate_weights")
_INTERVENTIONS = ("intervention", "intervention_control")
_TOLD = (*_GATES, *_INTERVENTIONS)
#: components that attention does not come from, or told apart
_NOT_WEIGHTS = frozenset({"scheduler", "vae", "gates", "lora"})
_NAMES = ("transformer", "dit_path", "clip_l_path", "clip_g_path", "t5xxl_path", "weights")


@dataclass(frozen=True)
class Beside:
    """What a run tells beside another: in what of weights, adapters, gates, intervention they differ; how many samples
    have an equal pairing key."""

    differs: tuple[str, ...]
    pairs: int

    @property
    def tells(self) -> bool:
        """Whether there is something to compare."""
        return bool(self.differs) and self.pairs > 0


@dataclass(frozen=True)
class Made:
    """What a run is made of, as far as its file tells, and which samples it has.

    Args:
        fingerprints, hashes: of its models, and of their files, by component; names: of its model, without folders.
        adapters: as text; told: attributes of gates and interventions; keys: pairing keys of its samples.
    """

    fingerprints: dict[str, str]
    hashes: dict[str, str]
    names: tuple[str, ...]
    adapters: str
    told: dict[str, str]
    is_imported: bool
    keys: frozenset[str]


def made(store: Store) -> Made:
    """Return what a run is made of."""
    parts = _components(store)
    return Made(
        {name: str(part["fingerprint"]) for name, part in parts.items() if part.get("fingerprint")},
        {name: told for name, part in parts.items() if (told := _hashes(part))},
        _names(store),
        _adapters(store, parts),
        {name: str(store.attributes[name]) for name in _TOLD if store.attributes.get(name)},
        IMPORTED in store.config,
        frozenset(store.samples["pairing_key"]),
    )


def beside(reference: Made, other: Made) -> Beside:
    """Return what one run tells beside another; samples of imports pair on request only."""
    pairs = 0 if reference.is_imported or other.is_imported else len(reference.keys & other.keys)
    return Beside(differing_parts(reference, other), pairs)


def differing_parts(reference: Made, other: Made) -> tuple[str, ...]:
    """Return what of `weights`, `adapters`, `gates` and `intervention` differs, as far as both files tell.

    Weights are told by their fingerprints, where a file has none by the sha256 of their files, else by their names
    without folders: the same model lies elsewhere on another machine.
    """
    found = []
    if reference.adapters != other.adapters:
        found.append("adapters")
    elif _have_other_weights(reference, other):
        found.append("weights")
    if _have_other_gates(reference, other):
        found.append("gates")
    if _tell_otherwise(reference, other, _INTERVENTIONS):
        found.append("intervention")
    return tuple(found)


def ranked(found: Mapping[str, Beside]) -> list[str]:
    """Return the runs that tell something, those with most pairs first, at most MOST. Args: found: by their names."""
    telling = [name for name, one in found.items() if one.tells]
    return sorted(telling, key=lambda name: -found[name].pairs)[:MOST]


def reference_of(names: Sequence[str], tells: Callable[[str], bool]) -> str:
    """Return the run that others are compared with: a baseline before others, and one that another tells something
    beside. Args: tells: whether another run does beside this one; asked of at most TRIED."""
    ordered = sorted(names, key=lambda name: "baseline" not in name)
    telling = filter(tells, ordered[:TRIED] if len(ordered) > 1 else [])
    return next(telling, ordered[0])


def why_none(reference: str, found: Mapping[str, Beside]) -> str:
    """Say why no run is proposed beside another. Args: found: what each of the others tells beside it."""
    alike = [name for name, one in found.items() if not one.differs]
    alone = [f"{name} ({' and '.join(one.differs)})" for name, one in found.items() if one.differs]
    told = []
    if alike:
        what = "is" if len(alike) == 1 else "are"
        told.append(
            f"{_listed(alike)} {what} not known to differ from it in weights, adapters, gates or intervention"
        )
    if alone:
        what = "differs" if len(alone) == 1 else "differ"
        told.append(f"{_listed(alone)} {what}, but no sample pairs")
    return f"No run here tells anything beside {reference}: {'; '.join(told)}."


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _components(store: Store) -> dict[str, Mapping[str, Any]]:
    found = store.provenance.get("components")
    parts = found.items() if isinstance(found, Mapping) else ()
    return {str(name): part for name, part in parts if isinstance(part, Mapping)}


def _hashes(part: Mapping[str, Any]) -> str:
    """The hashes of a component's files, whatever their names; "" where it has none."""
    files = part.get("files") if isinstance(part.get("files"), list) else []
    told = [part, *(file for file in files if isinstance(file, Mapping))]
    return " ".join(sorted(str(one["sha256"]) for one in told if one.get("sha256")))


def _differ(reference: Made, other: Made, name: str) -> bool | None:
    """Whether a component differs; None where nothing tells."""
    for own, theirs in ((reference.fingerprints, other.fingerprints), (reference.hashes, other.hashes)):
        if name in own and name in theirs:
            return own[name] != theirs[name]
    return None


def _have_other_weights(reference: Made, other: Made) -> bool:
    names = {*reference.fingerprints, *reference.hashes} - _NOT_WEIGHTS
    if any(_differ(reference, other, name) for name in names):
        return True
    return _differ(reference, other, "transformer") is None and reference.names != other.names


def _have_other_gates(reference: Made, other: Made) -> bool:
    if _tell_otherwise(reference, other, _GATES[:1]):
        return True
    has_some = reference.told.get("gate_type", "none") != "none"
    return has_some and (
        _tell_otherwise(reference, other, _GATES[1:]) or bool(_differ(reference, other, "gates"))
    )


def _tell_otherwise(reference: Made, other: Made, names: Sequence[str]) -> bool:
    """Whether an attribute differs; one that is not there is `none`, or not told by an imported file."""
    if reference.is_imported or other.is_imported:
        names = [name for name in names if name in reference.told and name in other.told]
    return any(reference.told.get(name, "none") != other.told.get(name, "none") for name in names)


def _names(store: Store) -> tuple[str, ...]:
    """What the model of a run is called, without folders."""
    told = [store.attributes.get("model_id", ""), *(store.config.get(name) or "" for name in _NAMES)]
    names = [PurePath(str(one).replace("\\", "/")).name for one in told]
    return (*names, str(store.attributes.get("model_revision", "")))


def _adapters(store: Store, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """What a run tells of its adapters: files by their names and scales, and those that were on the model."""
    on_model = [part["adapters"] for part in parts.values() if part.get("adapters")]
    named = [PurePath(str(one)).name for one in _flat(store.config.get("lora") or [])]
    told = [[_without_places(one) for one in each] for each in on_model if isinstance(each, list)]
    return json.dumps([named, told], sort_keys=True, default=str)


def _flat(told: object) -> list[object]:
    return [each for one in told for each in _flat(one)] if isinstance(told, list) else [told]


def _without_places(adapter: object) -> object:
    if not isinstance(adapter, Mapping):
        return adapter
    return {name: value for name, value in adapter.items() if name not in ("file", "path", "source")}
