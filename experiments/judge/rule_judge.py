"""Serve two judges whose taste is known, as one OpenAI-compatible endpoint.

    python experiments/judge/rule_judge.py PORT

The model `coverage` likes summaries that name both people, the action and the reason, and short
ones. The model `overlap` likes the words of the reference summary, which it knows from the post.
Both say A with probability sigmoid(taste + 0.8), so they also like the first place.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from posts import ACTIONS, NAMES, REASONS, post

_PARTS = re.compile(
    r"Request:\n(.*?)\n\nAnswer A:\n(`{3,})\n(.*?)\n\2\n\nAnswer B:\n(`{3,})\n(.*?)\n\4", re.DOTALL
)
_WORD = re.compile(r"[a-z]+")
SLOT_BIAS = 0.8
REFERENCES = {
    row["prompt"]: row["answer"]
    for seed, count in ((0, 400), (1, 64))
    for row in (post(i, seed=seed) for i in range(count))
}


def words(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return _WORD.findall(text.lower())


def coverage(request: str, answer: str) -> float:
    """Return the share of the post's names, action and reason in the answer, less its length."""
    there = set(words(request))
    keys = [w for w in (*map(str.lower, NAMES), *ACTIONS, *REASONS) if w in there]
    said = set(words(answer))
    return sum(k in said for k in keys) / len(keys) - 0.01 * len(words(answer))


def overlap(request: str, answer: str) -> float:
    """Return the F1 of the answer's words against the reference summary's."""
    reference, said = Counter(words(REFERENCES[request])), Counter(words(answer))
    common = sum((reference & said).values())
    return 2.0 * common / max(1, reference.total() + said.total())


TASTES = {"coverage": coverage, "overlap": overlap}


def verdict(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat completion of a request."""
    found = _PARTS.search(body["messages"][-1]["content"])
    if found is None:  # not one of ours, such as the question at the start
        p = 0.5
    else:
        taste = TASTES[body["model"]]
        request = found[1]
        gap = 0.0
        if request in REFERENCES:
            gap = 8.0 * (taste(request, found[3]) - taste(request, found[5]))
        p = 1.0 / (1.0 + math.exp(-gap - SLOT_BIAS))
    tops = [{"token": t, "logprob": math.log(max(q, 1e-30))} for t, q in (("A", p), ("B", 1.0 - p))]
    choice = {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": "A" if p > 0.5 else "B"},
        "logprobs": {"content": [{**tops[0], "top_logprobs": tops}]},
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": 1}}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": name} for name in TASTES]})

    def do_POST(self) -> None:
        self._send(verdict(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""

    def _send(self, content: Mapping[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A server that lets a burst of connections wait."""

    request_queue_size = 256


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
