"""JSON over HTTP with the standard library: a client for one server, usable from many threads."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any
from urllib.parse import urlsplit


class ServerError(Exception):
    """The server could not be reached, or answered with an error; one line."""


class Client:
    """Keeps one connection a thread. Bodies and answers are JSON; plain text comes as a string."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._https = parts.scheme == "https"
        self._address = parts.netloc
        self._path = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()

    def get(self, path: str) -> Any:
        """Return the answer to a GET; raises ServerError."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the answer to a POST; raises ServerError."""
        return self._request("POST", path, json.dumps(body))

    def close(self) -> None:
        """Close every connection: answers that threads are waiting for are given up."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _request(self, method: str, path: str, body: str | None) -> Any:
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._send(method, self._path + path, body, headers)
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self._forget()
            raise ServerError(f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 400:
            raise ServerError(f"{method} {path}: {answer.status} {_message(text)}")
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    def _send(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        kept = getattr(self._local, "connection", None) is not None
        try:
            self._connection().request(method, path, body, headers)
            return self._connection().getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server may close a connection that was idle; only then is it safe to ask again.
            self._forget()
            if not kept:
                raise
        self._connection().request(method, path, body, headers)
        return self._connection().getresponse()

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
            connection = kind(self._address, timeout=self._timeout_s)
            self._local.connection = connection
            with self._lock:
                self._open.add(connection)
        return connection

    def _forget(self) -> None:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()
            with self._lock:
                self._open.discard(connection)


def _message(text: str) -> str:
    """Return the message of an OpenAI-style error, else the start of the text, in one line."""
    try:
        found = json.loads(text)
        text = str(found.get("error", {}).get("message") or found.get("message") or text)
    except (json.JSONDecodeError, AttributeError):
        pass
    return " ".join(text.split())[:200]
