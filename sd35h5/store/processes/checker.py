"""The check behind verify, run as `python -m sd35h5.store.processes.checker`: a JSON request comes on stdin."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from sd35h5.store import schema
from sd35h5.store.blocks import content_hash
from sd35h5.store.content_hash import block_hashes, hashed_in, sizes_in, variables_in
from sd35h5.store.derived.summary import summaries_in
from sd35h5.store.derived.summary_check import check_summary
from sd35h5.store.opening import unlocked, wrong_file
from sd35h5.store.processes.children import READY
from sd35h5.store.processes.fetched_file import FetchedFile
from sd35h5.store.processes.object_rules import Problem, as_text, check_object, shown, told_as, walk
from sd35h5.store.schema import SCALES, variable
from sd35h5.store.seals.attribute_rules import attribute_problems, is_marked_as_scale
from sd35h5.store.seals.file_seal import seal_problems
from sd35h5.store.seals.signing_off import coverage
from sd35h5.store.seals.storage_rules import storage_problems
from sd35h5.store.showable import forbidden, forbidden_within
from sd35h5.store.versions import version_of, version_problem

OUT_OF_MEMORY = 64
MAX_PROBLEMS = 20
MAX_TEXT_BYTES = 1 << 20
MAX_PROVENANCE_BYTES = 16 << 20
SLACK_BYTES = 1 << 16
MAX_UNHELD_BYTES = 64 << 20


def check_file(path: Path | FetchedFile, deep: bool, covered: list[dict] | None = None) -> list[str]:
    """Sentences for the problems of one file, [] for a good one.

    Of a file elsewhere the lists of chunks and the tokens' texts are left to who reads them: they are megabytes.
    Args: covered: what the seals of a good file are over is put there, of a deep check.
    """
    is_far = isinstance(path, FetchedFile)
    problems: list[str] = []
    try:
        with _opened(path) as file:
            with told_as("it cannot be walked through: it is damaged"):
                _check_identity(file)
                names = list(walk(file))
            size = path.stat().st_size
            _check_claims(file, size)
            problems = _each(check_object, file, names, None if is_far else size)
            if not problems:
                problems = _each(_check_scale, file, SCALES)
            if not problems:
                problems = _each(_check_variable, file, [*variables_in(file), *summaries_in(file)])
            if not problems:
                small = [name for name in variables_in(file) if not (is_far and name.startswith("tokens/"))]
                problems = _each(_check_values, file, small)
            if not problems:
                _check_samples(file)
            if deep and not problems:
                problems = _each_rule(file)
                _check_content(file)
                check_summary(file)
                if covered is not None and not problems:
                    covered.append(coverage(file, names))
    except Problem as problem:
        return [*problems, str(problem)][:MAX_PROBLEMS]
    return problems[:MAX_PROBLEMS]


def _each_rule(file: h5py.File) -> list[str]:
    """What is not as the format demands, or as it was sealed."""
    problems: list[str] = []
    told = version_of(as_text(file.attrs["schema_version"]))
    rules = [storage_problems, seal_problems]
    if told <= version_of(schema.SCHEMA_VERSION):  # a later version's attributes are its own
        rules.insert(0, attribute_problems)
    if told > (1, 0) and schema.SEAL not in file:
        problems.append(f"it lacks {schema.SEAL}, the seal over scales, attributes and provenance")
    for rule in rules:
        try:
            with told_as("its attributes, scales or provenance cannot be read: it is damaged"):
                problems += rule(file)
        except Problem as problem:
            problems.append(str(problem))
    return problems


def _opened(path: Path | FetchedFile) -> h5py.File:
    try:
        return unlocked(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes of h5py
        raise Problem(wrong_file(path, error)) from error


def _each(check: Callable, file: h5py.File, names: Iterable[str], *more: object) -> list[str]:
    """The sentences of a check for each name."""
    problems = []
    for name in names:
        try:
            with told_as(f"{shown(name)} cannot be read: it is damaged"):
                check(file, name, *more)
        except Problem as problem:
            problems.append(str(problem))
    return problems


def _check_identity(file: h5py.File) -> None:
    with told_as("its attributes cannot be read: it is damaged"):
        found = {name: as_text(file.attrs.get(name, "")) for name in schema.FILE_ATTRIBUTES}
        told = {name: as_text(value) for name, value in file.attrs.items()}
    for name, text in told.items():
        if found_in := forbidden(name) or forbidden(text):
            raise Problem(
                f"its attribute {shown(name)} holds {found_in.split()[0]}, which no text of a file may"
            )
    if found["schema_name"] != schema.SCHEMA_NAME:
        raise Problem(
            "it is HDF5, but no sd35h5 store, or it is damaged: it has no attribute schema_name = sd35h5"
        )
    if problem := version_problem(found):
        raise Problem(problem)
    for name, allowed in (("kind", schema.KINDS), ("status", schema.STATUSES)):
        if found[name] not in allowed:
            raise Problem(f"its {name} is '{shown(found[name])}', it must be one of {', '.join(allowed)}")


def _check_claims(file: h5py.File, size: int) -> None:
    """Refuse what would be read and cannot be there: unwritten values take no room in a file, but all of it in
    memory. A sample has its hash of 64 characters, a text at least its place."""
    with told_as("its sizes cannot be read: it is damaged"):
        sizes = sizes_in(file)
        samples = sizes.get("sample", 0)
        heads = max(sizes.get("head", 1), sizes.get("head_attn2", 1))
        cells = heads * math.prod(sizes.get(dim, 1) for dim in ("sample", "step", "layer"))
        texts = {name: file[name].size or 0 for name in variables_in(file) if variable(name).is_text}
    if 64 * samples > size + SLACK_BYTES:
        raise Problem(f"it claims {samples} samples, which {size} bytes cannot hold")
    if 4 * cells > MAX_UNHELD_BYTES + 16 * size:  # one number of each is what every chart begins with
        raise Problem(
            f"it claims {cells} heads at all layers, steps and samples, which {size} bytes cannot hold"
        )
    for name, count in texts.items():
        if count > size + SLACK_BYTES:
            raise Problem(f"{name} claims {count} texts, which {size} bytes cannot hold")


def _check_scale(file: h5py.File, name: str) -> None:
    if name not in file:
        return
    spec, dataset = SCALES[name], file[name]
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.ndim != 1
        or dataset.dtype.kind != np.dtype(spec.dtype).kind
    ):
        raise Problem(f"scale {name} is not a list of {spec.dtype}")
    if len(dataset) > SCALES[spec.along].cap:
        raise Problem(f"scale {name} has {len(dataset)} positions, more than {SCALES[spec.along].cap}")
    if spec.along not in file or file[spec.along].shape != dataset.shape:
        raise Problem(f"scale {name} has {len(dataset)} positions, its dimension {spec.along} another number")
    if spec.is_dimension and not is_marked_as_scale(dataset):
        raise Problem(f"{name} is not marked as a dimension scale")
    dataset[:]


def _check_variable(file: h5py.File, name: str) -> None:
    spec, dataset = variable(name), file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise Problem(f"{spec.name} is not a dataset")
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if is_text != spec.is_text or (not is_text and dataset.dtype != np.dtype(spec.dtype).newbyteorder("<")):
        raise Problem(f"{spec.name} holds {dataset.dtype}, the format says {spec.dtype}")
    if dataset.ndim != len(spec.dims):
        raise Problem(f"{spec.name} has {dataset.ndim} dimensions, the format says {', '.join(spec.dims)}")
    for axis, dim in enumerate(spec.dims):
        if dim not in file or len(file[dim]) != dataset.shape[axis]:
            raise Problem(f"{spec.name} has {dataset.shape[axis]} positions along {dim}, its scale has not")
    for axis, dim in enumerate(spec.dims):
        attached = dataset.dims[axis]
        if len(attached) != 1 or attached[0].name != f"/{dim}":
            raise Problem(f"{spec.name} has no dimension scale {dim} attached to its axis {axis}")


def _check_values(file: h5py.File, name: str) -> None:
    """Read what is small."""
    spec = variable(name)
    if spec.is_text:
        _check_texts(name, file[name][...].ravel().tolist())
    elif spec.is_table:
        file[name][...]


def _check_texts(name: str, texts: Sequence[bytes]) -> None:
    """Refuse texts that are too long, no UTF-8, or hold what ends a renderer and no reader should have to expect."""
    if (longest := max(map(len, texts), default=0)) > MAX_TEXT_BYTES:
        raise Problem(f"{name} holds a text of {longest} bytes, more than {MAX_TEXT_BYTES}")
    with told_as(f"{name} holds a text that is not UTF-8"):
        joined = b"\n".join(texts).decode()
    if found := forbidden(joined):
        raise Problem(f"{name} holds the control character {found.split()[0]}, which no text of a file may")


def _check_samples(file: h5py.File) -> None:
    with told_as("its table of samples cannot be read: it is damaged"):
        _check_table(file)


def _check_table(file: h5py.File) -> None:
    missing = [name for name in schema.REQUIRED if name not in file]
    if missing or "sample" not in file:
        raise Problem(f"it lacks {', '.join(missing) or 'the scale sample'}")
    count = len(file["sample"])
    if not count:
        raise Problem("it holds no sample")
    unsealed = np.flatnonzero(file["samples/sealed"][:] != 1)
    if len(unsealed):
        raise Problem(f"sample {file['sample'][unsealed[0]]} is not sealed: its capture did not end")
    if "provenance/config" not in file:
        raise Problem("it lacks provenance/config: what the capture was asked for")
    for name in schema.PROVENANCE:
        if f"provenance/{name}" in file:
            with told_as(f"provenance/{name} is not JSON"):
                text = file[f"provenance/{name}"][()]
                if len(text) > MAX_PROVENANCE_BYTES:
                    raise Problem(
                        f"provenance/{name} holds {len(text)} bytes, more than {MAX_PROVENANCE_BYTES}"
                    )
                told = json.loads(text)
            if forbidden_within(told):
                raise Problem(f"provenance/{name} holds a control character, which no text of a file may")


def _check_content(file: h5py.File) -> None:
    """Read every value and compare each sample with the hash that sealed it."""
    sizes = sizes_in(file)
    for sample in range(sizes["sample"]):
        hashes: dict[str, dict[tuple[int, ...], str]] = {}
        for name in hashed_in(file):
            with told_as(f"{name} of sample {sample} fails its checksum or cannot be read: it is damaged"):
                hashes[name] = block_hashes(file[name], variable(name), sizes, sample)
        if content_hash(hashes) != as_text(file["samples/content_sha256"][sample]):
            raise Problem(
                f"the values of sample {sample} are not those that were sealed: its content hash differs"
            )


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
    print(READY.decode(), end="", flush=True)
    request = json.loads(sys.stdin.buffer.readline())
    _limit(request["seconds"], request["memory"])
    far = [FetchedFile(told, sys.stdin.buffer, sys.stdout.buffer) for told in request.get("far", ())]
    for path in (*map(Path, request["files"]), *far):
        print(json.dumps({"file": path.name}), flush=True)
        covered: list[dict] = []
        try:
            for problem in check_file(path, request["deep"], covered):
                print(json.dumps({"file": path.name, "problem": problem}), flush=True)
            for each in covered:
                print(json.dumps({"file": path.name, "covered": each}), flush=True)
        except MemoryError:
            return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
