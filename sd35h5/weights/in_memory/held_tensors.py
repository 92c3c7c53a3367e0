"""What a model's weights are in memory: plain tensors, what quantised ones consist of, and where an offload keeps them.

The dtype in which a model computes is another matter: quantised weights are stored as bytes or small integers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sd35h5.errors import CaptureError
from sd35h5.weights.in_memory.held_adapters import stand_ins

_PACKAGES = {"optimum": "optimum-quanto"}  # where the module's name is not the package's
_PLAIN = (Tensor, nn.Parameter, nn.Buffer, type(None))
_HUNG_INTO = {
    "forward",
    "merged_adapters",
    "_diffusers_hook",
    "_hf_hook",
}  # attributes of a module that was changed
_LAYER_SETTINGS = (  # by which a quantised layer with equal weights computes something else
    "compute_dtype", "activation_qtype", "threshold",
)  # fmt: skip


def held_tensors(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, those that an offload keeps elsewhere too; quantised ones as what they consist
    of; and those of modules that stand in for others.

    Raises:
        CaptureError: a weight that is nowhere to be had.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    on_disk = _on_disk(modules)
    places = {
        f"{path}.{short}".lstrip("."): (module, tensor)
        for path, module in modules.items()
        for held in (module._parameters, module._buffers)
        for short, tensor in held.items()
    }
    for full, (module, tensor) in sorted(places.items(), key=lambda item: plain_name(item[0])):
        if tensor is None:
            continue
        if tensor.is_meta:
            tensor = _offloaded(modules, full)
        if tensor is None:
            raise CaptureError(
                f"{name}: {full} is on the meta device and no offload's hook knows it: this model cannot be told "
                "from another, load its weights or offload it another way"
            )
        if id(tensor) in on_disk:
            tensor = _read(*on_disk[id(tensor)])
        yield from _consists_of(plain_name(full), tensor, module)
    for path in sorted(modules, key=plain_name):
        for place, other in enumerate(stand_ins(modules[path])):
            for short, tensor in held_tensors(other, name):
                yield f"{plain_name(path)}.forward.{place}.{short}", tensor


def plain_tensors(model: nn.Module) -> list[Tensor] | None:
    """All that `held_tensors` yields, in the order of its modules and without names, in a tenth of its time.

    Returns: None of a model that is not plainly there: with offloads, adapters, stand-ins or quantised weights.
    """
    found: list[Tensor] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        own = module.__dict__
        if not _HUNG_INTO.isdisjoint(own):
            return None
        found += own["_parameters"].values()
        found += own["_buffers"].values()
        waiting += [each for each in own["_modules"].values() if each is not None]
    found = [tensor for tensor in found if tensor is not None]
    return found if all(type(tensor) in _PLAIN and not tensor.is_meta for tensor in found) else None


def plain_name(name: str) -> str:
    """A name without what torch.compile's wrapper adds: compiled weights are the same."""
    return name.replace("_orig_mod.", "")


def _on_disk(modules: Mapping[str, nn.Module]) -> dict[int, tuple[str, str]]:
    """Tensors that diffusers' group offloading keeps in files, by id: (file, key). In memory they are empty."""
    found = {}
    for module in modules.values():
        registry = vars(module).get("_diffusers_hook")  # asking a module for what it lacks takes microseconds
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None and hook.group.offload_to_disk_path and hook.group._is_offloaded_to_disk:
            file = hook.group.safetensors_file_path
            found |= {id(tensor): (file, key) for tensor, key in hook.group.tensor_to_key.items()}
    return found


def _read(file: str, key: str) -> Tensor:
    with safe_open(file, framework="pt") as stored:
        return stored.get_tensor(key)


