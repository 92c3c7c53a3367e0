"""Worker processes that draw a job: one a GPU of this host, several on its CPU, or those of a running scheduler.

dask.distributed queues the batches, watches the workers and gives to others what a dead one was drawing. It talks to
them in pickles over TCP: workers of this host are bound to it, and the address of a scheduler is trusted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sd35h5.capturing.progress import say
from sd35h5.errors import CaptureError, ConfigError
from sd35h5.planning.spread_options import Spread, chosen_gpus
from sd35h5.spreading.elsewhere import client_of

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

_HOST = "127.0.0.1"
ALLOWED_DEATHS = (
    10  # of workers that draw one batch; the engine's own 3 lose batches that had nothing to do with it
)
_SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
    "distributed.scheduler.worker-saturation": 1.0,  # none waits at a worker that may die
    "distributed.scheduler.worker-ttl": "30 minutes",  # reading 27 GB holds up what a worker answers
    "distributed.comm.timeouts.connect": "60s",
}


@contextmanager
def workers_of(spread: Spread) -> Iterator[Client]:
    """Start workers, or find them; yield what hands them work.

    Raises:
        ConfigError: GPUs that are not there.
        CaptureError: no scheduler at the address.
    """
    import dask
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.ERROR)  # dead workers are told of by the capture
    with dask.config.set(_SETTINGS):
        if not spread.scheduler:
            with _cluster_here(spread) as cluster, Client(cluster) as client:
                yield client
            return
        with client_of(spread.scheduler, CaptureError) as client:
            if not client.scheduler_info(n_workers=-1)["workers"]:
                say(f"waiting for the first worker of {spread.scheduler}")
            client.wait_for_workers(1)
            yield client


def _cluster_here(spread: Spread) -> SpecCluster:
    """One Nanny for each worker: it starts the process with its environment, and again when it dies."""
    from distributed import Nanny, Scheduler, SpecCluster

    # after Ctrl-C, Python tells of semaphores that it cleans up itself
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    gpus = _gpus(spread) if spread.gpus else [""] * (spread.workers or 0)
    common = {
        "nthreads": 1, "memory_limit": 0, "host": _HOST, "silence_logs": logging.ERROR, "dashboard": False,
    }  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // len(gpus)))
    own = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
    workers = {
        number: {"cls": Nanny, "options": {**common, "env": {**own, "CUDA_VISIBLE_DEVICES": gpu}}}
        for number, gpu in enumerate(gpus)
    }
    scheduler = {"cls": Scheduler, "options": {"host": _HOST, "port": 0, "dashboard": False}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)


def _gpus(spread: Spread) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` is for each worker."""
    count, chosen = torch.cuda.device_count(), chosen_gpus(spread.gpus)
    if not count:
        raise ConfigError(f"--gpus {spread.gpus}: this machine has no CUDA device; on the CPU: --workers 2")
    if chosen and max(chosen) >= count:
        raise ConfigError(f"--gpus {spread.gpus}: this machine has GPUs 0..{count - 1}")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(number) for number in range(count)]
    return [visible[number] for number in (range(count) if chosen is None else chosen)]


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
