"""An OpenAI-compatible endpoint on loopback whose taste is known, and which can misbehave."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from rlkit.types import Completion, FinishReason, Prompt

Logit = Callable[[str, str], float]
"""(answer in slot A, answer in slot B) to the logit of A."""
Fault = Callable[[BaseHTTPRequestHandler], None]
"""Answers one request badly."""
_PAIR = re.compile(r"Answer A:\n```\n(.*?)\n```\n\nAnswer B:\n```\n(.*?)\n```", re.DOTALL)
_ONE = re.compile(r"Answer:\n```\n(.*?)\n```", re.DOTALL)


def tokens_reply(masses: Mapping[str, float], *, rest: float = 0.0) -> dict[str, Any]:
    """A chat completion of one token whose probabilities are these, and `rest` for others."""
    tops: list[dict[str, Any]] = [
        {"token": t, "logprob": math.log(p)} for t, p in masses.items() if p > 0.0
    ]
    tops += [{"token": "Well", "logprob": math.log(rest)}] if rest else []
    best = max(tops, key=lambda top: top["logprob"])
    entry = {**best, "top_logprobs": tops}
    return text_reply(best["token"]) | {
        "choices": [{**text_reply(best["token"])["choices"][0], "logprobs": {"content": [entry]}}]
    }


def text_reply(text: str) -> dict[str, Any]:
    """A chat completion that says `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    return {
        "id": str(time.time()),
        "choices": [{**choice, "finish_reason": "stop"}],
        "usage": usage,
    }


def pair_of(body: Mapping[str, Any]) -> tuple[str, str]:
    """The two answers of a built-in question."""
    found = _PAIR.search(body["messages"][-1]["content"])
    assert found is not None
    return found[1], found[2]


def completion_of_question(body: Mapping[str, Any]) -> str:
    """The answer of a built-in question about one."""
    found = _ONE.search(body["messages"][-1]["content"])
    assert found is not None
    return found[1]


def by_logit(logit: Logit) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Replies of a judge that says A with the probability sigmoid(logit)."""

    def reply(body: Mapping[str, Any]) -> dict[str, Any]:
        p = 1.0 / (1.0 + math.exp(-logit(*pair_of(body))))
        return tokens_reply({"A": p, "B": 1.0 - p})

    return reply


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # of connections that wait: with 5, a burst waits a second
    daemon_threads = True


@dataclass
class FakeJudge:
    """A server in a thread; `faults` answer the first requests, `reply` the others."""

    reply: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    faults: list[Fault] = field(default_factory=list)
    key: str = ""
    """The Authorization header must hold this; empty = anything."""
    seconds: float = 0.0
    """A good reply takes this long."""
    bodies: list[Mapping[str, Any]] = field(default_factory=list)
    """Every request, the failed ones too."""
    times: list[float] = field(default_factory=list)
    peak: int = 0
    """Most requests at once."""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> FakeJudge:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if judge.key and self.headers.get("Authorization") != f"Bearer {judge.key}":
                    send(self, 401, {"error": "bad key"})
                else:
                    send(self, 200, {"data": [{"id": "fake"}]})

            def do_POST(self) -> None:
                with suppress(ConnectionError):
                    judge.answer(self)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self._now += 1
            self.peak = max(self.peak, self._now)
            fault = self.faults.pop(0) if self.faults else None
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            fault = _refuse
        if fault is None:
            time.sleep(self.seconds)
        with self._lock:  # before the reply: the next request may come before this thread goes on
            self._now -= 1
        if fault is None:
            send(handler, 200, self.reply(body))
        else:
            fault(handler)


def _refuse(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 401, {"error": f"bad key {handler.headers.get('Authorization')}"})


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    content: Mapping[str, Any] | bytes,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def status(number: int, **headers: str) -> Fault:
    """A fault with this status; `Retry_After="1"` is its header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: send(handler, number, {"error": "as told"}, named)


def hang(seconds: float) -> Fault:
    """No answer for that long."""
    return lambda handler: time.sleep(seconds)


def cut(handler: BaseHTTPRequestHandler) -> None:
    """A body that ends before its length."""
    send(handler, 200, b'{"choices": [', {"Content-Length": "500"})
    handler.close_connection = True


def garbage(content: bytes) -> Fault:
    """A good status over a bad body."""
    return lambda handler: send(handler, 200, content)


def drip(seconds: float) -> Fault:
    """A byte now and then, so that no read ever times out."""

    def fault(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    return fault


def group_of(*texts: str, index: int = 0, **columns: object) -> list[Completion]:
    """Completions of one prompt."""
    prompt = Prompt(index=index, ids=(1, 2), text=f"question {index}", columns=columns)
    return [
        Completion(prompt=prompt, text=text, ids=(3,), finish_reason=FinishReason.stop)
        for text in texts
    ]
