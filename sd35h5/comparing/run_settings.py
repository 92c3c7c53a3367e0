"""What runs were asked for, and in what of it they differ: what may differ between runs that are compared, and what may
not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from sd35h5.store.schema import UNKNOWN_SEED

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

#: what may differ between two runs that are compared: what a run is, and what says nothing of the attention itself
FREE_FIELDS = frozenset({
    "model_id", "model_revision", "variant", "transformer", "dit_path", "clip_l_path", "clip_g_path", "t5xxl_path",
    "vae_path", "vae_is_sd3", "tokenizer_path", "weights", "fingerprint", "gates", "lora", "device", "offload",
    "intervene", "control", "intervention", "intervention_control",
    "prompt", "prompts", "prompts_json", "prompt_ids", "limit", "seed", "num_images",
    "maps", "words", "map_steps", "map_layers", "map_heads", "map_pool", "topk", "top_steps", "branches",
    "no_unconditional", "text_queries", "rows", "atlas", "raw", "precision", "no_images",
    "out", "overwrite", "budget", "sources",
})  # fmt: skip
#: setting of a run that was brought in from another tool: it stands for all that its files do not tell
IMPORTED = "imported"
FREE_KINDS = ("gate_",)  # how the names of such fields begin
#: what is told twice: a size or an option, and the setting that decides it, which is told where it is known
_DECIDED_BY = {
    "pixel_ys": ("height",), "pixel_xs": ("width",), "tokens": ("max_sequence_length", "t5"), "no_t5": ("t5",),
    "layers": ("model_shape",), "heads": ("model_shape",),
}  # fmt: skip


def setting_differences(stores: Mapping[str, Store], free: bool = True) -> pd.DataFrame:
    """Return what differs between the runs: a row a field, a column a run, values as text.

    Args: free: include the fields that may differ (weights, gates, tiers); False leaves those that prevent
    pairing: of a run that was imported, what it tells, and `imported`, also where both were.
    """
    settings = {name: settings_of(store, free) for name, store in stores.items()}
    is_told = not free and any(IMPORTED in fields for fields in settings.values())
    if is_told:
        settings = {name: _told_by_all(stores[name], settings, fields) for name, fields in settings.items()}
    names = dict.fromkeys(field for fields in settings.values() for field in fields)
    rows = []
    for field in names:
        values = [settings[run].get(field, "—") for run in settings]
        if len(set(values)) > 1 or (is_told and field == IMPORTED):
            rows.append([field, *values])
    return pd.DataFrame(rows, columns=["field", *settings])


def is_free(field: str) -> bool:
    """Whether a setting may differ between runs that are compared without being allowed to."""
    return field in FREE_FIELDS or field.startswith(FREE_KINDS)


def settings_of(store: Store, free: bool) -> dict[str, str]:
    """Return a run's shape, model attributes, config and components as flat text: sizes first, they explain
    most."""
    sizes = {name: store.sizes.get(name) for name in ("step", "layer", "head", "token", "pixel_y", "pixel_x")}
    found: dict[str, object] = {f"{name}s": size for name, size in sizes.items() if size is not None}
    found |= {name: value for name, value in store.attributes.items() if name.startswith(("model_", "gate_"))}
    found |= {name: value for name, value in store.config.items() if name not in found}
    found |= {name: value for name, value in _component_settings(store).items() if name not in found}
    for name, deciding in _DECIDED_BY.items():
        if found.keys() >= set(deciding):
            found.pop(name, None)
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        for name, value in found.items()
        if free or not is_free(name)
    }


def _told_by_all(
    store: Store, settings: Mapping[str, Mapping[str, str]], own: Mapping[str, str]
) -> dict[str, str]:
    """Return a run's settings that all runs tell: what an imported one does not tell is neither equal nor different."""
    shared = [name for name in own if all(name in fields for fields in settings.values())]
    sizes = {f"{name}s": str(store.sizes[name]) for name in ("layer", "head")}
    return {IMPORTED: own.get(IMPORTED, "no"), **sizes, **{name: own[name] for name in shared}}


def lacks_seeds(store: Store) -> bool:
    """Whether a run was imported and nobody told its seeds."""
    return IMPORTED in store.config and bool((store.samples["seed"] == UNKNOWN_SEED).any())


def _component_settings(store: Store) -> dict[str, object]:
    """Return what a capture from Python does not have in its config: scheduler, dtype, and whether T5 is there."""
    components = store.provenance.get("components")
    if not isinstance(components, dict):
        return {}
    parts = {name: part for name, part in components.items() if isinstance(part, dict)}
    return {
        "scheduler": parts.get("scheduler", {}),
        "dtype": parts.get("transformer", {}).get("dtype", "unknown"),
        "t5": "text_encoder_3" in parts,
    }
