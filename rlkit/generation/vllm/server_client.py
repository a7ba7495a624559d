"""A client for one server that speaks JSON over HTTP, usable from many threads at once."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

# Servers drop idle connections (uvicorn after 5 s), and a request sent into one that is being
# dropped fails. A connection that was idle for this long is therefore not used again.
_MAX_IDLE_SECONDS = 2.0


class ServerError(Exception):
    """The server could not be reached, or answered with an error; one line."""


class ServerGone(ServerError):
    """Nobody listens there, or a connection broke off: the server died, or is being restarted."""


class ServerClient:
    """A client keeps one pool of connections.

    Bodies and answers are JSON; plain text comes as a string.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Send nothing yet; `timeout_s` bounds the connecting and each wait for an answer."""
        self._http = httpx.Client(
            base_url=url,
            timeout=timeout_s,
            # The callers' threads bound the number of connections.
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=_MAX_IDLE_SECONDS,
            ),
            # The system's certificates; proxies of the environment are not asked for a neighbour.
            verify=ssl.create_default_context(),
            trust_env=False,
        )

    def get(self, path: str) -> Any:
        """Return the answer to a GET; raise ServerError."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the answer to a POST; raise ServerError."""
        return self._request("POST", path, body)

    def close(self) -> None:
        """Close every connection: answers that threads are waiting for are given up."""
        self._http.close()

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise ServerGone(f"{method} {path}: {error or type(error).__name__}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(f"{method} {path}: {error or type(error).__name__}") from error
        except RuntimeError as error:  # httpx says so when another thread has closed the client
            raise ServerError(f"{method} {path}: {error}") from error
        if answer.is_error:
            raise ServerError(f"{method} {path}: {answer.status_code} {_message(answer)}")
        try:
            return answer.json()
        except ValueError:
            return answer.text


def _message(answer: httpx.Response) -> str:
    """Return the message of an OpenAI-style error, else the start of the text, in one line."""
    text = answer.text
    try:
        found = answer.json()
        text = str(found.get("error", {}).get("message") or found.get("message") or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200]
