"""The check behind verify, run as a process of its own: `python -m sd35h5.check` reads a JSON request from stdin."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from . import schema
from .blocks import block_hash, content_hash, extent, origins
from .packing import variables_in
from .schema import SCALES, Variable, variable

FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
SCALE_ATTRIBUTES = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}
OUT_OF_MEMORY = 64
MAX_OBJECTS, MAX_DEPTH, MAX_ATTRIBUTES = 4096, 8, 64
MAX_RANK = 10
MAX_CHUNK_BYTES = 64 << 20
MAX_CONTIGUOUS_BYTES = 256 << 20
MAX_ATTRIBUTE_BYTES = 64 << 10
MAX_CHUNKS = 50_000_000
MAX_PROBLEMS = 20


class Problem(Exception):
    """One sentence about the file; what else is wrong with that object is not looked for."""


def check_file(path: Path, deep: bool) -> Iterator[str]:
    """Yield a sentence for each problem of one file."""
    size = path.stat().st_size
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError):
        yield "it is no HDF5 file, or it is damaged or half-written"
        return
    with file:
        try:
            _check_identity(file)
            names = list(_walk(file))
        except Problem as problem:
            yield str(problem)
            return
        problems = []
        for name in names:
            problems += _sentence(_check_object, file, name, size)
        if not problems:
            for name in SCALES:
                problems += _sentence(_check_scale, file, name)
            for name in variables_in(file) if not problems else ():
                problems += _sentence(_check_variable, file, variable(name))
            problems += _sentence(_check_samples, file)
        if deep and not problems:
            problems += _sentence(_check_content, file)
        yield from problems[:MAX_PROBLEMS]


def _sentence(check: Any, *args: Any) -> list[str]:
    try:
        check(*args)
    except Problem as problem:
        return [str(problem)]
    except MemoryError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError, UnicodeError) as error:
        what = next((a.name if isinstance(a, Variable) else a for a in args if isinstance(a, (str, Variable))), "the file")
        return [f"{shown(what)} cannot be read ({type(error).__name__}): it is damaged"]
    return []


def shown(name: str) -> str:
    """A name from the file, short and printable."""
    safe = "".join(c if c.isprintable() else "?" for c in name)
    return safe if len(safe) <= 80 else f"{safe[:77]}..."


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check_identity(file: h5py.File) -> None:
    try:
        found = {name: _text(file.attrs.get(name, "")) for name in schema.FILE_ATTRIBUTES}
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise Problem("its attributes cannot be read: it is damaged") from error
    if found["schema_name"] != schema.SCHEMA_NAME:
        raise Problem("it is HDF5, but no sd35h5 store: it has no attribute schema_name = sd35h5")
    known = schema.SCHEMA_VERSION.partition(".")[0]
    for name in ("schema_version", "min_reader"):
        if not found[name]:
            raise Problem(f"it has no {name}")
        if found[name].partition(".")[0] != known:
            raise Problem(f"its {name} is {shown(found[name])}, this reader knows {known}.x: update sd35h5")
    for name, allowed in (("kind", schema.KINDS), ("status", schema.STATUSES)):
        if found[name] not in allowed:
            raise Problem(f"its {name} is '{shown(found[name])}', it must be one of {', '.join(allowed)}")


def _walk(file: h5py.File) -> Iterator[str]:
    """Yield the names of all objects, through hard links only, each object once."""
    seen: set[tuple[int, int]] = set()
    stack = ["/"]
    while stack:
        name = stack.pop()
        try:
            obj = file[name]
            info = h5py.h5o.get_info(obj.id)
            children = list(_children(obj, name)) if isinstance(obj, h5py.Group) else []
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise Problem(f"{shown(name)} cannot be read: it is damaged") from error
        if (info.fileno, info.addr) in seen:
            raise Problem(f"{shown(name)} is a second name of another object: only one hard link to each is allowed")
        seen.add((info.fileno, info.addr))
        if len(seen) > MAX_OBJECTS or name.count("/") > MAX_DEPTH:
            raise Problem(f"it has more than {MAX_OBJECTS} objects, or they are nested deeper than {MAX_DEPTH}")
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
            raise Problem(f"{shown(path)} is {kinds.get(kind, 'a user-defined link')}: only hard links are allowed")
        yield path


def _check_object(file: h5py.File, name: str, file_size: int) -> None:
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
        if kind.get_size() in (1, 2, 4, 8) and (kind.get_size() == 1 or kind.get_order() == h5py.h5t.ORDER_LE):
            return
        raise Problem(f"{shown(name)} holds numbers that are not little-endian of 1, 2, 4 or 8 bytes")
    if isinstance(kind, h5py.h5t.TypeStringID):
        return
    what = type(kind).__name__.removeprefix("Type").removesuffix("ID").lower()
    raise Problem(f"{shown(name)} holds values of the type '{what}': only integers, floats and strings are allowed")


def _check_attributes(obj: h5py.Group | h5py.Dataset, name: str) -> None:
    if len(obj.attrs) > MAX_ATTRIBUTES:
        raise Problem(f"{shown(name)} has {len(obj.attrs)} attributes, more than {MAX_ATTRIBUTES}")
    for attribute in obj.attrs:
        place = f"attribute {attribute} of {name}"
        held = obj.attrs.get_id(attribute)
        if attribute in SCALE_ATTRIBUTES:
            continue  # dimension scales are references by HDF5's own specification
        _check_type(held.get_type(), place)
        if held.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise Problem(f"{shown(place)} is larger than {MAX_ATTRIBUTE_BYTES} bytes")
        obj.attrs[attribute]  # must be readable


def _check_storage(dataset: h5py.Dataset, name: str, file_size: int) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise Problem(f"{shown(name)} is a virtual dataset, made of other files: copy the values into it")
    if plist.get_external_count():
        raise Problem(f"{shown(name)} keeps its values in another file: copy the values into it")
    for i in range(plist.get_nfilters()):
        number = plist.get_filter(i)[0]
        if number not in FILTERS:
            raise Problem(f"{shown(name)} uses the HDF5 filter {number}: only shuffle, gzip and fletcher32 are read everywhere")
    if dataset.shape is None:
        raise Problem(f"{shown(name)} is empty: it has no shape")
    caps = 1 << 20
    if dataset.ndim > MAX_RANK or any(length > caps for length in dataset.shape):
        raise Problem(f"{shown(name)} has the shape {dataset.shape}: at most {MAX_RANK} dimensions of {caps} are read")
    if dataset.maxshape != dataset.shape:
        raise Problem(f"{shown(name)} can grow: only datasets of a fixed shape are allowed")
    if dataset.chunks is None:
        if math.prod(dataset.shape) * dataset.dtype.itemsize > MAX_CONTIGUOUS_BYTES:
            raise Problem(f"{shown(name)} is one piece of more than {MAX_CONTIGUOUS_BYTES >> 20} MiB: it must be chunked")
    else:
        _check_chunks(dataset, name, file_size)


def _check_chunks(dataset: h5py.Dataset, name: str, file_size: int) -> None:
    nbytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if nbytes > MAX_CHUNK_BYTES:
        raise Problem(f"{shown(name)} has chunks of {nbytes} bytes, more than {MAX_CHUNK_BYTES >> 20} MiB")
    count = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    if count > MAX_CHUNKS:
        raise Problem(f"{shown(name)} has {count} chunks, more than {MAX_CHUNKS}")
    wrong = []

    def visit(chunk: h5py.h5d.StoreInfo) -> int | None:
        inside = 0 < chunk.byte_offset <= file_size - chunk.size
        aligned = all(o % c == 0 and o < n for o, c, n in zip(chunk.chunk_offset, dataset.chunks, dataset.shape, strict=True))
        if not inside or not aligned or chunk.size > 2 * nbytes + 4096:
            wrong.append(chunk)
            return 1
        return None

    dataset.id.chunk_iter(visit)
    if wrong:
        raise Problem(f"{shown(name)} has a chunk outside the file or larger than it can be: it is damaged or cut off")


def _check_scale(file: h5py.File, name: str) -> None:
    if name not in file:
        return
    spec, dataset = SCALES[name], file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind != np.dtype(spec.dtype).kind:
        raise Problem(f"scale {name} is not a list of {spec.dtype}")
    if len(dataset) > SCALES[spec.along].cap:
        raise Problem(f"scale {name} has {len(dataset)} positions, more than {SCALES[spec.along].cap}")
    if spec.along not in file or file[spec.along].shape != dataset.shape:
        raise Problem(f"scale {name} has {len(dataset)} positions, its dimension {spec.along} another number")
    if spec.is_dimension and not h5py.h5ds.is_scale(dataset.id):
        raise Problem(f"{name} is not marked as a dimension scale")
    dataset[:]


def _check_variable(file: h5py.File, spec: Variable) -> None:
    dataset = file[spec.name]
    if not isinstance(dataset, h5py.Dataset):
        raise Problem(f"{spec.name} is not a dataset")
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if is_text != spec.is_text or (not is_text and dataset.dtype != np.dtype(spec.dtype).newbyteorder("<")):
        raise Problem(f"{spec.name} holds {dataset.dtype}, the format says {spec.dtype}")
    if dataset.ndim != len(spec.dims):
        raise Problem(f"{spec.name} has {dataset.ndim} dimensions, the format says {', '.join(spec.dims)}")
    for axis, dim in enumerate(spec.dims):
        if dim not in file or len(file[dim]) != dataset.shape[axis]:
            raise Problem(f"{spec.name} has {dataset.shape[axis]} positions along {dim}, the scale another number or none")
        attached = dataset.dims[axis]
        if len(attached) != 1 or attached[0].name != f"/{dim}":
            raise Problem(f"{spec.name} has no dimension scale {dim} attached to its axis {axis}")
    if spec.is_text or spec.is_table:
        dataset[...]


def _check_samples(file: h5py.File) -> None:
    missing = [name for name in schema.REQUIRED if name not in file]
    if missing or "sample" not in file:
        raise Problem(f"it lacks {', '.join(missing) or 'the scale sample'}")
    count = len(file["sample"])
    if not count:
        raise Problem("it holds no sample")
    unsealed = np.flatnonzero(file["samples/sealed"][:] != 1)
    if len(unsealed):
        raise Problem(f"sample {file['sample'][unsealed[0]]} is not sealed: its capture did not end")
    for name in schema.PROVENANCE:
        if f"provenance/{name}" in file:
            try:
                json.loads(file[f"provenance/{name}"][()])
            except (ValueError, RecursionError) as error:
                raise Problem(f"provenance/{name} is not JSON") from error


def _check_content(file: h5py.File) -> None:
    """Read every value and compare each sample with the hash that sealed it."""
    sizes = {name: len(file[name]) for name, scale in SCALES.items() if scale.is_dimension and name in file}
    names = [name for name in variables_in(file) if not name.startswith("scores/")]
    for sample in range(sizes["sample"]):
        hashes: dict[str, dict[tuple[int, ...], str]] = {}
        for name in names:
            try:
                hashes[name] = _hashes(file[name], variable(name), sizes, sample)
            except (OSError, RuntimeError) as error:
                raise Problem(f"{name} of sample {sample} fails its checksum or cannot be read: it is damaged") from error
        if content_hash(hashes) != _text(file["samples/content_sha256"][sample]):
            raise Problem(f"the values of sample {sample} are not those that were sealed: its content hash differs")


def _hashes(dataset: h5py.Dataset, spec: Variable, sizes: dict[str, int], sample: int) -> dict[tuple[int, ...], str]:
    shape, chunk = spec.shape({**sizes, "sample": 1}), spec.chunks({**sizes, "sample": 1})
    source = dataset.asstr() if spec.is_text else dataset
    found = {}
    for origin in origins(tuple(slice(0, n) for n in shape), chunk):
        spans = [slice(o, o + n) for o, n in zip(origin, extent(origin, chunk, shape), strict=True)]
        found[origin] = block_hash(spec, np.asarray(source[(slice(sample, sample + 1), *spans[1:])]))
    return found


def _limit(seconds: int, memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's wall clock is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> int:
    """Check the requested files; print a JSON line for each file begun and each problem."""
    request = json.load(sys.stdin)
    _limit(request["seconds"], request["memory"])
    for path in map(Path, request["files"]):
        print(json.dumps({"file": path.name}), flush=True)
        try:
            for problem in check_file(path, request["deep"]):
                print(json.dumps({"file": path.name, "problem": problem}), flush=True)
        except MemoryError:
            return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
