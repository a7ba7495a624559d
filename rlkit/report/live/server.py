"""This server answers on loopback with the page, its newer versions, and completions.

It reads no path from a request: completions are named by what the page was offered. A page of
another site can neither ask nor read, as the server answers to the names of loopback alone.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs

from rlkit.report.build import policy_of_page
from rlkit.report.live.samples import Order, SampleQuery, SampleShelf
from rlkit.report.live.watcher import Watcher

_LOG = logging.getLogger(__name__)
HOST = "127.0.0.1"
_PORT = re.compile(r":\d+$")
_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""The host names that a browser may ask under; the port may be that of a tunnel."""


class LiveServer(ThreadingHTTPServer):
    """It serves one watcher; each request has a thread that ends with the process."""

    daemon_threads = True

    def __init__(self, watcher: Watcher, *, port: int) -> None:
        """Listen on `port` of loopback, 0 = one that is free.

        Raises:
            OSError: the port is taken or needs another user.
        """
        self.watcher = watcher
        self.shelf = SampleShelf(lambda: watcher.jobs)
        super().__init__((HOST, port), _Handler)

    @contextmanager
    def serving(self) -> Iterator[Self]:
        """Answer requests in a thread as long as the body runs, then let the port go."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        with self:
            thread.start()
            try:
                yield self
            finally:
                self.shutdown()
                thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep a request that failed out of the terminal."""
        _LOG.debug("a request of %s failed", client_address, exc_info=True)

    @property
    def address(self) -> str:
        """Return the address for a browser."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    """It answers one request."""

    server: LiveServer
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds: a connection that says nothing holds no thread for longer

    def do_GET(self) -> None:
        """Answer with the page, newer pages or completions."""
        path, _, query = self.path.partition("?")
        host = _PORT.sub("", self.headers.get("Host", ""))
        if host not in _NAMES:
            self._send(403, b"this page answers to localhost alone\n", kind="text/plain")
        elif path == "/":
            page = self.server.watcher.page()
            if self.headers.get("If-None-Match") == page.tag:
                self._send(304, b"", kind="text/html")
            else:
                told = {"ETag": page.tag, "X-Problem": _header(page.problem)}
                self._send(200, page.body, kind="text/html", more=told)
        elif path == "/samples":
            answer = self.server.shelf.answer(_query(query))
            # A lone surrogate, which JSON escapes, could not be encoded.
            self._send(200, json.dumps(answer).encode("ascii"), kind="application/json")
        else:
            self._send(404, b"there is nothing here\n", kind="text/plain")

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.do_GET()

    def _send(
        self, code: int, body: bytes, *, kind: str, more: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(code)
        for name, value in {**_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        if code != 304:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal is for what the run does."""

    def handle(self) -> None:
        """Handle a connection; a browser that hangs up in the middle is no fault."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


def _query(text: str) -> SampleQuery:
    """Return what a query asks for; what it gets wrong has its default."""
    given = {key: values[-1] for key, values in parse_qs(text).items()}
    order, page = given.get("order", ""), given.get("page", "")
    return SampleQuery(
        job=given.get("job", ""),
        file=given.get("file", ""),
        text=given.get("text", ""),
        order=Order(order) if order in list(Order) else Order.sampled,
        cut=given.get("cut") == "1",
        page=int(page) if page.isascii() and page.isdigit() and len(page) < 10 else 0,
    )


def _header(text: str) -> str:
    """Return a text as a header may hold it."""
    return text.encode("ascii", "replace").decode()[:300]


_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"{policy_of_page(live=True)}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",  # a thread for each open tab would outlive the server
}
