"""This module answers a judge's requests: from the store, else from the endpoint, in the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.rewards.judge.endpoint import Endpoint, Sent
from rlkit.rewards.judge.options import JudgeOptions, VerdictSource
from rlkit.rewards.judge.prompts import Messages
from rlkit.rewards.judge.store import ReplyStore, Spent, request_key
from rlkit.rewards.wire import Failure

STORE_NAME = "judge.sqlite"
_CHARACTERS_A_TOKEN = 3
_FRAME_TOKENS = 50


class BudgetSpent(RuntimeError):
    """The next batch would pass `max_calls` or `max_total_tokens`."""


class Asked(NamedTuple):
    """This is one request's reply, or why there is none."""

    choice: Mapping[str, Any] | None
    failure: Failure | None = None
    message: str = ""
    cached: bool = False


class Asking:
    """This object has the replies of one judge. Not for several threads at once."""

    def __init__(self, key: str, options: JudgeOptions) -> None:
        """Answer by `options`; `key` names them in messages."""
        self.key = key
        self.options = options
        self._endpoint = Endpoint(key, options)
        self._store = ReplyStore(Path(options.cache).expanduser() if options.cache else None)

    def check(self) -> None:
        """Raise ValueError with one line when the endpoint does not answer."""
        if not self.options.cache_only:
            self._endpoint.check()

    def keep_in(self, run_dir: Path) -> None:
        """Keep replies in the run's folder, unless a file of one's own was named."""
        if not self.options.cache:
            self._store.move_to(run_dir / STORE_NAME)

    def spent(self) -> Spent:
        """Return what was paid for so far, over all processes that used the store."""
        return self._store.spent()

    def ask(self, conversations: Sequence[Messages]) -> list[Asked]:
        """Return the reply to each; equal conversations are asked once.

        Raises BudgetSpent, before anything is sent, when the budget does not allow the rest.
        """
        bodies = [self._body(messages) for messages in conversations]
        keys = [request_key(body) for body in bodies]
        found: dict[str, Asked] = {}
        wanted: dict[str, Mapping[str, Any]] = {}
        for key, body in zip(keys, bodies, strict=True):
            if key in found or key in wanted:
                continue
            choice = self._store.get(key)
            if choice is None:
                wanted[key] = body
            else:
                found[key] = Asked(choice, cached=True)
        if self.options.cache_only:
            message = "cache_only is set, and the cache has no reply to this question"
            found |= dict.fromkeys(wanted, Asked(None, Failure.not_cached, message))
        else:
            self._check_budget(list(wanted.values()))

            def arrived(key: str, sent: Sent) -> None:
                found[key] = self._keep(key, sent)

            self._endpoint.send(wanted, arrived=arrived)
        return [found[key] for key in keys]

    def close(self) -> None:
        """Close the store; idempotent."""
        self._store.close()

    def _keep(self, key: str, sent: Sent) -> Asked:
        if sent.choice is None:
            self._store.count(sent.usage)
            return Asked(None, sent.failure, sent.message)
        self._store.put(key, sent.choice, sent.usage)
        return Asked(sent.choice)

    def _body(self, messages: Messages) -> Mapping[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [dict(turn) for turn in messages],
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
        }
        if options.verdicts is VerdictSource.tokens:
            body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": options.top_logprobs}
        body |= options.extra
        return {k: v for k, v in body.items() if v is not None}

    def _check_budget(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        options, spent = self.options, self.spent()
        if options.max_calls and bodies and spent.calls + len(bodies) > options.max_calls:
            raise BudgetSpent(
                f"{self.key}.max_calls must allow the next batch, got {options.max_calls}: "
                f"{spent.calls} were made and it takes {len(bodies)} more"
            )
        needed = sum(map(self._tokens, bodies))
        if options.max_total_tokens and bodies and spent.tokens + needed > options.max_total_tokens:
            raise BudgetSpent(
                f"{self.key}.max_total_tokens must allow the next batch, got "
                f"{options.max_total_tokens}: {spent.tokens} were taken and it takes about "
                f"{needed} more"
            )

    def _tokens(self, body: Mapping[str, Any]) -> int:
        """Return about how many tokens a request takes: nobody knows before it is sent."""
        text = sum(len(turn["content"]) for turn in body["messages"])
        return text // _CHARACTERS_A_TOKEN + _FRAME_TOKENS + int(body.get("max_tokens") or 1)
