"""What any object of a file from a stranger may be: links, types, attributes, filters, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store.showable import showable

FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
SCALE_ATTRIBUTES = {
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
}
MAX_OBJECTS, MAX_DEPTH, MAX_ATTRIBUTES = 4096, 8, 64
MAX_RANK = 10
MAX_CHUNK_BYTES = 64 << 20
MAX_CONTIGUOUS_BYTES = 256 << 20
MAX_ATTRIBUTE_BYTES = 64 << 10
MAX_CHUNKS = 50_000_000


class Problem(Exception):
    """One sentence about the file; what else is wrong with that object is not looked for."""


@contextmanager
def told_as(sentence: str) -> Iterator[None]:
    """Turn whatever a file provokes in h5py and below into a Problem with this sentence."""
    try:
        yield
    except (Problem, MemoryError):
        raise
    except StoreError as error:  # is a sentence already
        raise Problem(str(error)) from error
    except Exception as error:
        raise Problem(sentence) from error


def shown(name: str) -> str:
    """A name from the file, short and printable."""
    return showable(name, 80)


def as_text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def walk(file: h5py.File) -> Iterator[str]:
    """Yield the names of all objects, through hard links only, each object once."""
    seen: set[tuple[int, int]] = set()
    stack = ["/"]
    while stack:
        name = stack.pop()
        with told_as(f"{shown(name)} cannot be read: it is damaged"):
            obj = file[name]
            info = h5py.h5o.get_info(obj.id)
            children = list(_children(obj, name)) if isinstance(obj, h5py.Group) else []
        if (info.fileno, info.addr) in seen:
            raise Problem(
                f"{shown(name)} is a second name of another object: only one hard link to each is allowed"
            )
        seen.add((info.fileno, info.addr))
        if len(seen) > MAX_OBJECTS or name.count("/") > MAX_DEPTH:
            raise Problem(
                f"it has more than {MAX_OBJECTS} objects, or they are nested deeper than {MAX_DEPTH}"
            )
        stack += children
        yield name


def _children(group: h5py.Group, name: str) -> Iterator[str]:
    if len(group) > MAX_OBJECTS:
        raise Problem(f"{shown(name)} holds {len(group)} objects, more than {MAX_OBJECTS}")
    kinds = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
    for child in group:
        path = f"{name.rstrip('/')}/{child}"
        kind = group.id.links.get_info(child.encode("utf-8", "surrogateescape")).type
        if kind != h5py.h5l.TYPE_HARD:
            raise Problem(
                f"{shown(path)} is {kinds.get(kind, 'a user-defined link')}: only hard links are allowed"
            )
        yield path


def check_object(file: h5py.File, name: str, file_size: int | None) -> None:
    """Check one object; `file_size` None leaves out where chunks lie, which of a file elsewhere is told when they are
    read."""
    obj = file[name]
    _check_attributes(obj, name)
    if isinstance(obj, h5py.Group):
        return
    if not isinstance(obj, h5py.Dataset):
        raise Problem(f"{shown(name)} is a named type: only groups and datasets are allowed")
    _check_type(obj.id.get_type(), name)
    _check_storage(obj, name, file_size)


def _check_type(kind: h5py.h5t.TypeID, name: str) -> None:
    """Allow integers, floats and strings; refuse references, compounds and everything else."""
    if isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)):
        if kind.get_size() in (1, 2, 4, 8) and (
            kind.get_size() == 1 or kind.get_order() == h5py.h5t.ORDER_LE
        ):
            return
        raise Problem(f"{shown(name)} holds numbers that are not little-endian of 1, 2, 4 or 8 bytes")
    if isinstance(kind, h5py.h5t.TypeStringID):
        return
    what = type(kind).__name__.removeprefix("Type").removesuffix("ID").lower()
    raise Problem(
        f"{shown(name)} holds values of the type '{what}': only integers, floats and strings are allowed"
    )


def _check_attributes(obj: h5py.Group | h5py.Dataset, name: str) -> None:
    if len(obj.attrs) > MAX_ATTRIBUTES:
        raise Problem(f"{shown(name)} has {len(obj.attrs)} attributes, more than {MAX_ATTRIBUTES}")
    for attribute in obj.attrs:
        place = f"attribute {attribute} of {name}"
        held = obj.attrs.get_id(attribute)
        if attribute in SCALE_ATTRIBUTES:
            continue  # dimension scales are references by HDF5's own specification
        _check_type(held.get_type(), place)
        too_large = Problem(f"{shown(place)} is larger than {MAX_ATTRIBUTE_BYTES} bytes")
        if held.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise too_large
        value = obj.attrs[attribute]  # must be readable; texts of any length are stored elsewhere
        texts = [value] if isinstance(value, str | bytes) else np.ravel(value).tolist()
        if sum(len(text) for text in texts if isinstance(text, str | bytes)) > MAX_ATTRIBUTE_BYTES:
            raise too_large


def _check_storage(dataset: h5py.Dataset, name: str, file_size: int | None) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise Problem(f"{shown(name)} is a virtual dataset, made of other files: copy the values into it")
    if plist.get_external_count():
        raise Problem(f"{shown(name)} keeps its values in another file: copy the values into it")
    for i in range(plist.get_nfilters()):
        number = plist.get_filter(i)[0]
        if number not in FILTERS:
            raise Problem(
                f"{shown(name)} uses the HDF5 filter {number}: only shuffle, gzip and fletcher32 are portable"
            )
    if plist.get_nfilters() > len({plist.get_filter(i)[0] for i in range(plist.get_nfilters())}):
        raise Problem(
            f"{shown(name)} uses one filter twice: what is deflated twice can become a million times larger"
        )
    if dataset.shape is None:
        raise Problem(f"{shown(name)} is empty: it has no shape")
    caps = 1 << 20
    if dataset.ndim > MAX_RANK or any(length > caps for length in dataset.shape):
        raise Problem(
            f"{shown(name)} has the shape {dataset.shape}: at most {MAX_RANK} dimensions of {caps} are read"
        )
    if dataset.maxshape != dataset.shape:
        raise Problem(f"{shown(name)} can grow: only datasets of a fixed shape are allowed")
    if dataset.chunks is None:
        if math.prod(dataset.shape) * dataset.dtype.itemsize > MAX_CONTIGUOUS_BYTES:
            raise Problem(
                f"{shown(name)} is one piece of over {MAX_CONTIGUOUS_BYTES >> 20} MiB: it must be chunked"
            )
    else:
        _check_chunks(dataset, name, file_size)


def _check_chunks(dataset: h5py.Dataset, name: str, file_size: int | None) -> None:
    nbytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if nbytes > MAX_CHUNK_BYTES:
        raise Problem(f"{shown(name)} has chunks of {nbytes} bytes, more than {MAX_CHUNK_BYTES >> 20} MiB")
    count = math.prod(
        -(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)
    )
    if count > MAX_CHUNKS:
        raise Problem(f"{shown(name)} has {count} chunks, more than {MAX_CHUNKS}")
    if file_size is None:
        return
    found: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(found.append)
    if not found:
        return
    # a file of 100 samples has 50,000: looked at together
    start, size = (np.array([getattr(chunk, what) for chunk in found]) for what in ("byte_offset", "size"))
    offsets = np.array([chunk.chunk_offset for chunk in found])
    inside = (0 < start) & (start <= file_size - size) & (size <= 2 * nbytes + 4096)
    aligned = (offsets % dataset.chunks == 0) & (offsets < dataset.shape)
    if not (inside.all() and aligned.all()):
        raise Problem(
            f"{shown(name)} has a chunk outside the file or larger than it can be: it is damaged or cut off"
        )
