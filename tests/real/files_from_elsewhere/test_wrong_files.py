"""What may stand in place of run.h5: each is called what it is, by every command alike, and nothing is a traceback."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from making.stores import make_store

from sd35h5 import StoreError, open_store, verify
from sd35h5.store.writer import begin_run

ROOT = Path(__file__).resolve().parents[3]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 53000000\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>no</body></html>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return make_store(tmp_path_factory.mktemp("whole") / "run.h5", samples=1).read_bytes()


def without_objects(whole: bytes) -> bytes:
    """The superblock alone is right."""
    return whole[:48] + bytes(len(whole) - 48)


def being_written(whole: bytes) -> bytes:
    """The mark that HDF5 leaves in a superblock of version 3 while a program writes."""
    assert whole[8] == 3
    return whole[:11] + b"\x01" + whole[12:]


KINDS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda whole: b"", "it is empty"),
    "git-lfs pointer": (lambda whole: POINTER, "it is a git-lfs pointer, not the file itself: fetch it with `git lfs"),
    "web page": (lambda whole: PAGE, "it is a web page, not the file itself: download it again"),
    "a server's answer": (lambda whole: b'{"error":"not found"}', "it is a text, not HDF5, and begins with “{\"error"),
    "half download": (lambda whole: whole[: len(whole) // 2], "it is cut off, it has HALF of WHOLE bytes"),
    "first bytes alone": (lambda whole: whole[:10], "it is cut off, it has only 10 bytes"),
    "gzipped": (gzip.compress, "it is compressed with gzip: unpack it with gunzip first"),
    "zip": (lambda whole: b"PK\x03\x04" + whole, "it is a zip archive or a PyTorch file"),
    "macOS's companion": (lambda whole: b"\x00\x05\x16\x07\x00\x02\x00\x00", "it is what macOS leaves beside a file"),
    "zeros": (lambda whole: bytes(5000), "it begins with nothing but zeros"),
    "random bytes": (lambda whole: b"\x91\x02" * 900, "it is no HDF5 file, or its beginning is damaged"),
    "damaged": (without_objects, "damaged"),
    "written now": (being_written, "another program is writing it, or ended while it did"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_place_of_a_store_is_named(tmp_path, whole, kind):
    """Opening, verifying and capturing over it say the same; overwriting it is not offered."""
    path = tmp_path / "run.h5"
    path.write_bytes(KINDS[kind][0](whole))
    sentence = KINDS[kind][1].replace("HALF of WHOLE", f"{len(whole) // 2} of {len(whole)}")
    (problem,) = verify(path).problems
    assert sentence in problem
    for ask in (open_store, lambda place: begin_run(place, {}, planned=1)):
        with pytest.raises(StoreError) as told:
            ask(path)
        assert str(told.value).startswith("run.h5 cannot be ") and sentence in str(told.value)
        assert "overwrite" not in str(told.value)


def test_a_text_is_quoted_only_where_it_can_be_printed(tmp_path):
    path = tmp_path / "run.h5"
    path.write_bytes(b"\x1b[31mred\n" * 40)
    (problem,) = verify(path).problems
    assert problem.isprintable() and "no HDF5 file" in problem
    path.write_text("x" * 5000)
    (problem,) = verify(path).problems
    assert len(problem) < 150


def test_an_unreadable_file_is_told_with_the_systems_reason(tmp_path, whole):
    path = tmp_path / "run.h5"
    path.write_bytes(whole)
    path.chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from sd35h5.store.opening import opened\n"
        "os.chdir(sys.argv[1])\n"
        "if os.getuid() == 0: os.setuid(65534)  # root may read everything\n"
        "opened(Path('run.h5'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stderr.rstrip().endswith("StoreError: run.h5 cannot be opened: permission denied")


def test_a_folder_of_samples_names_the_file_that_is_wrong(tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=2, packed=False)
    shutil.copy(parts / "000000.h5", parts / "000002.h5")
    (parts / "000001.h5").write_bytes(POINTER)
    with pytest.raises(StoreError, match="^000001.h5 cannot be opened: it is a git-lfs pointer"):
        open_store(parts)
