"""Disks that are full or read-only, for tests: small file systems in memory, which only root may mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of so many bytes at a folder; the test is skipped where that is not allowed."""
    with mounted(folder, size) as is_there:
        if not is_there:
            pytest.skip("no file system can be mounted here")
        yield folder


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[bool]:
    """Mount a file system of so many bytes at a folder. Yields: whether that is allowed here."""
    folder.mkdir(exist_ok=True)
    is_there = _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield is_there
    finally:
        if is_there:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(folder: Path, size: str) -> None:
    """Give a `small_disk` more room."""
    assert _mount("-o", f"remount,size={size}", str(folder))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to a `small_disk`, root neither."""
    assert _mount("-o", "remount,ro", str(folder))
    try:
        yield
    finally:
        assert _mount("-o", "remount,rw", str(folder))


def fill(folder: Path, but: int = 0) -> Path:
    """Write until a disk is full, and leave some bytes of it. Returns: the file to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                continue
        except OSError:
            file.truncate(max(0, file.tell() - but))
    return filler


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
