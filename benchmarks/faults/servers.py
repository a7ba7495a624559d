"""Servers on loopback that misbehave as a tracking service may."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("refused", "black hole", "500s", "dies mid-run", "hangs at the end")
_FIRST_ANSWERS = 4
"""Requests that a server answers before it dies."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    kind: str
    answered: int
    closing: threading.Event


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.server.kind
        if kind == "hangs at the end" and "finish" in self.path:
            self.server.closing.wait(600)
        if kind == "dies mid-run" and self.server.answered >= _FIRST_ANSWERS:
            self.server.socket.close()  # nobody listens any more
            self.connection.close()
            return
        self.server.answered += 1
        self.send_response(500 if kind == "500s" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(kind: str) -> Iterator[str]:
    """Yield the address of a server that behaves like `kind`, one of KINDS or `well`."""
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
    server.kind, server.answered, server.closing = kind, 0, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.closing.set()
        with contextlib.suppress(OSError):
            server.shutdown()
