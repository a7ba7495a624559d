"""This server speaks OpenAI's chat dialect on loopback; each request waits for a turn of the model.

It runs in an environment's worker. A program's session has a URL of its own, so that a request
needs no other sign of whose it is.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""It takes the body of a request and returns the model's message; it raises `RequestRefused`."""


class ChatEndpoint(NamedTuple):
    """This is what a client of OpenAI's API needs to know."""

    base_url: str
    """It ends in `/v1`."""
    model: str = "policy"
    api_key: str = "none"


class RequestRefused(Exception):
    """A request gets no turn of the model; the text says why."""


class ChatServer:
    """It listens on a free port of loopback until its process ends."""

    def __init__(self) -> None:
        self._asks: dict[str, Ask] = {}
        asks = self._asks

        class OwnHandler(_ChatHandler):
            sessions = asks

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), OwnHandler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, ask: Ask) -> ChatEndpoint:
        """Return the endpoint of a new session, whose requests go to `ask`."""
        name = secrets.token_hex(8)  # other users of the machine reach loopback as well
        self._asks[name] = ask
        return ChatEndpoint(f"http://127.0.0.1:{self._server.server_port}/{name}/v1")

    def remove(self, endpoint: ChatEndpoint) -> None:
        """Answer the session's requests with an error from now on."""
        self._asks.pop(endpoint.base_url.split("/")[-2], None)


class _ChatHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sessions: Mapping[str, Ask] = {}

    def do_GET(self) -> None:
        models = [{"id": "policy", "object": "model", "created": 0, "owned_by": "rlkit"}]
        self._send(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _, name, _, *rest = [*self.path.split("/"), "", ""]
        try:
            if "/".join(rest).rstrip("/") != "chat/completions":
                raise RequestRefused(f"the path must be chat/completions, got {self.path}")
            if name not in self.sessions:
                raise RequestRefused("the episode has ended")
            try:
                body = json.loads(sent)
            except ValueError as error:
                raise RequestRefused(f"the body must be JSON, got {error}") from error
            if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
                raise RequestRefused("the body must hold a list of messages")
            message = self.sessions[name](body)
        except RequestRefused as refused:  # 400: clients do not try this again
            self._send(400, {"error": {"message": str(refused), "type": "refused"}})
            return
        if body.get("stream"):
            self._stream(message)
        else:
            self._send(200, _completion(message))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what a worker prints is kept for faults."""

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        self._write(status, "application/json", json.dumps(body).encode())

    def _stream(self, message: Mapping[str, Any]) -> None:
        calls = [{"index": n, **call} for n, call in enumerate(message.get("tool_calls", ()))]
        delta = {**message, "tool_calls": calls} if calls else dict(message)
        ends = {"index": 0, "delta": {}, "finish_reason": _finish(message)}
        chunks = [
            _chunk([{"index": 0, "delta": delta, "finish_reason": None}]),
            {**_chunk([ends]), "usage": _USAGE},
        ]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._write(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _write(self, status: int, kind: str, data: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:  # the program has gone away
            self.close_connection = True


_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_HEAD = {"id": "chatcmpl-rlkit", "created": 0, "model": "policy"}


def _completion(message: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": dict(message), "finish_reason": _finish(message)}
    return {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}


def _chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {**_HEAD, "object": "chat.completion.chunk", "choices": choices}


def _finish(message: Mapping[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"
