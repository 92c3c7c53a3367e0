"""Work by the workers of a running dask.distributed scheduler, which open the files themselves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from distributed import Client, KilledWorker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.long_work import counted
from sd35h5.spreading.in_order import AHEAD, in_order
from sd35h5.store.places.addresses import is_address, name_of
from sd35h5.store.processes.guarded_store import open_checked, own_readers

if TYPE_CHECKING:
    from sd35h5.store.processes.reader_pool import Readers
    from sd35h5.store.reader import Store

T, R = TypeVar("T"), TypeVar("R")
_SECONDS = 60  # to wait for the first worker of a scheduler


@contextmanager
def client_of(address: str, no_answer: type[Sd35h5Error] = StoreError) -> Iterator[Client]:
    """Yield a client of a running scheduler.

    Args: address: `tcp://host:8786`, or a scheduler file; no_answer: the error to raise.
    Raises: `no_answer`, one sentence, where none answers.
    """
    # of dead workers, who asked them tells
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        client = Client(scheduler_file=address) if Path(address).is_file() else Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise no_answer(
            f"--scheduler {address}: no scheduler answers there ({type(error).__name__}): is it running, and can this "
            "host reach it?"
        ) from error
    with client:
        yield client


class There:
    """Workers of a scheduler, which open the files themselves: those must lie where all see them under one path."""

    def __init__(
        self, client: Client, address: str, paths: Mapping[str, str | Path], stores: Mapping[str, Store]
    ) -> None:
        self._client, self._address = client, address
        self._plugin = f"sd35h5-files-{uuid4().hex[:8]}"
        files = {name: (_place(path), _mark(stores[name])) for name, path in paths.items()}
        try:
            client.wait_for_workers(1, timeout=_SECONDS)
        except TimeoutError as error:
            raise StoreError(
                f"the scheduler {address} has no worker: start one, `dask worker {address}`"
            ) from error
        with _told(address):
            client.register_plugin(_Files(files), name=self._plugin)

    def run(
        self, function: Callable[[list[Store], T], R], runs: Sequence[str], pieces: Sequence[T], what: str
    ) -> Iterator[R]:
        """As `Hands.run`.

        Raises: StoreError, one sentence, of what no worker can do.
        """
        threads = sum(
            one["nthreads"] for one in self._client.scheduler_info(n_workers=-1)["workers"].values()
        )

        def submit(piece: T) -> Any:
            return self._client.submit(_done_there, self._plugin, function, list(runs), piece, pure=False)

        with _told(self._address):
            yield from counted(in_order(submit, pieces, AHEAD * max(1, threads)), what, len(pieces))

    def close(self) -> None:
        """Have the workers close the files."""
        with _told(self._address):
            self._client.unregister_worker_plugin(self._plugin)


class _Files(WorkerPlugin):
    """What a worker opens of some runs, when it is first asked about them, and closes in the end."""

    def __init__(self, files: Mapping[str, tuple[str | Path, tuple[str, ...]]]) -> None:
        self._files = dict(files)

    def setup(self, worker: Any) -> None:
        self._address, self._lock = worker.address, threading.Lock()
        self._stores: dict[str, Store] = {}
        self._readers: Readers | None = None

    def teardown(self, worker: Any) -> None:
        if self._readers is not None:
            self._readers.close()

    def stores(self, names: Sequence[str]) -> list[Store]:
        """Open runs, verified, or give those that are open.

        Raises: StoreError, with the worker's address.
        """
        with self._lock:
            return [self._stores.get(name) or self._opened(name) for name in names]

    def _opened(self, name: str) -> Store:
        path, mark = self._files[name]
        file = name_of(path)
        self._readers = self._readers or own_readers()
        try:
            store = open_checked(path, self._readers)
        except Sd35h5Error as error:
            raise StoreError(
                f"the worker {self._address} cannot open {file}: {error}; all workers must see it under the path "
                "that it has here"
            ) from error
        if _mark(store) != mark:
            raise StoreError(
                f"the worker {self._address} sees another {file} than this host, or one with other samples: is "
                "it a copy, or still being captured?"
            )
        self._stores[name] = store
        return store


def _place(path: str | Path) -> str | Path:
    """Where a worker finds what lies here: the same address, or the whole path."""
    return path if is_address(path) else Path(path).resolve()


def _mark(store: Store) -> tuple[str, ...]:
    """What tells one run from another, and from itself with more samples."""
    return (store.attributes.get("file_uuid", ""), *map(str, store.read("samples/sample_id").values.tolist()))


def _done_there(plugin: str, function: Callable[[list[Store], T], R], runs: list[str], piece: T) -> R:
    """In a worker: do one piece of the work.

    Raises: StoreError for every error of ours, without what caused it: some of both do not survive the way back.
    """
    try:
        return function(get_worker().plugins[plugin].stores(runs), piece)
    except Sd35h5Error as error:
        told = StoreError(str(error))
    raise told


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Make a sentence of what the engine says of dead workers, lost schedulers and missing packages.

    Raises: StoreError.
    """
    try:
        yield
    except Sd35h5Error:
        raise
    except KilledWorker as error:
        raise StoreError(
            f"{error.allowed_failures + 1} workers of {address} died of one piece of the work: have they enough memory?"
        ) from error
    except (CommClosedError, FutureCancelledError, TimeoutError) as error:
        raise StoreError(
            f"the scheduler {address} was lost on the way ({type(error).__name__}): start it, and the command, again"
        ) from error
    except (ImportError, AttributeError) as error:
        raise StoreError(
            f"the workers of {address} cannot do it ({error}): they need sd35h5 in the version of this host"
        ) from error
