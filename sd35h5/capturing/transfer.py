"""From the device to the host: all results of a step in one asynchronous copy, in order, with a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sd35h5.store.bounded_queue import Drain

MAX_WAITING = 512 << 20  # bytes of pinned memory between the device and the writer


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in a packed buffer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def pack(tensors: Mapping[str, Tensor]) -> tuple[Tensor, list[Place]]:
    """Lay tensors one behind the other in one uint8 tensor, the widest types first, which keeps all aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    places, start = [], 0
    for name, tensor in ordered:
        places.append(Place(name, tensor.dtype, tuple(tensor.shape), start, start + tensor.nbytes))
        start += tensor.nbytes
    if len(places) == 1:  # nothing to join: it comes out as it lies
        return ordered[0][1].contiguous().reshape(-1).view(torch.uint8), places
    packed = torch.empty(start, dtype=torch.uint8, device=ordered[0][1].device)
    for place in places:
        _at(packed, place).copy_(tensors[place.name])
    return packed, places


def unpack(buffer: Tensor, places: list[Place]) -> dict[str, np.ndarray]:
    """The tensors of `pack` as arrays that share the buffer's memory, on the host."""
    return {place.name: _at(buffer, place).numpy() for place in places}


def _at(buffer: Tensor, place: Place) -> Tensor:
    return buffer[place.start : place.stop].view(place.dtype).view(place.shape)


class Transfer:
    """Hands results to who writes them: at once on the CPU; from CUDA by one copy on a stream of its own.

    On CUDA `send` returns when the copy is queued; one thread waits for each copy and calls `take`, in the
    order of sending, so that the thread that launches kernels never waits for the device. When more than
    `max_waiting` bytes are under way, `send` waits: a slow disk slows the capture and memory does not grow.
    An error of `take` comes out of the next `send` or of `finish`.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._stream: torch.cuda.Stream | None = None
        self._courier: Drain | None = None

    def send(self, tensors: Mapping[str, Tensor], take: Callable[[dict[str, np.ndarray]], None]) -> None:
        """Call `take` with the tensors as arrays; one that it keeps keeps the memory of all that were sent with it.

        The tensors are not to be changed afterwards: one alone is copied from where it lies.
        """
        device = next(iter(tensors.values())).device
        if device.type != "cuda":
            take({name: tensor.cpu().numpy() for name, tensor in tensors.items()})
            return
        if self._stream is None or self._courier is None:
            self._stream, self._courier = torch.cuda.Stream(device), Drain(1, self._max_waiting)
        packed, places = pack(tensors)
        host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        arrived = torch.cuda.Event(blocking=True)  # its waiting thread sleeps, others spin
        with torch.cuda.stream(self._stream):
            host.copy_(packed, non_blocking=True)
            arrived.record()
        packed.record_stream(self._stream)  # its memory is free again after the copy, not before

        def deliver() -> None:
            arrived.synchronize()
            take(unpack(host, places))

        self._courier.submit(deliver, packed.nbytes)

    def finish(self) -> None:
        """Wait until everything was taken."""
        if self._courier is not None:
            self._courier.finish()

    def cancel(self) -> None:
        """Leave out what was not taken yet."""
        if self._courier is not None:
            self._courier.cancel()
