"""A dask scheduler with worker processes on this host, as people start them elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from distributed import LocalCluster

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def running_cluster(workers: int = 1, env: Mapping[str, str] | None = None) -> Iterator[LocalCluster]:
    """Start a scheduler and workers with one thread each, which end with the block."""
    with LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1",
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", **(env or {})},
    ) as cluster:  # fmt: skip
        yield cluster
