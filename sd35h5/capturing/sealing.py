"""Samples that are drawn and whose files are still open, sealed one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sd35h5.capturing.recorder import SampleRecorder


@dataclass(frozen=True)
class Sealing:
    """A sample that is drawn and whose file is still open.

    Args:
        key: the pairing key. events: what became of the steps. provenance: which model drew it.
    """

    recorder: SampleRecorder
    image: np.ndarray | None
    key: str
    events: Sequence[Mapping[str, object]]
    provenance: Mapping[str, str]

    @property
    def index(self) -> int:
        """Which sample it is."""
        return self.recorder.index


def seal_all(samples: Sequence[Sealing]) -> None:
    """Seal one after the other; after an error nothing is left behind of that one and of those behind it."""
    for place, each in enumerate(samples):
        try:
            each.recorder.seal(each.image, each.key, each.events, each.provenance)
        except BaseException:
            for left in samples[place:]:
                left.recorder.abandon()
            raise
