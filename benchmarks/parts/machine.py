"""What a benchmark's numbers come from: the machine, the versions, the day; no host or user name."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"


def machine(packages: Sequence[str], threads: int) -> dict[str, object]:
    """Describe this machine, with the versions of the packages and the threads that are measured."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }


def machine_told(facts: dict[str, object]) -> str:
    """What `machine` found, as the last sentence of a table."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{facts['cpu']}, {facts['cores']} cores, load before the runs {facts['load_before']:.2f}; "
        f"{facts['system']}, {versions}. {facts['date']}."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
