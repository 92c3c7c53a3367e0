"""A hostile or damaged file gets a sentence, and never takes the asking process with it."""

from __future__ import annotations

import json
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.stores import make_store

from sd35h5 import StoreNotFoundError, verify
from sd35h5.store.writer import begin_run

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("verify") / "good.h5", samples=2, gates=True)


def test_a_good_file_is_good(good):
    basic, deep = verify(good), verify(good, deep=True)
    assert basic.ok and bool(basic) and basic.problems == () == deep.problems
    assert set(basic.checks) < set(deep.checks) and basic.covered == basic.not_covered == ()


def test_a_file_signed_off_says_by_what_and_what_nobody_sealed(good, tmp_path):
    path = tmp_path / "noted.h5"
    shutil.copy(good, path)
    with h5py.File(path, "a") as file:
        file.attrs["my_note"] = "looked at"
        file["mine/numbers"] = np.arange(3)
        variables = sum(
            isinstance(held, h5py.Dataset)
            for group in ("sinks", "topk", "maps")
            for held in file[group].values()
        )
    report = verify(path, deep=True)
    assert report.ok and "HDF5" in report.by and "format 1.1" in report.by
    assert (
        report.covered[0].startswith("every value of 2 samples in ")
        and int(report.covered[0].split()[-2]) > variables
    )
    assert report.not_covered == ("the attribute my_note of the file", "mine", "mine/numbers")
    (first,) = (each for each in verify(GOLDEN / "v1.0.h5", deep=True).not_covered)
    assert first.startswith("scales, attributes, scores and provenance")


def test_a_running_capture_is_checked_file_by_file(tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=3, packed=False, planned=4)
    assert verify(tmp_path / "run.h5", deep=True).ok
    whole = (parts / "000001.h5").read_bytes()
    (parts / "000001.h5").write_bytes(whole[:9000])
    cut = f"it is cut off, it has 9000 of {len(whole)} bytes: copy or download it again"
    assert verify(parts).problems == (f"000001.h5: {cut}",)


def test_a_capture_without_samples_is_not_broken(tmp_path):
    begin_run(tmp_path / "run.h5", {}, planned=2)
    assert verify(tmp_path / "run.h5").ok


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(StoreNotFoundError, match="^no.h5: there is no such file or folder$"):
        verify(tmp_path / "no.h5")


def _replace(name: str, make: Callable[[h5py.File], object]) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        make(file)

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd.h5", "x", (4,))
    file.create_virtual_dataset("sinks/virtual", layout)


def _cycle(file: h5py.File) -> None:
    file["sinks/again"] = file["/"]


def _many_groups(file: h5py.File) -> None:
    for i in range(5000):
        file.create_group(f"junk/{i}")


