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

from sd35h5.devices import takes_triton
from sd35h5.gates.modules import describe, gate_tensors, gates_of
from sd35h5.weights.held_tensors import held_tensors, layer_settings, plain_name

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

_SIDE = 4096  # words of 32 bits in a row, and rows in a piece: 64 MiB, whose sums are a thousandth of it
_GLIMPSED = 4096  # bytes of each tensor, about
_STRIP = 64  # rows that a processor's cache holds, widened
_COMPUTING = (  # settings by which equal weights compute something else
    "hidden_act", "feed_forward_proj", "num_heads", "num_attention_heads", "attention_head_dim", "patch_size",
    "layer_norm_eps", "layer_norm_epsilon", "scaling_factor", "shift_factor",
)  # fmt: skip
Glimpse = tuple[list[object], dict[torch.device, Tensor]]
_ADAPTERS = (
    "active_adapters",
    "merged_adapters",
    "disable_adapters",
    "scaling",
    "use_dora",
)  # of peft's layers


def fingerprints(pipe: StableDiffusion3Pipeline) -> dict[str, str]:
    """Fingerprint of every model of a pipeline, and of its gates if it has some: component -> 64 hex digits.

    Raises:
        CaptureError: a weight that is nowhere to be had.
    """
    models = {name: each for name, each in pipe.components.items() if isinstance(each, nn.Module)}
    found = {name: fingerprint(model, name) for name, model in models.items()}
    gates = gates_of(pipe.transformer)
    if gates is not None:
        told = describe(gates) | {"forced": [gate.forced for _, _, gate in gates.all()]}
        found["gates"] = _digest(told, sorted(gate_tensors(gates).items()))
    return found


@torch.no_grad()
def glimpse(pipe: StableDiffusion3Pipeline) -> Glimpse:
    """A look at a pipeline that takes no time beside drawing, to compare with a later one by `is_alike`.

    How often PyTorch counted a change of each tensor, its shape and dtype, and bytes from all over it, on its device:
    writing past PyTorch's count, as merging an adapter does, is seen by these.
    """
    told: list[object] = []
    bytes_of: dict[torch.device, list[Tensor]] = {}
    models = [(name, each) for name, each in pipe.components.items() if isinstance(each, nn.Module)]
    tensors = [tensor for name, model in models for _, tensor in held_tensors(model, name)]
    gates = gates_of(pipe.transformer)
    if gates is not None:
        told.append([gate.forced for _, _, gate in gates.all()])
        tensors += gate_tensors(gates).values()
    for tensor in tensors:
        told.append((0 if tensor.is_inference() else tensor._version, tuple(tensor.shape), tensor.dtype))
        flat = tensor.reshape(-1).view(torch.uint8)
        stride = flat.numel() // _GLIMPSED | 1  # odd, so that every byte of a number has its turn
        bytes_of.setdefault(tensor.device, []).append(flat[::stride])
    return told, {device: torch.cat(each) for device, each in bytes_of.items()}


def is_alike(first: Glimpse, second: Glimpse) -> bool:
    """Whether two glimpses are of a model that nothing was done to in between."""
    if first[0] != second[0] or first[1].keys() != second[1].keys():
        return False
    return all(torch.equal(each, second[1][device]) for device, each in first[1].items())


def tokenizer_fingerprints(pipe: StableDiffusion3Pipeline) -> dict[str, str]:
    """The same of its tokenizers: of all that turns a text into ids."""
    found = {}
    for name, each in pipe.components.items():
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
    weights compute something else, quantised layers' too, and of which of peft's adapters are active. The same on
    every device.

    Raises:
        CaptureError: a weight that is nowhere to be had.
    """
    config = getattr(model, "config", None) or {}
    told: dict[str, Any] = {key: _setting(config, key) for key in _COMPUTING}
    for path, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "merged_adapters"):
            told[plain_name(path)] = {key: getattr(module, key, None) for key in _ADAPTERS}
    if settings := layer_settings(model):
        told["layers"] = settings
    return _digest(told, held_tensors(model, name))


def _digest(told: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over what is told, each tensor's name, shape and dtype, and the sums of all their bits."""
    shapes = []

    def noted() -> Iterator[Tensor]:
        for name, tensor in tensors:
            shapes.append((name, list(tensor.shape), str(tensor.dtype)))
            yield tensor

    numbers = _sums(noted())
    return hashlib.sha256(_json([dict(told), shapes, numbers])).hexdigest()


