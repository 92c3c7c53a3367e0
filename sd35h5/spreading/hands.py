"""Who works on many samples: threads of this process, or the workers of a scheduler.

Both give the same answers in the same order, so that what is made of them is equal to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from sd35h5.errors import NEEDS_DISTRIBUTED, ConfigError
from sd35h5.long_work import counted
from sd35h5.spreading.in_order import AHEAD, in_order

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

T, R = TypeVar("T"), TypeVar("R")
_THREADS = 4  # at most, of this process: two readers answer them


class Hands(Protocol):
    """Who does the work."""

    def run(
        self, function: Callable[[list[Store], T], R], runs: Sequence[str], pieces: Sequence[T], what: str
    ) -> Iterator[R]:
        """Yield function(stores of those runs, piece) for every piece, in their order, under a bar."""
        ...


class Here:
    """Threads of this process; the functions read from stores that are open already."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = stores

    def run(
        self, function: Callable[[list[Store], T], R], runs: Sequence[str], pieces: Sequence[T], what: str
    ) -> Iterator[R]:
        """As `Hands.run`."""
        stores = [self._stores[name] for name in runs]
        threads = max(1, min(_THREADS, os.cpu_count() or 1))
        pool = ThreadPoolExecutor(threads)
        try:
            yield from counted(
                in_order(lambda piece: pool.submit(function, stores, piece), pieces, AHEAD * threads),
                what, len(pieces),
            )  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def hands(
    paths: Mapping[str, str | Path], stores: Mapping[str, Store], scheduler: str = ""
) -> Iterator[Hands]:
    """Yield who works on these runs.

    Args:
        paths, stores: name of a run -> where it lies, and it as it is open here.
        scheduler: of workers elsewhere; this process where it is empty.
    Raises: ConfigError without the package; StoreError where nothing answers, or a worker sees no such file.
    """
    if not scheduler:
        yield Here(stores)
        return
    if find_spec("distributed") is None:
        raise ConfigError(f"--scheduler {NEEDS_DISTRIBUTED}")
    from sd35h5.spreading.elsewhere import There, client_of

    with client_of(scheduler) as client:
        there = There(client, scheduler, paths, stores)
        try:
            yield there
        finally:
            there.close()
