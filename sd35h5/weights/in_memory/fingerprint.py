"""Which model is in memory, by its contents: exact sums of every tensor's bits. No name or path has a part in it.

Transformer and gates decide the attention, the text encoders its keys and tokenizers which they are, and the VAE the
picture that is stored and compared: each has a fingerprint of its own, so that a sentence can say which is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sd35h5.gates.modules import describe, gate_tensors, gates_of
from sd35h5.weights.in_memory.bits import bit_sums, bytes_all_over
from sd35h5.weights.in_memory.held_adapters import adapter_settings
from sd35h5.weights.in_memory.held_tensors import held_tensors, layer_settings, plain_name, plain_tensors
from sd35h5.weights.in_memory.turns import bring

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

_GLIMPSED = 4096  # bytes of each tensor, about
_COMPUTING = (  # settings by which equal weights compute something else
    "hidden_act", "feed_forward_proj", "num_heads", "num_attention_heads", "attention_head_dim", "patch_size",
    "layer_norm_eps", "layer_norm_epsilon", "scaling_factor", "shift_factor",
)  # fmt: skip
Glimpse = tuple[list[object], dict[torch.device, Tensor]]


def fingerprints(pipe: StableDiffusion3Pipeline) -> dict[str, str]:
    """Fingerprint of every model of a pipeline, and of its gates if it has some: component -> 64 hex digits.

    Raises:
        CaptureError: a weight that is nowhere to be had.
    """
    return begun_fingerprints(pipe)()


def begun_fingerprints(pipe: StableDiffusion3Pipeline) -> Callable[[], dict[str, str]]:
    """Have a GPU look at all weights behind what it computes. Returns: what waits for the fingerprints.

    Raises:
        CaptureError: a weight that is nowhere to be had.
    """
    models = _models(pipe)
    last = sorted(models, key=lambda name: name == "transformer")  # models that take turns: it computes next
    found = {name: _begun(models[name], name) for name in last}
    gates = gates_of(pipe.transformer)
    if gates is not None:
        told = describe(gates) | {"forced": [gate.forced for _, _, gate in gates.all()]}
        found["gates"] = _digest(told, sorted(gate_tensors(gates).items()))
    return lambda: {name: awaited() for name, awaited in found.items()}


@torch.no_grad()
def glimpse(pipe: StableDiffusion3Pipeline) -> Glimpse:
    """A look at a pipeline that takes no time beside drawing, to compare with a later one by `is_alike`.

    How often PyTorch counted a change of each tensor, its shape and dtype, and bytes from all over it, on its device:
    writing past PyTorch's count, as merging an adapter does, is seen by these.
    """
    told: list[object] = []
    tensors: list[Tensor] = []
    for name, model in _models(pipe).items():
        plain = plain_tensors(model)
        if plain is None:
            tensors += [tensor for _, tensor in held_tensors(model, name)]
            told.append([adapter_settings(module) for module in model.modules()])
        else:
            tensors += plain
            told.append(len(plain))
    gates = gates_of(pipe.transformer)
    if gates is not None:
        told.append([gate.forced for _, _, gate in gates.all()])
        tensors += gate_tensors(gates).values()
    for tensor in tensors:
        told.append((0 if tensor.is_inference() else tensor._version, tensor.shape, tensor.dtype))
    return told, bytes_all_over(tensors, _GLIMPSED)


def is_alike(first: Glimpse, second: Glimpse) -> bool:
    """Whether two glimpses are of a model that nothing was done to in between."""
    if first[0] != second[0] or first[1].keys() != second[1].keys():
        return False
    return all(torch.equal(each, second[1][device]) for device, each in first[1].items())


def stays_put(pipe: StableDiffusion3Pipeline) -> bool:
    """Whether all weights are plainly there, during a call as before it: a look at them may be taken beside drawing."""
    return all(plain_tensors(model) is not None for model in _models(pipe).values())


def _models(pipe: StableDiffusion3Pipeline) -> dict[str, nn.Module]:
    return {name: each for name, each in pipe.components.items() if isinstance(each, nn.Module)}


def tokenizer_fingerprints(components: Mapping[str, Any]) -> dict[str, str]:
    """The same of a pipeline's tokenizers, among its components: of all that turns a text into ids."""
    found = {}
    for name, each in components.items():
        if name.startswith("tokenizer") and each is not None:
            backend = getattr(each, "backend_tokenizer", None)
            told = json.loads(backend.to_str()) if backend is not None else each.get_vocab()
            for of_the_last_call in ("truncation", "padding"):
                told.pop(of_the_last_call, None)
            told["pad"] = each.pad_token_id
            found[name] = hashlib.sha256(_json(told)).hexdigest()
    return found


def fingerprint(model: nn.Module, name: str = "the model") -> str:
    """Fingerprint of a model: of its parameters and buffers by name, shape and dtype, of the settings by which equal
    weights compute something else, quantised layers' too, and of its adapters and their scales. The same on every
    device.

    Raises:
        CaptureError: a weight that is nowhere to be had.
    """
    return _begun(model, name)()


def _begun(model: nn.Module, name: str) -> Callable[[], str]:
    bring(model)  # a device reads faster than a host
    config = getattr(model, "config", None) or {}
    told: dict[str, Any] = {key: _setting(config, key) for key in _COMPUTING}
    for path, module in model.named_modules():
        if adapters := adapter_settings(module):
            told[plain_name(path)] = adapters
    if settings := layer_settings(model):
        told["layers"] = settings
    return _digest(told, held_tensors(model, name))


def _digest(told: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> Callable[[], str]:
    """SHA-256 over what is told, each tensor's name, shape and dtype, and the sums of all their bits."""
    shapes = []

    def noted() -> Iterator[Tensor]:
        for name, tensor in tensors:
            shapes.append((name, list(tensor.shape), str(tensor.dtype)))
            yield tensor

    numbers = bit_sums(noted())
    return lambda: hashlib.sha256(_json([dict(told), shapes, numbers()])).hexdigest()


def _setting(config: Any, key: str) -> Any:
    value = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
    return list(value) if isinstance(value, (tuple, list)) else value


def _json(told: Any) -> bytes:
    return json.dumps(told, sort_keys=True, default=str, separators=(",", ":")).encode()
