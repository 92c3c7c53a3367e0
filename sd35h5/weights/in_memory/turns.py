"""Models that take turns on a device: their weights wait on the host, are copied over, and never back.

accelerate's own offload copies to the host, into new memory, what nobody changed: most of the time that it takes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import Tensor, nn

from sd35h5.weights.in_memory.copying import Copying


def take_turns(models: Collection[nn.Module], device: torch.device | str) -> None:
    """Let each model have the device while it computes, and until another of them does.

    Args:
        models: with their weights on the host, which stay there, and may be mapped from files.
    """
    group: list[_Turn] = []
    for model in models:
        group.append(_Turn(model, torch.device(device), group))
        add_hook_to_module(model, group[-1])


def bring(model: nn.Module) -> None:
    """Give a model its turn before it computes; one that takes none stays where it is."""
    hook = getattr(model, "_hf_hook", None)
    if isinstance(hook, _Turn):
        hook.bring()


class _Turn(ModelHook):
    """accelerate's hook of one model; `execution_device` tells diffusers where it computes."""

    def __init__(self, model: nn.Module, device: torch.device, group: list[_Turn]) -> None:
        self.execution_device = device
        self._model, self._group = model, group
        self._waiting: list[tuple[Tensor, Tensor, int]] = []  # weight, its values on the host, its version

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.bring()
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)

    def detach_hook(self, module: nn.Module) -> nn.Module:
        self.send_away()
        return module

    def bring(self) -> None:
        """Copy the weights over, once the others have gone."""
        for other in self._group:
            if other is not self:
                other.send_away()
        if self._waiting:
            return
        weights = {id(each): each for each in (*self._model.parameters(), *self._model.buffers())}
        copied = Copying(self.execution_device)
        try:
            for weight in weights.values():
                self._waiting.append((weight, weight.data, weight._version))
                weight.data = copied(weight.data)
        except BaseException:  # half a model is none
            self.send_away()
            raise

    def send_away(self) -> None:
        """Take the values that waited; one that changed on the device is copied back."""
        if not self._waiting:
            return
        for weight, waiting, version in self._waiting:
            weight.data = waiting if weight._version == version else weight.data.to(waiting.device)
        self._waiting = []
        if self.execution_device.type == "cuda":
            torch.cuda.empty_cache()
