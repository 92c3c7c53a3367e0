"""The older tool's attn_maps.pt: mapped, checked by what it lists, and read a few heads at a time."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd35h5.errors import ForeignFileError
from sd35h5.importing.dump_safety import check_dump
from sd35h5.store.schema import SCALES
from sd35h5.store.showable import showable

AXES = ("batch rows", "heads", "height", "width", "text tokens")
MAX_SIDE = 512  # patches: pictures of 8192 pixels
MAX_CELLS = 1 << 22  # heads at all layers and steps: 80 times those of SD3.5-Large in 28 steps
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_LAYER = re.compile(r"(?:layer-|(?:transformer\.)?transformer_blocks\.)(\d{1,4})(?:\.attn)?")
_BLOCK_BYTES = 32 << 20  # of float32 that are looked at together
_LET_GO = 256 << 20  # bytes that were mapped, after which the file is opened anew
_TIMESTEPS = 1000.0


@dataclass(frozen=True)
class Shape:
    """What a whole dump has in common: timesteps, falling, and of each tensor (rows, heads, height, width, tokens)."""

    timesteps: tuple[float, ...]
    layers: int
    tensor: tuple[int, int, int, int, int]
    dtype: str

    @property
    def rows(self) -> int:
        """Rows of the guided batch."""
        return self.tensor[0]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.tensor[1]

    @property
    def patches(self) -> tuple[int, int]:
        """(y, x) of the image tokens."""
        return self.tensor[2:4]

    @property
    def tokens(self) -> int:
        """Text positions."""
        return self.tensor[4]


class AttentionFile:
    """One attn_maps.pt: dict timestep -> "layer-N" -> (rows, heads, height, width, tokens), probabilities of image
    queries to text keys. Each tensor can be a view over the whole joint matrix, gigabytes of which are none of its
    elements: only those are read. The pages of what was read count as the process's memory as long as the file is
    open, so that it is opened anew again and again.

    Args:
        where: how the file is told.
    Raises: ForeignFileError: it is no such file.
    """

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self.fingerprint = check_dump(path, where)
        self._maps: list[list[Tensor]] = []  # step, layer; none while the file is closed
        self._mapped = 0
        self._maps, self.shape = self._opened()

    def close(self) -> None:
        """Let go of the mapping; it comes back when it is asked for."""
        self._maps, self._mapped = [], 0

    def blocks(self, step: int, layer: int, row: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """What the image's queries of one batch row give to the text keys, in blocks of heads, or of rows of patches.

        Yields: heads, rows of patches, and float32 (heads, rows, width, tokens).
        """
        _, heads, height, width, tokens = self.shape.tensor
        line = width * tokens * 4
        high = max(1, min(height, _BLOCK_BYTES // line))
        deep = max(1, min(heads, _BLOCK_BYTES // (line * height)))
        for head in range(0, heads, deep):
            for top in range(0, height, high):
                where = slice(head, min(head + deep, heads)), slice(top, min(top + high, height))
                view = self._tensor(step, layer)[(row, *where)]
                self._mapped += _span(view)
                yield *where, view.to(torch.float32, memory_format=torch.contiguous_format, copy=True)

    def _tensor(self, step: int, layer: int) -> Tensor:
        if self._mapped > _LET_GO:
            self.close()
        if not self._maps:
            self._maps, shape = self._opened()
            if shape != self.shape:
                raise ForeignFileError(f"{self._where} was changed while it was read")
        return self._maps[step][layer]

    def _opened(self) -> tuple[list[list[Tensor]], Shape]:
        """Map the file; of its contents, only what says where they lie is read."""
        try:
            told = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, EOFError,
                pickle.UnpicklingError) as error:  # fmt: skip
            first = showable(str(error).strip().split("\n")[0], 120)
            raise ForeignFileError(f"{self._where} cannot be read as a file of tensors: {first}") from error
        steps = _by_timestep(told, self._where)
        maps = [_by_layer(steps[timestep], timestep, self._where) for timestep in steps]
        return maps, _shape_of(list(steps), maps, self._where, self._path.stat().st_size)


def _by_timestep(told: object, where: str) -> dict[float, object]:
    """The layers of each timestep, in the order of drawing: timesteps fall."""
    if not isinstance(told, Mapping) or not told:
        raise ForeignFileError(f"{where} holds no dict of timesteps, as the older tool writes it")
    steps: dict[float, object] = {}
    for key, layers in told.items():
        timestep = _number(key)
        if timestep is None or not 0 <= timestep <= _TIMESTEPS:
            raise ForeignFileError(f"{where}: {showable(repr(key), 40)} is no timestep, 0 to 1000")
        if timestep in steps:
            raise ForeignFileError(f"{where} has the timestep {timestep:g} twice")
        steps[timestep] = layers
    if len(steps) > SCALES["step"].cap:
        raise ForeignFileError(f"{where} has {len(steps)} timesteps, more than {SCALES['step'].cap}")
    return {timestep: steps[timestep] for timestep in sorted(steps, reverse=True)}


def _number(key: object) -> float | None:
    if isinstance(key, bool) or not isinstance(key, int | float | str):
        return None
    try:
        number = float(key)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _by_layer(told: object, timestep: float, where: str) -> list[Tensor]:
    """The tensors of one timestep, by the number of their layer."""
    at = f"{where}, timestep {timestep:g}"
    if not isinstance(told, Mapping) or not told:
        raise ForeignFileError(f"{at}: there is no layer")
    found: dict[int, Tensor] = {}
    for name, tensor in told.items():
        match = _LAYER.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise ForeignFileError(f"{at}: {showable(repr(name), 60)} is no layer, as layer-0 is")
        if int(match[1]) in found:
            raise ForeignFileError(f"{at} has layer {match[1]} twice")
        found[int(match[1])] = _checked(tensor, f"{at}, {name}")
    if missing := sorted(set(range(max(found))) - set(found)):
        raise ForeignFileError(
            f"{at} has the layers up to {max(found)} without layer {missing[0]}: an import needs them all"
        )
    return [found[layer] for layer in range(len(found))]


def _checked(tensor: object, at: str) -> Tensor:
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ForeignFileError(f"{at} is no tensor of numbers")
    if tensor.dtype not in _DTYPES:
        raise ForeignFileError(f"{at} is {_name(tensor.dtype)}, probabilities are floating-point numbers")
    if tensor.ndim != len(AXES):
        shape = " × ".join(map(str, tensor.shape)) or "one number"
        raise ForeignFileError(f"{at} has the shape {shape}, expected {' × '.join(AXES)}")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ForeignFileError(f"{at} claims {tensor.nbytes} bytes, more than the file has of it")
    return tensor


def _shape_of(timesteps: list[float], maps: list[list[Tensor]], where: str, size: int) -> Shape:
    """What all tensors have in common. Raises: ForeignFileError: they have not, or it is more than a dump has."""
    first = maps[0][0]
    for timestep, layers in zip(timesteps, maps, strict=True):
        if len(layers) != len(maps[0]):
            raise ForeignFileError(
                f"{where} has {len(layers)} layers at timestep {timestep:g}, {len(maps[0])} at {timesteps[0]:g}"
            )
        for layer, tensor in enumerate(layers):
            if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
                raise ForeignFileError(
                    f"{where}, timestep {timestep:g}: layer {layer} is {_told(tensor)}, the first is {_told(first)}"
                )
    most = dict(
        zip(AXES, (1 << 10, SCALES["head"].cap, MAX_SIDE, MAX_SIDE, SCALES["token"].cap), strict=True)
    )
    for axis, length in zip(AXES, first.shape, strict=True):
        if not 1 <= length <= most[axis]:
            raise ForeignFileError(f"{where} has {length} {axis}, expected 1 to {most[axis]}")
    if len(maps[0]) > SCALES["layer"].cap or len(maps) * len(maps[0]) * first.shape[1] > MAX_CELLS:
        raise ForeignFileError(
            f"{where} claims {len(maps)} timesteps of {len(maps[0])} layers of {first.shape[1]} heads, "
            "which no model has"
        )
    if len(maps) * len(maps[0]) * first.nbytes > size:
        raise ForeignFileError(f"{where} claims more attention than its {size} bytes hold")
    return Shape(tuple(timesteps), len(maps[0]), tuple(first.shape), _name(first.dtype))


def _told(tensor: Tensor) -> str:
    return f"{' × '.join(map(str, tensor.shape))} of {_name(tensor.dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _span(view: Tensor) -> int:
    """Bytes of the file from the first to the last element of a view."""
    last = sum((length - 1) * stride for length, stride in zip(view.shape, view.stride(), strict=True))
    return (last + 1) * view.element_size()
