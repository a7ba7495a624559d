"""Servers on loopback that misbehave as a tracking service may."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.faults import wandb_protocol

KINDS = ("refused", "black hole", "500s", "dies mid-run", "hangs at the end")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    kind: str
    data: int
    """Requests with metrics so far."""
    most_data: int
    closing: threading.Event


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        encoding, kind = self.headers.get("Content-Encoding") or "", self.server.kind
        if kind == "hangs at the end" and self._is_end(body, encoding):
            self.server.closing.wait(600)
        self.server.data += wandb_protocol.is_data(self.path) or self.path == "/log"
        if kind == "dies mid-run" and self.server.data > self.server.most_data:
            self.server.socket.close()  # nobody listens any more
            self.connection.close()
            return
        answer = b"{}"
        if wandb_protocol.is_graphql(self.path):
            host, port = self.server.server_address[:2]
            address = f"http://{host!s}:{port}"
            answer = wandb_protocol.answer(body, encoding=encoding, address=address)
        self.send_response(500 if kind == "500s" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _is_end(self, body: bytes, encoding: str) -> bool:
        return self.path == "/finish" or wandb_protocol.is_end(body, encoding=encoding)

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(kind: str, *, most_data: int = 2) -> Iterator[str]:
    """Yield the address of a server that behaves like `kind`, one of KINDS or `well`.

    One that dies takes `most_data` requests with metrics before.
    """
    if kind == "refused":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    if kind == "black hole":
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", 0))
            hole.listen(16)  # the kernel takes connections that nobody ever reads
            yield f"http://127.0.0.1:{hole.getsockname()[1]}"
        return
    server = _Server(("127.0.0.1", 0), _Handler)
    server.kind, server.data, server.closing = kind, 0, threading.Event()
    server.most_data = most_data
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.closing.set()
        with contextlib.suppress(OSError):
            server.shutdown()