def _set(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def _lie(file: h5py.File) -> None:
    values = file["sinks/entropy_text"][...]
    values[0, 0, 0, 0, 0, 0] += 1
    file["sinks/entropy_text"][...] = values


def _deflated_twice(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_deflate(1), plist.set_deflate(1)
    h5py.h5d.create(file.id, b"odd", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), plist)


def _class_of_scale(scale: h5py.Dataset, text: bytes, length: int, count: int = 0) -> None:
    """HDF5's own H5DSis_scale frees memory twice over the first, and writes past it over the second."""
    del scale.attrs["CLASS"]
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(length)
    space = h5py.h5s.create_simple((count,)) if count else h5py.h5s.create(h5py.h5s.SCALAR)
    held = h5py.h5a.create(scale.id, b"CLASS", kind, space)
    held.write(np.array([text] * count if count else text, f"S{length}"))


def _stored_again(name: str, **filters: object) -> Callable[[h5py.File], None]:
    """The same values with the same scales, stored otherwise."""

    def change(file: h5py.File) -> None:
        held = file[name]
        scales = [held.dims[axis][0] for axis in range(held.ndim)]
        values, attributes = held[:], {key: held.attrs[key] for key in ("long_name", "units", "_FillValue")}
        del file[name]
        again = file.create_dataset(name, data=values, **filters)
        again.attrs.update(attributes)
        for axis, scale in enumerate(scales):
            again.dims[axis].attach_scale(scale)

    return change


def _masked(file: h5py.File) -> None:
    """A chunk that says of itself that it went around the filters."""
    held = file["sinks/mass_group"]
    whole = np.zeros(held.chunks, "<f4")
    whole[...] = held[tuple(slice(0, length) for length in held.chunks)]
    held.id.write_direct_chunk((0,) * held.ndim, whole.tobytes(), 0b111)


ON = {"compression": "gzip"}
HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "soft link": (
        lambda f: f.__setitem__("odd", h5py.SoftLink("/sinks")),
        "/odd is a soft link: only hard links",
    ),
    "external link": (
        lambda f: f.__setitem__("sinks/odd", h5py.ExternalLink("/etc/passwd", "/")),
        "/sinks/odd is an external link: only hard links",
    ),
    "hard link cycle": (_cycle, "is a second name of another object"),
    "external storage": (
        lambda f: f.create_dataset("odd", (4,), "u1", external=[("/etc/passwd", 0, 4)]),
        "/odd keeps its values in another file",
    ),
    "virtual dataset": (_virtual, "/sinks/virtual is a virtual dataset"),
    "unknown filter": (
        lambda f: f.create_dataset("odd", (4,), "f4", chunks=(4,), compression="lzf"),
        "HDF5 filter 32000",
    ),
    "scale-offset": (
        lambda f: f.create_dataset("odd", (4,), "i4", chunks=(4,), scaleoffset=0),
        "HDF5 filter 6",
    ),
    "reference": (
        lambda f: f.create_dataset("odd", (1,), h5py.ref_dtype),
        "/odd holds values of the type 'reference': only integers, floats and strings",
    ),
    "reference attribute": (
        lambda f: f.attrs.create("odd", f["sinks"].ref, dtype=h5py.ref_dtype),
        "attribute odd of / holds values of the type 'reference'",
    ),
    "compound": (lambda f: f.create_dataset("odd", (1,), np.dtype([("a", "f4")])), "the type 'compound'"),
    "enum": (lambda f: f.create_dataset("odd", (1,), h5py.enum_dtype({"A": 1})), "the type 'enum'"),
    "vlen numbers": (lambda f: f.create_dataset("odd", (1,), h5py.vlen_dtype("f4")), "the type 'vlen'"),
    "opaque": (lambda f: f.create_dataset("odd", (1,), "V8"), "the type 'opaque'"),
    "big-endian": (lambda f: f.create_dataset("odd", (1,), ">f4"), "not little-endian"),
    "named type": (lambda f: f.__setitem__("odd", np.dtype("f4")), "/odd is a named type"),
    "long dimension": (
        lambda f: f.create_dataset("odd", (1 << 21,), "u1", chunks=(1024,)),
        "at most 10 dimensions of",
    ),
    "eleven dimensions": (lambda f: f.create_dataset("odd", (1,) * 11, "u1"), "at most 10 dimensions"),
    "vast chunk": (
        lambda f: f.create_dataset("odd", (1 << 14,) * 2, "f4", chunks=(1 << 14,) * 2, **ON),
        "has chunks of 1073741824",
    ),
    "vast piece": (lambda f: f.create_dataset("odd", (1 << 15,) * 2, "f4"), "must be chunked"),
    "endless chunks": (
        lambda f: f.create_dataset("odd", (1 << 20,) * 2, "f4", chunks=(1, 1)),
        "chunks, more than",
    ),
    "resizable": (lambda f: f.create_dataset("odd", (4,), "f4", maxshape=(None,)), "/odd can grow"),
    "empty": (lambda f: f.create_dataset("odd", data=h5py.Empty("f4")), "/odd is empty"),
    "many objects": (_many_groups, "/junk holds 5000 objects, more than 4096"),
    "one filter twice": (
        lambda f: _deflated_twice(f),
        "/odd uses one filter twice",
    ),
    "another text of a scale's length": (
        lambda f: _class_of_scale(f["layer"], b"IMAGE", 16),
        "layer is not marked as a dimension scale",
    ),
    "many texts for a scale's class": (
        lambda f: _class_of_scale(f["layer"], b"DIMENSION_SCALE", 16, 4),
        "layer is not marked as a dimension scale",
    ),
    "no checksums": (
        _stored_again("sinks/entropy_text", compression="gzip", shuffle=True),
        "without shuffle, gzip, fletcher32",
    ),
    "one piece": (
        _stored_again("sinks/entropy_text"),
        "sinks/entropy_text is one piece, the format says that it is chunked",
    ),
    "chunk without checksum": (_masked, "sinks/mass_group has chunks without a checksum"),
    "scale_factor": (
        lambda f: f["sinks/mass_group"].attrs.__setitem__("scale_factor", 1000.0),
        "sinks/mass_group has the attribute scale_factor, upon which readers act",
    ),
    "valid_range of a scale": (
        lambda f: f["step"].attrs.__setitem__("valid_range", [1, 2]),
        "step has the attribute valid_range, upon which readers act",
    ),
    "another fill": (
        lambda f: f["sinks/mass_group"].attrs.__setitem__("_FillValue", np.float32([0.5])),
        "sinks/mass_group has _FillValue = [0.5], the format says nan",
    ),
    "units": (
        lambda f: f["sigma"].attrs.__setitem__("units", "km"),
        "sigma has units = km, the format says 1",
    ),
    "no seal": (lambda f: f.__delitem__("provenance/seal"), "it lacks provenance/seal"),
    "broken seal": (
        _replace("provenance/seal", lambda f: f.create_dataset("provenance/seal", data='{"whole": 3}')),
        "its seal (provenance/seal) cannot be read",
    ),
    "large attribute": (
        lambda f: f["sinks"].attrs.create("odd", np.zeros(9000)),
        "attribute odd of /sinks is larger than",
    ),
    "deep nesting": (lambda f: f.create_group("/".join("abcdefghijkl")), "nested deeper"),
    "no version": (lambda f: f.attrs.__delitem__("schema_version"), "it has no schema_version"),
    "future version": (
        _set("schema_version", "2.0"),
        "its schema_version is 2.0, this reader knows 1.x: update sd35h5",
    ),
    "future reader": (_set("min_reader", "2.0"), "its min_reader is 2.0"),
    "not ours": (_set("schema_name", "other"), "no sd35h5 store"),
    "number for a version": (_set("schema_version", 7), "its schema_version is 7"),
    "kind": (_set("kind", "banana"), "its kind is 'banana', it must be one of sample, run, slice, merge"),
    "unsealed": (lambda f: f["samples/sealed"].__setitem__(1, 0), "sample 1 is not sealed"),
    "no table": (lambda f: f.__delitem__("samples/seed"), "it lacks samples/seed"),
    "no scale": (lambda f: f.__delitem__("layer"), "has 3 positions along layer, its scale has not"),
    "long scale": (
        lambda f: f.create_dataset("row", data=np.arange(5000, dtype="i4")).make_scale("row"),
        "scale row has 5000 positions, more than 4096",
    ),
    "wrong type": (
        _replace(
            "sinks/entropy_text", lambda f: f.create_dataset("sinks/entropy_text", (2, 2, 2, 4, 3, 2), "f8")
        ),
        "sinks/entropy_text holds float64, the format says float32",
    ),
    "wrong shape": (
        _replace(
            "sinks/entropy_text", lambda f: f.create_dataset("sinks/entropy_text", (2, 2, 2, 4, 3, 5), "<f4")
        ),
        "sinks/entropy_text has 5 positions along head, its scale has not",
    ),
    "no dimension scale": (
        _replace(
            "sinks/entropy_text", lambda f: f.create_dataset("sinks/entropy_text", (2, 2, 2, 4, 3, 2), "f4")
        ),
        "sinks/entropy_text has no dimension scale sample attached to its axis 0",
    ),
    "group for a variable": (
        _replace("sinks/mass_group", lambda f: f.create_group("sinks/mass_group")),
        "is not a dataset",
    ),
    "no provenance": (lambda f: f.__delitem__("provenance/config"), "lacks provenance/config"),
    "broken provenance": (
        _replace("provenance/config", lambda f: f.create_dataset("provenance/config", data="{steps")),
        "provenance/config is not JSON",
    ),
    "endless text": (
        lambda f: f["samples/tags"].__setitem__(0, "x" * (1 << 21)),
        "a text of 2097152 bytes, more than",
    ),
    "changed value": (
        _lie,
        "the values of sample 0 are not those that were sealed: its content hash differs",
    ),
}


