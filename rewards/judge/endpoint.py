"""This module sends many requests to an OpenAI-compatible endpoint at once, and bounds everything.

At most `max_in_flight` are under way, each ends within its deadline, all end within the step's, and
only what may succeed later is tried again. Nothing here raises for a request that failed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import httpx

from rlkit.rewards.judge.options import JudgeOptions
from rlkit.rewards.judge.store import Spent
from rlkit.rewards.wire import Failure

_LATER = frozenset({408, 409, 425, 429})
"""Statuses that may be another one later; so may all from 500 on."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 30.0
_SHOWN = 200
_JSON = {"Content-Type": "application/json"}
_MOST_TOKENS = 10**9
"""A request of more tokens than this is a mistake of the endpoint, not a bill."""

Body = Mapping[str, Any]


class Sent(NamedTuple):
    """This is what became of one request."""

    choice: Mapping[str, Any] | None
    """The first choice of the reply; None when the request failed."""
    usage: Spent
    failure: Failure | None = None
    message: str = ""


_NOTHING = Spent(0, 0, 0)


class _Line:
    """This object is what the requests of one batch know of each other."""

    def __init__(self) -> None:
        self.open_at = 0.0
        """Loop time until which a rate limit asked everybody to wait."""
        self.heard = False
        """Whether the endpoint has answered anything."""
        self.dead = ""
        """Why nothing more is sent: no request of this batch ever reached the endpoint."""


class Endpoint:
    """An endpoint is where a judge's model answers."""

    def __init__(self, key: str, options: JudgeOptions) -> None:
        """Talk to `options.url`; `key` names the options in messages."""
        self._key = key
        self._options = options

    def check(self) -> None:
        """Raise ValueError, one line, when nothing answers or the key is wrong."""
        asyncio.run(self._check())

    def send(self, bodies: Mapping[str, Body], *, arrived: Callable[[str, Sent], None]) -> None:
        """Send every body, named by its hash, and hand over what became of it as it is known.

        It ends within `step_timeout_s` and some tenths of a second.
        """
        asyncio.run(self._send_all(bodies, arrived))

    def _client(self) -> httpx.AsyncClient:
        secret = self._options.secret()
        return httpx.AsyncClient(
            base_url=self._options.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            timeout=None,  # asyncio's deadline also ends a reply that drips
            limits=httpx.Limits(max_connections=self._options.max_in_flight),
        )

    async def _check(self) -> None:
        url = self._options.url
        try:
            async with self._client() as client, asyncio.timeout(self._options.timeout_s):
                response = await client.get("models")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
            raise ValueError(
                f"{self._key}.url must be an endpoint that answers, got {url} ({reason})"
            ) from None
        if response.status_code in (401, 403):
            raise ValueError(
                f"{self._key}.api_key must be one that {url} takes, got status "
                f"{response.status_code} with {self._options.api_key or 'no key'}"
            )
        if response.status_code >= 500:
            raise ValueError(
                f"{self._key}.url must be an endpoint that answers, got status "
                f"{response.status_code} from {url}"
            )

    async def _send_all(
        self, bodies: Mapping[str, Body], arrived: Callable[[str, Sent], None]
    ) -> None:
        line, left = _Line(), dict(bodies)
        queue = iter(bodies.items())

        def take(name: str, sent: Sent) -> None:
            del left[name]
            arrived(name, sent)

        async with self._client() as client:
            count = min(self._options.max_in_flight, len(bodies))
            workers = [
                asyncio.create_task(self._work(client, queue, line, take)) for _ in range(count)
            ]
            if workers:
                _, late = await asyncio.wait(workers, timeout=self._options.step_timeout_s)
                for worker in late:
                    worker.cancel()
                await asyncio.gather(*late, return_exceptions=True)
                for worker in workers:
                    if not worker.cancelled() and (error := worker.exception()) is not None:
                        raise error
        message = f"the batch took more than {self._options.step_timeout_s:g} s"
        for name in tuple(left):
            take(name, Sent(None, _NOTHING, Failure.timeout, message))

    async def _work(
        self,
        client: httpx.AsyncClient,
        queue: Iterator[tuple[str, Body]],
        line: _Line,
        take: Callable[[str, Sent], None],
    ) -> None:
        for name, body in queue:
            take(name, await self._send(client, name, body, line))

    async def _send(self, client: httpx.AsyncClient, name: str, body: Body, line: _Line) -> Sent:
        """Try one request until it succeeds, cannot succeed, or has had its tries."""
        loop = asyncio.get_running_loop()
        billed = 0
        for attempt in range(self._options.retries + 1):
            if line.dead:
                return Sent(None, _NOTHING, Failure.unreachable, line.dead)
            await asyncio.sleep(max(0.0, line.open_at - loop.time()))
            sent, wait_s = await self._try(client, body, line)
            billed += sent.usage.calls
            if sent.choice is not None or wait_s is None:
                break
            if attempt < self._options.retries:
                pause = max(wait_s, _backoff(name, attempt))
                if sent.failure is Failure.rate_limited:
                    line.open_at = max(line.open_at, loop.time() + pause)
                await asyncio.sleep(pause)
        if sent.failure is Failure.unreachable and not line.heard:
            line.dead = sent.message
        return sent._replace(usage=sent.usage._replace(calls=billed))

    async def _try(
        self, client: httpx.AsyncClient, body: Body, line: _Line
    ) -> tuple[Sent, float | None]:
        """Return what one try gave, and the least seconds until the next; None = there is none."""
        timeout_s = self._options.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                response = await client.post(
                    "chat/completions", content=_encoded(body), headers=_JSON
                )
        except TimeoutError:
            message = f"no reply after {timeout_s:g} s"
            return Sent(None, _NOTHING, Failure.timeout, message), 0.0
        except (httpx.HTTPError, OSError) as error:
            line.heard |= not isinstance(error, httpx.ConnectError)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
            return Sent(None, _NOTHING, Failure.unreachable, reason), 0.0
        line.heard = True
        if response.status_code == 200:
            sent = _read(response)
            return sent._replace(message=self._without_secret(sent.message)), 0.0
        status = response.status_code
        limited = status == 429
        kind = Failure.rate_limited if limited else Failure.refused
        again = status in _LATER or status >= 500
        message = f"status {status}: {self._without_secret(response.text)}"
        return Sent(None, _NOTHING, kind, message), _retry_after(response) if again else None

    def _without_secret(self, text: str) -> str:
        """Return one line of `text`: some servers repeat the key that they refuse."""
        secret = self._options.secret()
        shown = " ".join((text.replace(secret, "***") if secret else text).split())
        return shown[:_SHOWN]


