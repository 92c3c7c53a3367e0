"""From the host to a GPU through pinned memory, so that neither waits for the other: weights, and small tables.

Of weights, all threads read pages of a file while the piece before goes over. A copy straight from mapped pages waits
for one thread that faults them in and copies them to the driver's buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE = 16 << 20  # bytes that go over at a time
_BUFFERS = 3
_SMALL = 1 << 20  # bytes below which a tensor is copied as it is


class Copying:
    """Copies tensors from the host to one device: `Copying(device)(tensor)`.

    Args:
        piece: bytes of a buffer.
    """

    def __init__(self, device: torch.device, piece: int = _PIECE, small: int = _SMALL) -> None:
        self._device, self._small = device, small
        self._is_cuda = device.type == "cuda"
        self._buffers = [
            torch.empty(piece, dtype=torch.uint8, pin_memory=self._is_cuda) for _ in range(_BUFFERS)
        ]
        self._gone = [torch.cuda.Event() for _ in range(_BUFFERS)] if self._is_cuda else []
        self._next = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor's copy, in new memory of the device."""
        if type(tensor) is not Tensor or not tensor.is_contiguous() or tensor.nbytes < self._small:
            return tensor.to(self._device, copy=True)
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        pieces = zip(
            _bytes(copy).split(len(self._buffers[0])),
            _bytes(tensor).split(len(self._buffers[0])),
            strict=True,
        )
        for there, here in pieces:
            self._bring(there, here)
        return copy

    def _bring(self, there: Tensor, here: Tensor) -> None:
        place = self._next
        buffer = self._buffers[place][: len(here)]
        if self._is_cuda:
            self._gone[place].synchronize()  # what was in it
        buffer.copy_(here)
        there.copy_(buffer, non_blocking=True)
        if self._is_cuda:
            self._gone[place].record(torch.cuda.current_stream(self._device))
        self._next = (place + 1) % _BUFFERS


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for what it computes."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
