"""What a capture says while it draws: the progress bar, and lines beside it. Both go to stderr."""

from __future__ import annotations

import sys
from threading import Lock

from tqdm import tqdm

from sd35h5.store.showable import seen


class Progress:
    """One bar over all steps of all samples, with the samples that are drawn now, their step and an estimate."""

    def __init__(self, samples: int, done: int, steps: int) -> None:
        self._samples, self._steps, self._step = samples, steps, 0
        self._last, self._together = done, 1
        self._bar = tqdm(
            total=samples * steps, initial=done * steps, unit="step", file=sys.stderr, dynamic_ncols=True
        )

    def begin(self, together: int = 1) -> None:
        """Begin the next sample, or so many that are drawn together."""
        self._last, self._together, self._step = self._last + together, together, 0
        self._show()

    def step(self) -> None:
        """One step of the samples under way is done."""
        self._step += 1
        self._show()
        self._bar.update(self._together)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _show(self) -> None:
        first = self._last - self._together + 1
        which = f"sample {first}" if self._together == 1 else f"samples {first}-{self._last}"
        self._bar.set_description(f"{which}/{self._samples}, step {self._step}/{self._steps}", refresh=False)


class SharedProgress:
    """One bar over all steps of all samples, which several workers draw at the same time."""

    def __init__(self, samples: int, done: int, steps: int) -> None:
        self._samples, self._steps, self._done = samples, steps, done
        self._under_way: dict[int, int] = {}  # first sample of a batch -> its step
        self._lock = Lock()
        self._bar = tqdm(
            total=samples * steps, initial=done * steps, unit="step", file=sys.stderr, dynamic_ncols=True
        )

    def tell(self, batch: int, step: int) -> None:
        """A worker has drawn so many steps of the batch that begins with this sample; again, if the one before died."""
        with self._lock:
            self._under_way[batch] = step
            self._show()

    def finished(self, batch: range) -> None:
        """A batch was drawn."""
        with self._lock:
            self._under_way.pop(batch.start, None)
            self._done += len(batch)
            self._show()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _show(self) -> None:
        told = ", ".join(f"{first + 1} at step {step}" for first, step in sorted(self._under_way.items())[:4])
        self._bar.set_description(f"{self._done} of {self._samples} samples; {told}", refresh=False)
        now = min(self._bar.total, self._done * self._steps + sum(self._under_way.values()))
        self._bar.update(now - self._bar.n)


def say(text: str) -> None:
    """Print a line to stderr without breaking a progress bar."""
    tqdm.write(seen(text), file=sys.stderr)
