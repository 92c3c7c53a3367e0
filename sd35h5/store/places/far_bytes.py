"""The bytes of one file elsewhere, by requests for ranges alone, through fsspec; it has to stay the same file."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sd35h5.errors import Sd35h5Error, StoreError, StoreNotFoundError
from sd35h5.store.places.addresses import refuse_chained, shown_host, shown_name
from sd35h5.store.places.block_cache import BLOCK_BYTES, Span

EXTRA = "pip install 'sd35h5[remote]'"
CONNECT_SECONDS, READ_SECONDS = 15, 60
LOOKED_AT_EVERY = 30  # seconds, where answers do not tell themselves whether the file is the same
AT_ONCE = 8  # requests
BEGINNING_BYTES = 2 * BLOCK_BYTES  # attributes and variables, then scales and provenance
_MARKS = (
    "ETag",
    "etag",
    "LastModified",
    "last_modified",
    "mtime",
    "modified",
    "updated",
    "blob_id",
    "md5Hash",
)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _NoRanges(Exception):
    """The answer is the whole file, or does not say which part it is."""


class _Changed(Exception):
    """The answer is of another file than the first was."""


class FarBytes:
    """Bytes of a file at an address, a request a span; `requests` and `bytes` count them.

    Args: options: what fsspec takes for this kind of address (`headers`, `token`, `anon`, …).
    Raises: StoreError, one sentence without what may be secret in an address; StoreNotFoundError.
    """

    def __init__(self, address: str, options: Mapping[str, Any] | None = None) -> None:
        refuse_chained(address)
        self.name, self._host = shown_name(address), shown_host(address)
        self.requests = self.bytes = 0
        self._first: tuple[int, str, str] | None = None  # length, ETag, time of the last change
        self._looked = time.monotonic()
        is_http = address.startswith(("http://", "https://"))
        with self._sentences():
            self._files, self._path = _file_system(
                address, dict(options or {}), self._answered if is_http else None
            )
            if is_http:
                self.beginning = self._ranges([(0, BEGINNING_BYTES)])[0]
                self.size = self._first[0]
                self._mark = None
            else:
                self._mark = self._told()
                self.size = int(self._mark[0])
                self.beginning = self._ranges([(0, min(self.size, BEGINNING_BYTES))])[0]

    def fetch(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of some spans, asked for at the same time."""
        with self._sentences():
            if self._mark is not None and time.monotonic() - self._looked > LOOKED_AT_EVERY:
                if self._told() != self._mark:
                    raise _Changed
                self._looked = time.monotonic()
            found = self._ranges(spans)
            if [len(data) for data in found] != [stop - start for start, stop in spans]:
                raise _Changed
            return found

    def _ranges(self, spans: Sequence[Span]) -> list[bytes]:
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        found = self._files.cat_ranges(
            [self._path] * len(spans), starts, stops, batch_size=AT_ONCE, on_error="raise"
        )
        self.requests += len(found)
        self.bytes += sum(map(len, found))
        return found

    def _told(self) -> tuple[int, ...]:
        """Length of the file, and what else changes when it does."""
        self._files.invalidate_cache()
        info = self._files.info(self._path)
        self.requests += 1
        if not isinstance(info.get("size"), int):
            raise _NoRanges
        return (info["size"], *(str(info[mark]) for mark in _MARKS if mark in info))

    async def _answered(self, session: Any, context: Any, told: Any) -> None:
        """Look at the head of an answer over HTTP, before anything of its body is read."""
        answer = told.response
        if answer.status == 200:
            raise _NoRanges
        if answer.status == 416 and self._first is not None:
            raise _Changed
        if answer.status != 206:
            return  # fsspec raises what it stands for
        if not (span := _RANGE.fullmatch(answer.headers.get("Content-Range", ""))):
            raise _NoRanges
        mark = (int(span[3]), answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))
        if self._first is None:
            self._first = mark
        elif mark != self._first:
            raise _Changed

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """What goes wrong, in a sentence: messages of libraries hold the address, and are not shown."""
        try:
            yield
        except (Sd35h5Error, MemoryError):
            raise
        except _NoRanges:
            raise StoreError(
                f"{self.name}: {self._host} sends the whole file where a part of it is asked for: download it"
            ) from None
        except _Changed:
            raise StoreError(
                f"{self.name} was changed at {self._host} while it was read: open it again"
            ) from None
        except FileNotFoundError:
            raise StoreNotFoundError(f"{self.name}: there is no such file at {self._host}") from None
        except Exception as error:
            raise StoreError(f"{self.name} cannot be fetched from {self._host}: {_reason(error)}") from None


def _file_system(address: str, options: dict[str, Any], answered: Any) -> tuple[Any, str]:
    """fsspec's file system of an address, of its own, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        if answered is not None:
            import aiohttp

            trace = aiohttp.TraceConfig()
            trace.on_request_end.append(answered)
            limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            own = {"trace_configs": [trace], "timeout": limits}
            options["client_kwargs"] = {**options.get("client_kwargs", {}), **own}
            options["headers"] = {"Accept-Encoding": "identity", **options.get("headers", {})}
        return url_to_fs(address, **options, skip_instance_cache=True)
    except ImportError:
        scheme = address.partition(":")[0]
        raise StoreError(f"reading {scheme}:// needs packages that are not here: {EXTRA}") from None


def _reason(error: Exception) -> str:
    """Why it failed, in words that hold nothing of the address."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, PermissionError):
        return "it may not be read without a login, or not with this one"
    if status == 416:
        return "it is empty: get or copy it again"
    if status:
        return f"the answer was {status}"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ValueError) and "rotocol" in str(error):
        return "fsspec knows no such kind of address"
    if isinstance(error, OSError):
        return "it cannot be reached, or broke off"
    return f"it failed ({type(error).__name__})"
