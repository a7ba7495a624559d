"""The HTTP client against a server of the standard library that counts its connections."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlkit.generation.vllm.server_client import ServerClient, ServerError


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections = 0
    held = threading.Event()

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_GET(self) -> None:
        self._answer(200, "text, not JSON")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/echo"):
            self._answer(200, body.decode())
        elif self.path.endswith("/wait"):
            self.held.wait(20)
            self._answer(200, "{}")
        elif self.path.endswith("/plain"):
            self._answer(500, "broken\nin two lines")
        else:
            self._answer(404, json.dumps({"error": {"message": "no such adapter"}}))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the system drops connections that wait in a shorter queue


@pytest.fixture
def url() -> Iterator[str]:
    _Handler.connections = 0
    _Handler.held.clear()
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/base/"
    _Handler.held.set()
    server.shutdown()
    server.server_close()


def test_bodies_come_and_go_as_json_over_one_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody listens there
    client = ServerClient(url, timeout_s=5)
    for number in range(3):
        assert client.post("/v1/echo", {"n": number, "x": "ß"}) == {"n": number, "x": "ß"}
    assert client.get("/v1/models") == "text, not JSON"
    assert _Handler.connections == 1
    client.close()


def test_errors_are_one_line_with_the_servers_own_words(url: str) -> None:
    client = ServerClient(url, timeout_s=5)
    with pytest.raises(ServerError, match=r"^POST /v1/load: 404 no such adapter$"):
        client.post("/v1/load", {})
    with pytest.raises(ServerError, match=r"^POST /plain: 500 broken in two lines$"):
        client.post("/plain", {})
    client.close()
    with pytest.raises(ServerError, match=r"^GET /v1/models: "):
        client.get("/v1/models")
    with pytest.raises(ServerError, match=r"^GET /x: .*refused"):
        ServerClient("http://127.0.0.1:9", timeout_s=5).get("/x")


def test_a_late_answer_is_an_error_after_the_timeout(url: str) -> None:
    with pytest.raises(ServerError, match=r"^POST /wait: timed out$"):
        ServerClient(url, timeout_s=0.2).post("/wait", {})


def test_more_threads_than_a_pool_of_a_hundred_wait_at_once(url: str) -> None:
    client = ServerClient(url, timeout_s=60)
    with ThreadPoolExecutor(120) as pool:
        waiting = [pool.submit(client.post, "/wait", {}) for _ in range(120)]
        for _ in range(1000):
            if _Handler.connections == 120:
                break
            threading.Event().wait(0.01)
        _Handler.held.set()
        assert [future.result() for future in waiting] == [{}] * 120
    assert _Handler.connections == 120
    client.close()
