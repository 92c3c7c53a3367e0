"""Several samples in one call of the transformer: it attends once, and each sample is measured by itself.

diffusers orders a guided batch of B samples [uncond × B | cond × B] and each other call [… × B], so that sample s has
the rows s::B of every tensor. They are views: nothing is copied to take a batch apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor

from sd35h5.gates.attention import JointQKV
from sd35h5.measuring.probe import Probe

Gates = tuple[Tensor, Tensor | None]
_Rows = TypeVar("_Rows", Tensor, JointQKV, Gates, None)


class BatchProbe:
    """A probe for each sample of a call; whoever attends sees one, and each probe the rows of its sample."""

    def __init__(self, probe: Probe) -> None:
        self._all, self.probes = [probe], [probe]

    def of(self, samples: int) -> list[Probe]:
        """The probes of the next call, which has so many samples."""
        self._all += [self._all[0].twin() for _ in range(samples - len(self._all))]
        self.probes = self._all[:samples]
        return self.probes

    def attend_joint(self, layer: int, joint: JointQKV) -> tuple[JointQKV, Tensor, Tensor | None]:
        """Attend once for all; what alters attention is refused for several samples, so that any probe will do."""
        return self.probes[0].attend_joint(layer, joint)

    def attend_second(self, layer: int, joint: JointQKV) -> tuple[JointQKV, Tensor, Tensor | None]:
        """The same of the layer's second attention."""
        return self.probes[0].attend_second(layer, joint)

    def measure(self, layer: int, joint: JointQKV, lse: Tensor | None, gates: Gates | None) -> None:
        """As `Probe.measure`, of every sample that is captured."""
        self._each(Probe.measure, layer, joint, lse, gates)

    def measure_second(self, layer: int, joint: JointQKV, lse: Tensor | None, gates: Gates | None) -> None:
        """As `Probe.measure_second`, of every sample that is captured."""
        self._each(Probe.measure_second, layer, joint, lse, gates)

    def _each(self, call: Callable[..., None], layer: int, *batch: JointQKV | Tensor | Gates | None) -> None:
        samples = len(self.probes)
        for sample, probe in enumerate(self.probes):
            if probe.plan is not None:
                call(probe, layer, *map(partial(rows_of, sample=sample, samples=samples), batch))


def rows_of(batch: _Rows, sample: int, samples: int) -> _Rows:
    """The rows of one of so many samples, as views: of a tensor, of query, key and value, of both streams' gates."""
    if batch is None or samples == 1:
        return batch
    if isinstance(batch, tuple):
        return tuple(rows_of(each, sample, samples) for each in batch)
    if isinstance(batch, JointQKV):
        parts = (batch.query, batch.key, batch.value)
        return JointQKV(*(each[sample::samples] for each in parts), batch.image_tokens)
    return batch[sample::samples]