@torch.no_grad()
def _sums(tensors: Iterable[Tensor]) -> list[int]:
    """Numbers that change with any bit of any tensor, and with their order: one a piece of 64 MiB.

    A piece's words are summed along its rows and its columns, exactly, in one look at each; these sums are weighted by
    odd numbers of 64 bits and added, wrapping. The numbers of all pieces come over in one go.
    """
    numbers: list[Tensor] = []
    rests: list[Tensor] = []  # what fills no row: joined, so that thousands of small tensors take few calls
    weights: dict[torch.device, Tensor] = {}
    for tensor in tensors:
        contiguous = tensor.contiguous()
        flat = contiguous.reshape(-1).view(torch.uint8)
        whole = flat.numel() // (4 * _SIDE) * (4 * _SIDE)
        numbers += _pieces(flat[:whole], weights)
        if whole < flat.numel():  # no copy stays for its end
            rests.append(flat[whole:] if contiguous is tensor else flat[whole:].clone())
    if rests:
        joined = torch.cat([each.to(rests[0].device) for each in rests])
        numbers += _pieces(nn.functional.pad(joined, (0, -joined.numel() % (4 * _SIDE))), weights)
    told = {device: iter(_joined(numbers, device)) for device in weights}
    return [next(told[each.device]) for each in numbers for _ in range(len(each))]


def _joined(numbers: Iterable[Tensor], device: torch.device) -> list[int]:
    """The numbers on one device, brought over together."""
    return torch.cat([each for each in numbers if each.device == device]).tolist()


def _pieces(data: Tensor, weights: dict[torch.device, Tensor]) -> list[Tensor]:
    """The numbers of bytes that fill whole rows, in one tensor; none for none."""
    if not data.numel():
        return []
    if data.device not in weights:
        weights[data.device] = _odd_numbers(2 * _SIDE).to(data.device)
    aligned = data if data.data_ptr() % 4 == 0 else data.clone()
    words = aligned.view(torch.int32).view(-1, _SIDE)
    return [_counting_on(data.device)(words, weights[data.device])]


def _counting_on(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`piece_numbers`, or the kernel that counts the same."""
    if not takes_triton(device):
        return piece_numbers
    from sd35h5.weights import fingerprint_kernel

    return fingerprint_kernel.piece_numbers


def piece_numbers(words: Tensor, weights: Tensor) -> Tensor:
    """Numbers of int32 (row, column), int64 (piece): a piece has as many rows as there are columns.

    Args:
        weights: int64, of each column, then of each of a piece's rows.
    """
    side = words.shape[1]
    numbers = []
    for piece in words.split(side):
        columns, rows = _along_both(piece)
        numbers.append((columns * weights[:side]).sum() + (rows * weights[side:][: len(rows)]).sum())
    return torch.stack(numbers)


def _along_both(words: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of int32 (row, column) over the rows and over the columns, in int64, where they cannot overflow."""
    if words.device.type != "cpu":
        return words.sum(0, dtype=torch.int64), words.sum(1, dtype=torch.int64)
    wide = (strip.long() for strip in words.split(_STRIP))
    sums = [(strip.sum(0), strip.sum(1)) for strip in wide]
    return torch.stack([columns for columns, _ in sums]).sum(0), torch.cat([rows for _, rows in sums])


def _odd_numbers(count: int) -> Tensor:
    """Odd numbers of 64 bits that look like chance and are the same everywhere (splitmix64)."""
    mixed = torch.arange(1, count + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return (mixed ^ _shifted(mixed, 31)) | 1


def _shifted(values: Tensor, bits: int) -> Tensor:
    """int64 shifted to the right, with zeros from the left."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _setting(config: Any, key: str) -> Any:
    value = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
    return list(value) if isinstance(value, (tuple, list)) else value


def _json(told: Any) -> bytes:
    return json.dumps(told, sort_keys=True, default=str, separators=(",", ":")).encode()