@pytest.fixture(scope="module")
def told(good, tmp_path_factory) -> dict[str, list[str]]:
    """What one verification of a folder with all hostile files says of each."""
    folder = tmp_path_factory.mktemp("hostile")
    for index, (change, _) in enumerate(HOSTILE.values()):
        path = folder / f"{index:06d}.h5"
        shutil.copy(good, path)
        with h5py.File(path, "a", libver=("v110", "v114")) as file:
            change(file)
    problems = verify(folder, deep=True).problems
    assert not any(str(folder) in problem for problem in problems)
    return {
        case: [p.partition(": ")[2] for p in problems if p.startswith(f"{index:06d}")]
        for index, case in enumerate(HOSTILE)
    }


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_gets_a_sentence(told, case):
    assert any(HOSTILE[case][1] in problem for problem in told[case]), told[case]
    assert all("\n" not in problem and len(problem) < 300 for problem in told[case])


def test_names_from_the_file_are_shown_printable_and_short(good, tmp_path):
    path = tmp_path / "stranger.h5"
    shutil.copy(good, path)
    with h5py.File(path, "a") as file:
        file["\x1b[31mred\n" + "x" * 500] = h5py.SoftLink("/sinks")
    (problem,) = verify(path).problems
    assert problem.isprintable() and len(problem) < 160


