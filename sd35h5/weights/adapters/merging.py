"""Adapters merged into the weights: computed in float64 from the weights as they are stored, and rounded once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sd35h5.errors import ConfigError
from sd35h5.weights.adapters.adapter_changes import Adapter, Change
from sd35h5.weights.layouts import TITLES
from sd35h5.weights.loading import Planned, reading
from sd35h5.weights.quantised_files.gguf_header import BLOCKS

ReadPart = Callable[[Change, str], Tensor]  # (change, one of its tensors) -> that tensor as it is stored


def check_adapters(adapters: Sequence[Adapter], planned: Mapping[str, Planned]) -> None:
    """Refuse adapters that change what the models do not have, or that would be merged into packed weights, before a
    weight is read.

    Args:
        planned: by component.

    Raises:
        ConfigError: naming the file, the place and both shapes.
    """
    shapes = {
        component: {
            name: (len(tensor), tensor[0].numel())
            for name, tensor in each.model.named_parameters()
            if tensor.ndim > 1
        }
        for component, each in planned.items()
    }
    for adapter in adapters:
        for change in adapter.changes:
            component = change.target.component
            if component not in planned:
                raise ConfigError(
                    f"{adapter.said} changes {TITLES[component]}, which this model is drawn without"
                )
            needs_weights = not adapter.stays_apart or "magnitude_vector" in change.tensors
            if needs_weights and component == "transformer" and _is_packed(planned[component]):
                raise ConfigError(
                    f"{adapter.said} is {adapter.kind}, which changes the weights themselves, and those of a GGUF file "
                    "stay packed: give the transformer unquantised"
                )
            there = [shapes[component].get(f"{module}.weight") for module in change.target.modules]
            if None in there:
                raise ConfigError(
                    f"{adapter.said} changes {change.name}, which {TITLES[component]} of this shape does not have"
                )
            wanted = sum(rows for rows, _ in there), there[0][1]
            if change.shape != wanted:
                raise ConfigError(
                    f"{adapter.said} adds a matrix of shape {change.shape} to {change.name}, which has {wanted}: "
                    "it was made for a model of another size"
                )


def _is_packed(planned: Planned) -> bool:
    return any(entry.dtype in BLOCKS for entry in planned.part.entries.values())


def reading_parts(adapter: Adapter, stack: ExitStack) -> ReadPart:
    """A function that reads the tensors of an adapter's file, as long as the stack is open."""
    file = stack.enter_context(safe_open(adapter.file, framework="pt"))
    return lambda change, part: file.get_tensor(change.tensors[part].name)


def alpha_of(change: Change, read: ReadPart) -> float:
    """A change's alpha: of its tensor, a config, or so that nothing is scaled."""
    alpha = float(read(change, "alpha")) if "alpha" in change.tensors else change.alpha
    return alpha or _divisor(change)  # trainers write 0 for an alpha that is the rank


def _divisor(change: Change) -> float:
    rank = change.rank or 1
    return rank**0.5 if change.by_root else rank


def swapped(rows: Tensor) -> Tensor:
    """The lower half of the rows first."""
    return torch.cat(rows.chunk(2)[::-1])


@torch.no_grad()
def merge(model: nn.Module, planned: Planned, adapters: Sequence[Adapter]) -> None:
    """Merge adapters into a component's weights, one after the other.

    Args:
        model: filled; the sums are made on its device.
        planned: where its weights are stored.
        adapters: those to merge, in order; what they change of other components is passed over.
    """
    with ExitStack() as stack:
        stored = stack.enter_context(reading(planned))
        together: dict[str, list[tuple[Change, float, ReadPart]]] = {}
        for adapter in adapters:
            read = reading_parts(adapter, stack)
            for change in adapter.changes:
                if change.target.component == planned.part.component:
                    together.setdefault(_siblings(change), []).append((change, adapter.scale, read))
        for changes in together.values():
            modules = dict.fromkeys(module for change, _, _ in changes for module in change.target.modules)
            parameters = {module: model.get_parameter(f"{module}.weight") for module in modules}
            weights = {
                module: stored(f"{module}.weight", torch.float64, parameter.device).flatten(1)
                for module, parameter in parameters.items()
            }
            for change, scale, read in changes:
                own = [weights[module] for module in change.target.modules]
                changed = _changed(torch.cat(own), change, scale, read).split([len(rows) for rows in own])
                weights |= dict(zip(change.target.modules, changed, strict=True))
            for module, parameter in parameters.items():
                # not in place: what is there may be mapped from a file
                parameter.data = weights[module].view(parameter.shape).to(parameter.dtype)


def _siblings(change: Change) -> str:
    """A name that q, k and v have in common: one file may change them together and another apart."""
    return re.sub(r"(to|add)_[qkv](_proj)?$", r"\1_qkv", change.target.modules[0])


def _changed(weight: Tensor, change: Change, scale: float, read: ReadPart) -> Tensor:
    """A weight (row, column) after a change; float64.

    Of DoRA peft scales the product alone, and LyCORIS' files are scaled as a whole, as ComfyUI does.
    """

    def part(name: str) -> Tensor:
        return read(change, name).to(weight.device, torch.float64)

    if change.target.swap:
        weight = swapped(weight)
    factor = 1.0 if change.rank is None else alpha_of(change, read) / _divisor(change)
    added = factor * _product(change, part)
    if "magnitude_vector" in change.tensors:
        total = weight + scale * added
        changed = total * (part("magnitude_vector").view(-1, 1) / total.norm(dim=1, keepdim=True))
    elif "dora_scale" in change.tensors:
        total, norms = weight + added, part("dora_scale")
        by_row = norms.shape[0] == len(weight)
        norms = norms.reshape(-1, 1) if by_row else norms.reshape(1, -1)
        total *= norms / total.norm(dim=int(by_row), keepdim=True)
        changed = weight + scale * (total - weight)
    else:
        changed = weight + scale * added
    return swapped(changed) if change.target.swap else changed


def _product(change: Change, part: Callable[[str], Tensor]) -> Tensor:
    """What a change's matrices make (row, column), not scaled."""

    def factor(name: str) -> Tensor:
        if name in change.tensors:
            return part(name).flatten(1)
        return part(f"{name}_a").flatten(1) @ part(f"{name}_b").flatten(1)

    if change.kind == "LoRA":
        return part("up").flatten(1) @ part("down").flatten(1)
    if change.kind == "LoHa":
        return factor("hada_w1") * factor("hada_w2")
    return torch.kron(factor("lokr_w1"), factor("lokr_w2"))