def _offloaded(modules: Mapping[str, nn.Module], full: str) -> Tensor | None:
    """A tensor that accelerate keeps for the module, or for one that the module is in, while it does not compute."""
    path = full
    while path:
        path = path.rpartition(".")[0]
        hook = getattr(modules[path], "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            kept = getattr(each, "weights_map", None)
            short = full.removeprefix(f"{path}." if path else "")
            if kept is not None and short in kept:
                return kept[short]
    return None


def _consists_of(name: str, tensor: Tensor, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that one consists of: of a subclass those within, of bitsandbytes' the scales beside it."""
    if type(tensor) in _PLAIN and type(module._parameters.get("weight")) in _PLAIN:
        yield name, tensor.detach()
        return
    if hasattr(type(tensor), "__tensor_flatten__"):
        parts, setting = tensor.__tensor_flatten__()
        told = re.sub(r" at 0x[0-9a-f]+", "", f"{type(tensor).__name__} {setting}")
        for part in parts:
            yield from _consists_of(f"{name}.{part} of {told}", getattr(tensor, part), module)
        return
    if (kind := getattr(tensor, "quant_type", None)) is not None and hasattr(tensor, "as_tensor"):  # GGUF's
        yield f"{name} of {kind.name}", tensor.as_tensor().detach()
        return
    plain = tensor.detach()
    if name.endswith(".bias") and hasattr(getattr(module, "weight", None), "quant_state"):
        plain = plain.to(module.compute_dtype or plain.dtype)  # as bitsandbytes' first call will leave it
    yield name, plain
    for key, each in _beside(tensor, module).items():
        if isinstance(each, Tensor):
            yield f"{name}.{key}", each.detach()


def _beside(tensor: Tensor, module: nn.Module) -> Mapping[str, Any]:
    """What bitsandbytes keeps beside a weight; the scales of int8 go to the layer's state at its first call."""
    if (state := getattr(tensor, "quant_state", None)) is not None:
        return state.as_dict(packed=True)
    if not hasattr(tensor, "SCB"):
        return {}
    return {"SCB": tensor.SCB if tensor.SCB is not None else module.state.SCB}


def computing_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of what goes from layer to layer: that of the first weights that are plain or say what they stand for.

    Weights that a cast keeps in 8 bits between calls (diffusers' layerwise casting) say it by their hook.
    """
    for module in model.modules():
        registry = vars(module).get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook("layerwise_casting")
        if hook is not None:
            return hook.compute_dtype
    floats = (each.dtype for each in model.parameters() if each.is_floating_point())
    return next((dtype for dtype in floats if dtype.itemsize > 1), next(model.parameters()).dtype)


def layer_settings(model: nn.Module) -> dict[str, dict[str, str]]:
    """By which settings quantised layers compute, by the layer's name; {} of a model without any."""
    found = {}
    for path, module in model.named_modules():
        own = vars(module)
        told = {key: own.get(key) for key in _LAYER_SETTINGS}
        told["threshold"] = getattr(own.get("state"), "threshold", None)
        if "compute_dtype" in own and told["compute_dtype"] is None:  # which the first call will set
            told["compute_dtype"] = computing_dtype(model)
        if any(each is not None for each in told.values()):
            found[plain_name(path)] = {key: str(each) for key, each in told.items()}
    return found


def stored_dtypes_of(model: nn.Module) -> tuple[str, int]:
    """How a model's weights are held, the commonest first (`bitsandbytes nf4, bfloat16`), and how many there are."""
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        is_plain = type(parameter) in _PLAIN
        kind, shape = (_short(parameter.dtype), parameter.shape) if is_plain else _kind(parameter)
        counts[kind] = counts.get(kind, 0) + math.prod(shape)
    return ", ".join(sorted(counts, key=counts.__getitem__, reverse=True)), sum(counts.values())


def _kind(parameter: Tensor) -> tuple[str, tuple[int, ...]]:
    """How a parameter is held, and the shape of the weights that it stands for."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return f"bitsandbytes {state.quant_type}", tuple(state.shape)
    if hasattr(parameter, "SCB"):
        return "bitsandbytes int8", tuple(parameter.shape)
    if hasattr(parameter, "quant_shape"):
        return f"GGUF {parameter.quant_type.name}", tuple(parameter.quant_shape)
    if hasattr(type(parameter), "__tensor_flatten__"):
        package = type(parameter).__module__.split(".")[0]
        named = getattr(getattr(parameter, "qtype", None), "name", "") or _widest(parameter)
        return f"{_PACKAGES.get(package, package)} {named}", tuple(parameter.shape)
    return _short(parameter.dtype), tuple(parameter.shape)


def _widest(tensor: Tensor) -> str:
    parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return _short(max(parts, key=lambda part: part.numel()).dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
