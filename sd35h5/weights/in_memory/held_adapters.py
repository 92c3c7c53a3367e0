"""The adapters that a model in memory draws with: peft's layers, and modules that stand in for a layer's forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from sd35h5.errors import CaptureError

_KINDS = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}  # peft's packages
_SETTINGS = (
    "active_adapters",
    "merged_adapters",
    "disable_adapters",
    "scaling",
    "use_dora",
)  # of peft's layers


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is a layer of peft's."""
    return hasattr(type(module), "active_adapters") and "merged_adapters" in vars(module)


def adapter_settings(module: nn.Module) -> dict[str, Any]:
    """What decides, beside its tensors, what an adapted layer computes; {} for a plain one.

    A call's scale is multiplied in and divided out again, which leaves a scale a last bit off: it is rounded.
    """
    told: dict[str, Any] = {}
    if is_adapted(module):
        told = {key: getattr(module, key, None) for key in _SETTINGS}
        if isinstance(told["scaling"], dict):
            told["scaling"] = {name: _rounded(scale) for name, scale in told["scaling"].items()}
    for place, wrapper in enumerate(stand_ins(module)):
        plain = {key: value for key, value in vars(wrapper).items() if type(value) in (bool, int, float, str)}
        told[f"forward.{place}"] = {"class": type(wrapper).__name__, **plain}
    return told


def stand_ins(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose forward was put in place of this one's, as LyCORIS and sd-scripts do, the last first.

    They hold the layer and are not held by it, so that its parameters tell nothing of them.
    """
    own = vars(module)
    registry = own.get("_diffusers_hook")  # hooks of offloads keep the forward that they replace
    kept = [reference.forward for reference in registry._fn_refs] if registry is not None else []
    seen = {id(module)}
    for forward in (own.get("forward"), own.get("_old_forward"), *kept):
        while isinstance(other := getattr(forward, "__self__", None), nn.Module) and id(other) not in seen:
            seen.add(id(other))
            yield other
            forward = getattr(other, "org_forward", None)


def adapters_of(model: nn.Module) -> list[dict[str, Any]]:
    """Name, kind, rank, scale and state of every adapter of a model, and in how many layers it is.

    Where layers differ, scale and rank are lists. The state is `active`, `merged` into the weights, or `off`; of one
    that was merged and unloaded nothing is known but that the weights are others.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for module in model.modules():
        for told in (*_of_peft(module), *_of_stand_ins(module)):
            found.setdefault(told["name"], []).append(told)
    return [
        {
            "name": name,
            **{key: _common(layers, key) for key in ("kind", "rank", "scale", "state")},
            "layers": len(layers),
        }
        for name, layers in sorted(found.items())
    ]


def check_offloaded(model: nn.Module, name: str) -> None:
    """Refuse adapters that read weights which an offload by layer has put away: they then compute with none.

    Raises:
        CaptureError: naming the layer and the adapter.
    """
    for path, module in model.named_modules():
        if is_adapted(module) and any(parameter.is_meta for parameter in module.parameters()):
            for told in _of_peft(module):
                if told["kind"] != "LoRA" and told["state"] == "active":
                    raise CaptureError(
                        f"{name}: {path} has the {told['kind']} adapter {told['name']}, and its weights are put away "
                        "until each layer computes, which only a LoRA allows: offload by model, or fuse it before"
                    )


def _of_peft(module: nn.Module) -> Iterator[dict[str, Any]]:
    if not is_adapted(module):
        return
    packages = (each.__module__.split(".") for each in type(module).__mro__)  # peft.tuners.lora.layer
    kind = next(names[2] for names in packages if names[:2] == ["peft", "tuners"])
    names = {name for attribute in module.adapter_layer_names for name in getattr(module, attribute, ())}
    for name in sorted(names):
        is_dora, by_root, rank, scaling, *alphas = (
            _own(module, attribute, name)
            for attribute in ("use_dora", "use_rslora", "r", "scaling", "lora_alpha", "alpha")
        )
        alpha = next(filter(None, alphas), None)
        is_scaled = kind in _KINDS and isinstance(scaling, (int, float)) and rank and alpha
        is_on = name in module.active_adapters and not module.disable_adapters
        yield {
            "name": name, "kind": "DoRA" if is_dora else _KINDS.get(kind, kind), "rank": rank,
            "scale": _rounded(scaling * (rank**0.5 if by_root else rank) / alpha) if is_scaled else None,
            "state": "merged" if name in module.merged_adapters else "active" if is_on else "off",
        }  # fmt: skip


def _own(module: nn.Module, attribute: str, name: str) -> Any:
    """What a layer holds for one adapter; None where it has no such table."""
    values = getattr(module, attribute, None)
    return values.get(name) if isinstance(values, Mapping) else None


def _of_stand_ins(module: nn.Module) -> Iterator[dict[str, Any]]:
    for wrapper in stand_ins(module):
        scale = getattr(wrapper, "multiplier", None)
        told = {
            "kind": type(wrapper).__name__,
            "scale": _rounded(scale) if isinstance(scale, (int, float)) else scale,
        }
        yield {"name": type(wrapper).__module__.partition(".")[0], "rank": None, "state": "active", **told}


def _common(layers: list[dict[str, Any]], key: str) -> Any:
    """What all layers have; a list where they differ."""
    values = sorted({layer[key] for layer in layers if layer[key] is not None}, key=str)
    return values[0] if len(values) == 1 else values or None


def _rounded(scale: Any) -> Any:
    return float(f"{scale:.6g}") if isinstance(scale, (int, float)) else str(scale)
