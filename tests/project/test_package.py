"""What is installed: every folder of code, the dashboard's settings, and pins that lie within the ranges."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
from making.stores import make_store
from packaging.requirements import Requirement
from setuptools import find_namespace_packages

import sd35h5

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TORCH_SIDE = {"torch", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "peft"}


def _ranges() -> dict[str, Requirement]:
    project = PROJECT["project"]
    wanted = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["capture"]])
    return {each.name: each for each in wanted}


def _pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_folder_of_code_is_installed():
    folders = {path.parent for name in ("sd35h5", "dashboard") for path in (ROOT / name).rglob("*.py")}
    packages = find_namespace_packages(ROOT, **PROJECT["tool"]["setuptools"]["packages"]["find"])
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == set(packages)


def test_every_script_and_stylesheet_is_installed():
    given = PROJECT["tool"]["setuptools"]["package-data"]
    installed = {
        path for package, globs in given.items() for each in globs
        for path in (ROOT / package.replace(".", "/")).glob(each)
    }  # fmt: skip
    there = {
        path
        for kind in ("js", "css")
        for room in ("sd35h5", "dashboard")
        for path in (ROOT / room).rglob(f"*.{kind}")
    }
    assert there and there <= installed


def test_pins_lie_within_the_ranges():
    ranges = _ranges()
    for name, version in _pins().items():
        assert name not in ranges or ranges[name].specifier.contains(version), f"{name} {version}"
    assert {
        "torch",
        "diffusers",
        "transformers",
        "h5py",
        "xarray",
        "streamlit",
    } <= _pins().keys() & ranges.keys()


def test_gpu_machines_with_older_torch_and_transformers_may_install_it():
    ranges = _ranges()
    for name, version in (("torch", "2.11.0"), ("transformers", "5.17.0"), ("diffusers", "0.42.0")):
        assert ranges[name].specifier.contains(version)


def test_the_dashboard_alone_installs_without_torch():
    assert not {Requirement(each).name for each in PROJECT["project"]["dependencies"]} & TORCH_SIDE


def test_the_citation_and_the_package_tell_the_same_version():
    assert f"version: {sd35h5.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_dashboard_starts_from_any_folder_and_listens_on_this_machine_only(tmp_path):
    make_store(tmp_path / "a.h5")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dashboard", str(tmp_path / "a.h5")]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=file, stderr=file,
            env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "STREAMLIT_SERVER_PORT": str(port)},
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while "started on" not in log.read_text() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.2)
        assert f"started on localhost:{port}" in log.read_text()
        assert urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=10).status == 200
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_the_dashboard_takes_none_of_the_inotify_watches_that_shared_machines_lack():
    settings = tomllib.loads((ROOT / "dashboard" / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["server"]["fileWatcherType"] == "none"


def test_the_container_holds_what_the_dashboard_needs_and_starts_it():
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line]
    copied = {name for words in lines if words[0] == "COPY" for name in words[1:-1]}
    setup = PROJECT["project"]
    assert {"pyproject.toml", setup["readme"], *setup["license-files"], "sd35h5", "dashboard"} <= copied
    assert {f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]} <= copied
    assert all((ROOT / name).exists() for name in copied)
    (entry,) = (" ".join(words[1:]) for words in lines if words[0] == "ENTRYPOINT")
    assert entry.strip('["]') in setup["scripts"]


@pytest.mark.parametrize("name", ["sd35h5", "sd35h5-capture", "sd35h5-dashboard"])
def test_console_scripts_point_at_functions(name):
    module, function = PROJECT["project"]["scripts"][name].split(":")
    code = f"import {module} as module; assert callable(module.{function})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
