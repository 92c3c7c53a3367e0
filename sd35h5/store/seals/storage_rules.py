"""How variables must be stored: chunked, deflated once, with checksums; texts in one piece."""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from sd35h5.store import schema
from sd35h5.store.content_hash import variables_in
from sd35h5.store.schema import variable
from sd35h5.store.showable import showable

_NAMES = {
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
}
FILTERS = tuple(_NAMES)


def filters_of(dataset: h5py.Dataset) -> tuple[int, ...]:
    """Numbers of a dataset's filters, in their order."""
    plist = dataset.id.get_create_plist()
    return tuple(plist.get_filter(place)[0] for place in range(plist.get_nfilters()))


def storage_problems(file: h5py.File) -> Iterator[str]:
    """A sentence for each variable that is stored as the format forbids."""
    for name in (*variables_in(file), *(each for each in schema.SUMMARIES if each in file)):
        dataset, shown = file[name], showable(name)
        if variable(name).is_text:
            kind = dataset.id.get_type()
            if dataset.chunks or filters_of(dataset):
                yield f"{shown} is chunked or has filters, texts are one piece without any"
            if not kind.is_variable_str() or kind.get_cset() != h5py.h5t.CSET_UTF8:
                yield f"{shown} does not hold texts of variable length in UTF-8"
        elif dataset.chunks is None:
            yield f"{shown} is one piece, the format says that it is chunked"
        elif filters_of(dataset) != FILTERS:
            told = ", ".join(_NAMES.get(number, str(number)) for number in filters_of(dataset)) or "none"
            yield f"{shown} has the filters {told}; without shuffle, gzip, fletcher32 a flipped bit can pass"
        elif _skipped(dataset):
            yield f"{shown} has chunks without a checksum, so that a flipped bit can pass"


def _skipped(dataset: h5py.Dataset) -> bool:
    """Whether any chunk was written around a filter."""
    masks: list[int] = []
    dataset.id.chunk_iter(lambda chunk: masks.append(chunk.filter_mask))
    return bool(np.any(masks))