def _encoded(body: Body) -> bytes:
    """Return a request as JSON in ASCII: half of a surrogate pair has no bytes in UTF-8."""
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def _read(response: httpx.Response) -> Sent:
    try:
        reply = response.json()
        choice = reply["choices"][0]
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise TypeError("no message")
        usage = reply.get("usage") or {}
        tokens = [int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens")]
        if not all(0 <= count <= _MOST_TOKENS for count in tokens):
            raise ValueError("tokens out of range")
        # What a verdict needs, and no more: replies name a time and an id, which differ.
        kept = {k: choice.get(k) for k in ("message", "logprobs", "finish_reason")}
        json.dumps(kept)
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        shown = " ".join(response.text.split())[:_SHOWN]
        message = f"a reply must hold a choice with a message, got {shown!r} ({error!r:.60})"
        return Sent(None, Spent(1, 0, 0), Failure.bad_reply, message)
    return Sent(kept, Spent(1, *tokens))


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the endpoint asks to wait; 0 when it names none, or a date."""
    try:
        seconds = float(response.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT_S) if seconds == seconds else 0.0


def _backoff(name: str, attempt: int) -> float:
    """Return seconds that double with each try, times 0.5 to 1.0 drawn from the request's hash."""
    digest = hashlib.sha256(f"{name}:{attempt}".encode()).digest()
    share = 0.5 + 0.5 * int.from_bytes(digest[:4], "big") / 2**32
    return min(_FIRST_WAIT_S * 2.0**attempt, _LONGEST_WAIT_S) * share
