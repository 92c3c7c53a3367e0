"""Small sums for first looks: means over all samples of a file, made of what it holds, and told when they are stale."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h5py
import numpy as np

from sd35h5.store import schema
from sd35h5.store.content_hash import sizes_in
from sd35h5.store.schema import GROUPS, SUMMARIES
from sd35h5.store.showable import as_text
from sd35h5.store.skeleton import create_variable, write_text

GROUP = "summary"
OF_SAMPLES = (
    "samples_sha256"  # attribute of the group: of the content hashes of the samples that it is a mean of
)
MIN_SAMPLES = 2  # the mean of one is the sample itself
COMMENT = (
    "derived: means over all samples of this file, of those that have a value; sinks/ holds what was measured"
)


def derive_summary(file: h5py.File) -> None:
    """Write `summary/` anew into a file that is open for writing and whole but for it; nothing where there is nothing
    to average. Samples are read one at a time.
    """
    if GROUP in file:
        del file[GROUP]
    create_summary(file)
    fill_summary(file)


def create_summary(file: h5py.File) -> None:
    """Create `summary/` without values, once the variables are there that it is made of."""
    if not (held := summarised(file)) or len(file["sample"]) < MIN_SAMPLES:
        return
    group, sizes = file.create_group(GROUP), sizes_in(file)
    write_text(group, OF_SAMPLES, "0" * 64)
    write_text(group, "comment", COMMENT)
    for name in held:
        dataset = create_variable(file, SUMMARIES[name], sizes, "exact")
        write_text(dataset, "cell_methods", "sample: mean")
        write_text(dataset, "derived_from", schema.SUMMARY_SOURCES[name])


def fill_summary(file: h5py.File) -> None:
    """Average what the file holds, content hashes included, into a `summary/` that was created."""
    if GROUP not in file:
        return
    try:
        for name, where, values in means(file):
            if np.isfinite(values).any():  # what was never measured takes no room
                file[name][where] = values
    except (OSError, RuntimeError):  # a sample is damaged, which is copied as it is and told by the checker
        del file[GROUP]
        return
    file[GROUP].attrs.modify(OF_SAMPLES, samples_sha256(file).encode())


def summarised(file: h5py.File) -> list[str]:
    """Names of the means that a file's variables allow."""
    return [name for name, source in schema.SUMMARY_SOURCES.items() if source in file]


def summaries_in(file: h5py.File) -> list[str]:
    """Names of the means that a file holds."""
    return [name for name in SUMMARIES if name in file]


def is_current(file: h5py.File) -> bool:
    """Whether `summary/` is of exactly the samples that the file holds, by their content hashes."""
    group = file.get(GROUP)
    told = group.attrs.get(OF_SAMPLES) if isinstance(group, h5py.Group) else None
    return told is not None and as_text(told) == samples_sha256(file)


def samples_sha256(file: h5py.File) -> str:
    """SHA-256 of the content hashes of all samples, in the file's order, a newline after each."""
    hashes = file["samples/content_sha256"][:].tolist()
    return hashlib.sha256("".join(f"{as_text(one)}\n" for one in hashes).encode()).hexdigest()


def means(file: h5py.File) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Yield each mean by its name and place: (name, positions of its first dimensions, float32 of the others)."""
    sizes = sizes_in(file)
    held = summarised(file)
    is_image = file["query"][:] == schema.QUERIES.index("image")
    of_text = _fractions(file["group"][:] != GROUPS.index("image"))
    for branch in range(sizes["branch"]):
        for query in range(sizes["query"]):
            where = (branch, query)
            if "summary/entropy_text" in held:
                yield "summary/entropy_text", where, *_means(file, "sinks/entropy_text", where)
            if "summary/mass_group" in held:
                changes = (of_text,) if is_image[query] else ()
                masses, *fractions = _means(file, "sinks/mass_group", where, *changes)
                yield "summary/mass_group", where, masses
                for each in fractions:
                    yield "summary/text_fraction", where[:1], each


@dataclass
class _Sums:
    """Sums of float64, and how many values they are of; NaN counts as none."""

    total: np.ndarray = field(default_factory=lambda: np.zeros(()))
    count: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))

    def add(self, values: np.ndarray) -> None:
        there = np.isfinite(values)
        self.total = self.total + np.where(there, values, 0.0)
        self.count = self.count + there

    def mean(self) -> np.ndarray:
        mean = np.full(self.total.shape, np.nan)
        np.divide(self.total, self.count, out=mean, where=self.count > 0)
        return mean.astype(np.float32)


def _means(
    file: h5py.File, name: str, where: tuple[int, ...], *changes: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """The mean over all samples, each read once, and those of what functions make of each sample."""
    dataset, every = file[name], [_Sums() for _ in range(1 + len(changes))]
    for sample in range(len(dataset)):
        values = dataset[(sample, *where)].astype(np.float64)
        for sums, of_it in zip(every, (values, *(change(values) for change in changes)), strict=True):
            sums.add(of_it)
    return (sums.mean() for sums in every)


def _fractions(is_text: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A sample's group masses as parts of its mass on text."""

    def fractions(masses: np.ndarray) -> np.ndarray:
        text = masses[is_text].sum(0)
        return np.divide(masses, text, out=np.full(masses.shape, np.nan), where=text > 0)

    return fractions
