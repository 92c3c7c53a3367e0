"""A server of files over HTTP that answers ranges, counts what it sends, and can be slow or misbehave."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Served:
    """One file behind an address: how it is sent, and what was sent of it.

    Args:
        ranges: whether parts are sent; whether without it the whole file is.
        seconds: how long each answer waits.
        status: an answer without a file in place of it.
        etag: what tells one file from another; "" for none.
    """

    path: Path
    ranges: bool = True
    seconds: float = 0.0
    status: int = 0
    etag: str = '"1"'
    address: str = ""
    pages: dict[str, Path] = field(default_factory=dict)
    requests: list[tuple[int, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """How many were sent of the file."""
        return sum(stop - start for start, stop in self.requests)

    def forget(self) -> None:
        """Count anew."""
        self.requests.clear(), self.asked.clear()


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve a file at `served.address`, and the pages beside it, until the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            if self.path == "/count":  # how many answers, and bytes, so far
                told = f"{len(served.requests)} {served.bytes}".encode()
                self._head(200, len(told), {"Content-Type": "text/plain"})
                self.wfile.write(told)
                return
            served.asked.append(self.path)
            page = served.pages.get(self.path.partition("?")[0])
            time.sleep(0 if page else served.seconds)
            path = page or served.path
            size = path.stat().st_size
            is_file = self.path.partition("?")[0] == f"/{served.path.name}"
            if not page and (served.status or not is_file):
                self._head(served.status or 404, 0, {})
                return
            if not body:
                served.requests.append((0, 0))
            asked = RANGE.fullmatch(self.headers.get("Range", "")) if served.ranges else None
            start, stop = (int(asked[1]), int(asked[2] or size - 1) + 1) if asked else (0, size)
            stop = min(stop, size)
            if asked and start >= size:
                self._head(416, 0, {"Content-Range": f"bytes */{size}"})
                return
            more = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if asked else {}
            more |= {"Accept-Ranges": "bytes"} if served.ranges else {}
            more |= {"ETag": served.etag} if served.etag and not page else {}
            kind = {".html": "text/html", ".js": "text/javascript"}.get(
                path.suffix, "application/octet-stream"
            )
            self._head(206 if asked else 200, stop - start, more | {"Content-Type": kind})
            if body:
                if not page:
                    served.requests.append((start, stop))
                with path.open("rb") as file:
                    file.seek(start)
                    left = stop - start
                    try:
                        while left > 0 and (data := file.read(min(left, 1 << 20))):
                            self.wfile.write(data)
                            left -= len(data)
                    except OSError:  # who asked has gone
                        self.close_connection = True

        def _head(self, status: int, length: int, more: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**more, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.address = f"http://127.0.0.1:{server.server_address[1]}/{served.path.name}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
