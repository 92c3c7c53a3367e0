"""The files behind a Store, opened by reader processes only: they tell and read what sample_files.Parts does."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store.places.far_files import FarFile
from sd35h5.store.processes.reader_pool import NONSENSE, Readers
from sd35h5.store.schema import SCALES, SUMMARIES, Variable, variable
from sd35h5.store.showable import as_text, well_formed_json

SPLIT_BYTES = 2 << 20  # reads above this are shared among the readers


class GuardedFiles:
    """What sample_files.Parts tells and reads, asked of a pool of readers. What they tell is taken by type and name."""

    def __init__(
        self,
        readers: Readers,
        path: Path,
        mark: tuple[int, ...],
        owned: Readers | None = None,
        far: FarFile | None = None,
    ) -> None:
        self.path, self._readers, self._mark, self._owned, self._far = path, readers, mark, owned, far
        # a file elsewhere is another one each time that it is opened
        self._key = str(path) if far is None else f"{uuid.uuid4().hex}/{far.name}"
        self._summaries: list[str] | None = None
        self._more: dict[str, Any] = {}
        told = self._ask("describe")
        try:
            self.name = str(told["name"])
            indices, self.planned = [int(index) for index in told["samples"]], int(told["planned"])
            self._samples = len(indices)
            self.attributes = {as_text(name): as_text(value) for name, value in told["attributes"].items()}
            self.provenance, self.config = (
                well_formed_json(dict(told[what])) for what in ("provenance", "config")
            )
            # another reader may open it later, when it was replaced or has more samples
            is_whole = self._samples == self.planned
            self._more = {"uuid": self.attributes.get("file_uuid", "")} if is_whole else {"of": indices}
            self.variables = tuple(variable(name).name for name in told["variables"])
            self.scales = {
                name: np.array(values, SCALES[name].dtype).reshape(len(values))
                for name, values in told["scales"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise StoreError(f"{path.name}: {NONSENSE}") from None

    def __len__(self) -> int:
        return self._samples

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{self.name} is read by processes of this one: to hand it to others, open it with sd35h5.open_store"
        )

    def close(self) -> None:
        """End the readers that were started for these files alone; others close what they have not read for long."""
        if self._owned is not None:
            self._owned.close()

    def bytes_on_disk(self, name: str | None) -> int:
        return int(self._value("bytes", (int,), name=name))

    def is_stored(self, name: str, sample: int) -> bool:
        return bool(self._value("stored", (bool,), name=name, sample=sample))

    def chunks(self, name: str) -> tuple[int, ...] | None:
        """Shape of a chunk in the first file that has the variable; None where it is one piece."""
        found = self._value("chunks", (list, type(None)), name=name)
        return None if found is None else tuple(map(int, found))

    def summaries(self) -> list[str]:
        """Names of the means that are of exactly the samples that are here."""
        if self._summaries is None:
            self._summaries = [name for name in self._value("summaries", (list,)) if name in SUMMARIES]
        return self._summaries

    def read_into(self, out: np.ndarray, spec: Variable, wanted: tuple[np.ndarray, ...]) -> None:
        """Fill `out`; large reads are cut along the samples, and the readers read them at the same time."""
        if spec.is_text:
            texts = self._ask("values", **_selection(spec, wanted)).get("texts")
            if not isinstance(texts, list) or len(texts) != out.size:
                raise StoreError(f"{self.path.name}: {NONSENSE}")
            out[...] = np.array([as_text(text) for text in texts], object).reshape(out.shape)
            return
        pieces = min(self._readers.count, len(wanted[0])) if out.nbytes > SPLIT_BYTES else 1
        rows = np.array_split(np.arange(len(wanted[0])), max(1, pieces))
        spans = [slice(int(part[0]), int(part[-1]) + 1) for part in rows if len(part)]
        asked = [
            ({"ask": "values", **self._more, **_selection(spec, (wanted[0][span], *wanted[1:]))}, out[span])
            for span in spans
        ]
        if len(asked) == 1:
            self._readers.ask(self._key, self._mark, *asked[0], self._far)
        else:
            self._readers.ask_together(self._key, self._mark, asked, self._far)

    def _value(self, what: str, kinds: tuple[type, ...], **more: Any) -> Any:
        value = self._ask(what, **more).get("value")
        if not isinstance(value, kinds):
            raise StoreError(f"{self.path.name}: {NONSENSE}")
        return value

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        return self._readers.ask(self._key, self._mark, {"ask": what, **self._more, **more}, None, self._far)


def _selection(spec: Variable, wanted: tuple[np.ndarray, ...]) -> dict[str, Any]:
    return {"name": spec.name, "wanted": [positions.tolist() for positions in wanted]}
