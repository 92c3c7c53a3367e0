"""Packages that come by PYTHONPATH or user site, as on clusters with modules: what is started here finds them, too."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.stores import make_store

from dashboard import run_list
from sd35h5 import verify
from sd35h5.errors import StoreError
from sd35h5.store.processes import children
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.processes.writer_client import ProcessWriter
from sd35h5.store.writer import Header

ROOT = Path(__file__).resolve().parents[3]
LOOK = """
import sys
from sd35h5 import open_store, verify
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.processes.writer_client import ProcessWriter
print(verify(sys.argv[1], deep=True).problems)
readers = Readers(count=1)
print(open_through(readers, sys.argv[1]).sizes["sample"], "samples")
readers.close()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("cluster") / "run.h5", samples=2)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A Python without any package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def site_packages() -> str:
    """Where this Python's packages lie."""
    return os.pathsep.join(dict.fromkeys(str(Path(package.__file__).parents[1]) for package in (h5py, np)))


@pytest.mark.parametrize("way", ["PYTHONPATH", "sys.path"])
def test_packages_of_this_process_are_found_by_those_it_starts(run, bare, tmp_path, way):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code, found = LOOK, os.pathsep.join((str(ROOT), site_packages()))
    if way == "PYTHONPATH":
        environment["PYTHONPATH"] = found
    else:
        code = f"import sys; sys.path += {found.split(os.pathsep)!r}{LOOK}"
    done = subprocess.run(
        [bare, "-c", code, str(run)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.stdout == "()\n2 samples\n", done.stderr


def test_a_start_up_file_that_prints_is_passed_over(run, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('module load python/3.11')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert verify(run).ok
    readers = Readers(count=1)
    try:
        assert open_through(readers, run).sizes["sample"] == 2
    finally:
        readers.close()


def test_what_hdf5_is_told_reaches_readers_and_secrets_do_not(monkeypatch):
    monkeypatch.setenv("HDF5_PLUGIN_PATH", "/modules/hdf5/plugins")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    known = children._environment()
    assert known["HDF5_PLUGIN_PATH"] == "/modules/hdf5/plugins"
    assert known["HDF5_USE_FILE_LOCKING"] == "FALSE" and "HF_TOKEN" not in known


@pytest.fixture
def without_packages(monkeypatch, bare):
    """What is started now finds no h5py."""
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.setattr(
        children, "with_import_path", lambda environment: {**environment, "PYTHONPATH": str(ROOT)}
    )


def test_a_process_that_cannot_start_is_no_files_fault(run, without_packages):
    sentence = r"does not start: ModuleNotFoundError: No module named '\w+'; no file is to blame"
    with pytest.raises(children.CannotStartError, match=f"^sd35h5.store.processes.checker {sentence}"):
        verify(run)
    readers = Readers(count=1)
    try:
        for _ in range(2):  # it is not remembered against the file
            with pytest.raises(
                children.CannotStartError, match=f"^sd35h5.store.processes.reader_process {sentence}"
            ):
                open_through(readers, run)
        said, is_of_file = run_list._judged(readers, (str(run), ()))
        assert "no file is to blame" in said and not is_of_file
    finally:
        readers.close()


def test_a_writer_that_cannot_start_is_told(tmp_path, without_packages):
    writer = ProcessWriter(tmp_path, 0, Header({}, {}, {"config": "{}"}))
    with pytest.raises(children.CannotStartError, match="writer_process does not start"):
        writer.seal()
    writer.abandon()


def test_an_interpreter_that_is_gone_is_told(run, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(children.CannotStartError, match="does not start: No such file or directory"):
        verify(run)


def test_a_file_that_kills_its_checker_is_still_to_blame(run, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho '{\"ready\": true}'\nkill -SEGV $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert verify(run).problems == ("reading it crashed the HDF5 library: it is damaged",)
    readers = Readers(count=1)
    try:
        with pytest.raises(StoreError, match="^run.h5: reading it crashed the HDF5 library"):
            open_through(readers, run)
    finally:
        readers.close()