def test_basic_verification_reads_no_large_values_and_deep_does(good, tmp_path):
    path = tmp_path / "flipped.h5"
    data = bytearray(good.read_bytes())
    with h5py.File(good) as file:
        info = file["sinks/mass_image"].id.get_chunk_info(3)
    data[info.byte_offset + 20] ^= 4
    path.write_bytes(data)
    assert verify(path).ok
    assert verify(path, deep=True).problems == (
        "sinks/mass_image of sample 0 fails its checksum or cannot be read: it is damaged",
    )


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_cut_off_file_is_told(good, tmp_path, share):
    path = tmp_path / "cut.h5"
    data = good.read_bytes()
    left = int(len(data) * share)
    path.write_bytes(data[:left])
    cut = f"it is cut off, it has {left} of {len(data)} bytes: copy or download it again"
    assert verify(path).problems == (cut if left else "it is empty: get or copy it again",)


def flips(good: Path, folder: Path, count: int, seed: int) -> None:
    """Verify `count` copies with a few flipped bits each: every problem is a printable sentence."""
    rng = random.Random(seed)
    data = good.read_bytes()
    for i in range(count):
        copy = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 30, 200))):
            copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
        (folder / f"{i:06d}.h5").write_bytes(copy)
    problems = verify(folder, deep=True).problems
    assert len({problem[:9] for problem in problems}) > count / 3  # a packed file has room that nothing fills
    for problem in problems:
        assert problem.isprintable() and str(folder) not in problem and "check itself failed" not in problem


def test_flipped_bits_never_reach_the_asking_process(good, tmp_path):
    flips(good, tmp_path, count=25, seed=100)


@pytest.mark.slow
@pytest.mark.long
def test_many_flipped_bits_never_reach_the_asking_process(good, tmp_path):
    for seed in range(20):
        (tmp_path / str(seed)).mkdir()
        flips(good, tmp_path / str(seed), count=25, seed=seed)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("kill -SEGV $$", "reading it crashed the HDF5 library: it is damaged"),
        ("kill -ABRT $$", "reading it crashed the HDF5 library: it is damaged"),
        ("exec sleep 60", "reading it did not end in 1 s: it is damaged, or made to hang readers"),
        ("exit 64", "reading it takes more than 2 GiB of memory"),
        (
            "echo half a line; echo 'KeyError: x' >&2; exit 1",
            "the check itself failed (KeyError): please report it",
        ),
    ],
)
def test_a_check_that_crashes_hangs_or_swells_is_told(good, tmp_path, monkeypatch, script, sentence):
    """The interpreter that verify starts is replaced by a program that ends as HDF5 can."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{{\"ready\": true}}'\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    (problem,) = verify(good, seconds=1).problems
    assert problem.startswith(sentence)


def test_a_file_that_ends_the_check_does_not_hide_the_others(tmp_path, monkeypatch):
    """The program dies while it checks 000001.h5, as HDF5 would, and checks the others."""
    parts = make_store(tmp_path / "run.h5", samples=4, packed=False)
    (parts / "000003.h5").write_bytes(b"")
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport os, pathlib, signal\nfrom sd35h5.store.processes import checker\n"
        "real = checker.check_file\n"
        "def check_file(path, *more):\n"
        "    if path.name == '000001.h5':\n        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return real(path, *more)\n"
        "checker.check_file = check_file\nraise SystemExit(checker.main())\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    assert verify(parts).problems == (
        "000001.h5: reading it crashed the HDF5 library: it is damaged",
        "000003.h5: it is empty: get or copy it again",
    )


def test_the_limits_hold_in_the_subprocess(tmp_path):
    """A text dataset that claims more memory than is allowed ends in a sentence, not in a dead machine."""
    path = make_store(tmp_path / "a.h5", samples=1)
    request = {"files": [str(path)], "deep": True, "seconds": 20, "memory": 400 << 20}
    with h5py.File(path, "a") as file:
        del file["samples/prompt"]
        prompt = file.create_dataset("samples/prompt", (1,), h5py.string_dtype())
        prompt[0] = "x" * (200 << 20)
        prompt.dims[0].attach_scale(file["sample"])
    command = [sys.executable, "-m", "sd35h5.store.processes.checker"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, cwd=root)
    assert done.returncode == 64 or b"problem" in done.stdout, done
