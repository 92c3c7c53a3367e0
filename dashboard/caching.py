"""Values that were read or computed, kept for the next time: bounded in number and in bytes, the oldest goes
first."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import streamlit as st

MAX_ENTRIES = 512
MAX_BYTES = 96 << 20

P = ParamSpec("P")
R = TypeVar("R")


class Kept:
    """Values by key, each as its pickle: its bytes are then known, and no page can change what another gets.

    Arrays come back read-only and are not copied. What is unpickled was pickled by this process; readers of
    files send none (sd35h5.store.processes.reader_pool).
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.nbytes = 0
        self._values: OrderedDict[Hashable, tuple[bytes, ...]] = OrderedDict()  # a pickle, then its arrays
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Any:
        """Return the value anew; KeyError where it is not kept (any more)."""
        with self._lock:
            self._values.move_to_end(key)
            data, *arrays = self._values[key]
        return pickle.loads(data, buffers=arrays)

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value, and forget the ones that were not asked for longest until all fit again."""
        arrays: list[pickle.PickleBuffer] = []
        data = (pickle.dumps(value, protocol=5, buffer_callback=arrays.append), *map(bytes, arrays))
        if _size(data) > self.max_bytes:
            return
        with self._lock:
            self.nbytes += _size(data) - _size(self._values.pop(key, ()))
            self._values[key] = data
            while self.nbytes > self.max_bytes or len(self._values) > self.max_entries:
                self.nbytes -= _size(self._values.popitem(last=False)[1])


def _size(data: tuple[bytes, ...]) -> int:
    return sum(map(len, data))


@st.cache_resource(show_spinner=False)
def kept() -> Kept:
    """Return what the server keeps for all its visitors."""
    return Kept()


def made_once(key: Hashable, make: Callable[[], R]) -> R:
    """Return what is kept under the key; else make it and keep it."""
    with suppress(KeyError):
        return kept().get(key)
    value = make()
    kept().put(key, value)
    return value


def cached(spinner: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keep what a function returns for equal arguments; a `Run` among them changes when its file does."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            key = (function.__module__, function.__qualname__, args, tuple(sorted(kwargs.items())))
            try:
                return kept().get(key)
            except KeyError:
                with st.spinner(spinner) if spinner else nullcontext():
                    value = function(*args, **kwargs)
                kept().put(key, value)
                return value

        return wrapped

    return decorate
