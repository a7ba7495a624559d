"""An endpoint that is slow, wrong, rate-limited or dead costs judgments, never a run or a score."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from fake_judge import (
    FakeJudge,
    Fault,
    cut,
    drip,
    garbage,
    group_of,
    hang,
    status,
    tokens_reply,
)

from rlkit.rewards import Failure, RewardSpec
from rlkit.rewards.judge.scorer import JudgeScorer
from rlkit.types import Completion

GOOD = tokens_reply({"A": 0.5, "B": 0.5})


def logprobs(found: object) -> Fault:
    """A good reply but for its logprobs."""
    choice = {**GOOD["choices"][0], "logprobs": found}
    return garbage(json.dumps({**GOOD, "choices": [choice]}).encode())


def tops(found: object) -> Fault:
    """A good reply but for the words that its first token may have been."""
    return logprobs({"content": [{"token": "A", "logprob": -0.1, "top_logprobs": found}]})


def bill(usage: object) -> Fault:
    """A good reply but for its count of tokens."""
    return garbage(json.dumps({**GOOD, "usage": usage}).encode())


def judge_of(url: str, **options: Any) -> JudgeScorer:
    given = {"url": url, "model": "fake", "timeout_s": 0.4, "retries": 0, **options}
    return JudgeScorer(RewardSpec("judge", "judge", 1.0, given))


def many(count: int) -> list[list[Completion]]:
    return [group_of(f"x{i}", f"y{i}", index=i) for i in range(count)]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(429), Failure.rate_limited),
        (status(500), Failure.refused),
        (status(404), Failure.refused),
        (hang(1.0), Failure.timeout),
        (drip(1.0), Failure.timeout),
        (cut, Failure.unreachable),
        (garbage(b"<html>"), Failure.bad_reply),
        (garbage(b'{"choices": []}'), Failure.bad_reply),
        (garbage(b'{"choices": [{"message": null}]}'), Failure.bad_reply),
        (garbage(b"[1]"), Failure.bad_reply),
        (garbage(b"[" * 200_000), Failure.bad_reply),
        (bill({"prompt_tokens": math.inf}), Failure.bad_reply),
        (bill({"prompt_tokens": -5}), Failure.bad_reply),
        (bill({"completion_tokens": 2**64}), Failure.bad_reply),
        (logprobs([1]), Failure.no_verdict),
        (logprobs({"content": "A"}), Failure.no_verdict),
        (logprobs({"content": [None]}), Failure.no_verdict),
        (logprobs({"content": {"A": 1}}), Failure.no_verdict),
        (logprobs({"content": [{"token": "A"}]}), Failure.no_verdict),
        (tops({"A": -0.1}), Failure.no_verdict),
        (tops([None]), Failure.no_verdict),
        (tops([{"token": "A", "logprob": None}]), Failure.no_verdict),
        (tops([{"token": "A", "logprob": math.nan}]), Failure.no_verdict),
        (tops([{"token": "A", "logprob": math.inf}]), Failure.no_verdict),
        (tops([{"token": "A", "logprob": 1e5}]), Failure.no_verdict),
        (tops([{"token": "A", "logprob": 0.5}]), Failure.no_verdict),
    ],
)
def test_a_fault_fails_its_own_pair_and_no_other(fault: Fault, kind: Failure) -> None:
    with FakeJudge(lambda body: GOOD, faults=[fault]) as fake:
        start = time.monotonic()
        scored = judge_of(fake.url, max_in_flight=1).score(many(2))
        assert time.monotonic() - start < 2.0
    assert scored.groups[0].values == [None, None]
    assert {k for _, k, _ in scored.groups[0].problems} == {kind}
    assert scored.groups[1].values == [0.5, 0.5] and not scored.groups[1].problems


@pytest.mark.parametrize("fault", [status(500), status(429), hang(1.0), cut, garbage(b"no")])
def test_what_may_succeed_later_is_tried_again(fault: Fault) -> None:
    with FakeJudge(lambda body: GOOD, faults=[fault, fault]) as fake:
        scored = judge_of(fake.url, retries=2, max_in_flight=1).score(many(1))
        assert len(fake.bodies) == 4
    assert scored.groups[0].values == [0.5, 0.5]


@pytest.mark.parametrize("number", [400, 401, 403, 404, 422, 302])
def test_what_cannot_succeed_is_not_tried_again(number: int) -> None:
    with FakeJudge(lambda body: GOOD, faults=[status(number)]) as fake:
        judge_of(fake.url, retries=5, max_in_flight=1).score(many(1))
        assert len(fake.bodies) == 2  # one of each order


def test_everybody_waits_as_long_as_a_rate_limit_says() -> None:
    faults = [status(429, Retry_After="0.8")]
    with FakeJudge(lambda body: GOOD, faults=faults) as fake:
        scored = judge_of(fake.url, retries=1, max_in_flight=2).score(many(4))
        waited = [t - fake.times[0] for t in sorted(fake.times)[2:]]
    assert scored.shares["failed"] == (0.0, 4.0)
    assert sum(w < 0.75 for w in waited) <= 2, waited  # only what was already under way


def test_the_limit_in_flight_is_seen_at_the_server() -> None:
    with FakeJudge(lambda body: GOOD, seconds=0.02) as fake:
        scored = judge_of(fake.url, max_in_flight=5, timeout_s=20.0).score(many(60))
        assert fake.peak <= 5 and len(fake.bodies) == 120
    assert scored.shares["failed"] == (0.0, 60.0)


def test_the_deadline_of_a_step_ends_everything() -> None:
    with FakeJudge(lambda body: GOOD, seconds=0.1) as fake:
        start = time.monotonic()
        judge = judge_of(fake.url, max_in_flight=2, timeout_s=20.0, step_timeout_s=0.7)
        scored = judge.score(many(100))
        assert time.monotonic() - start < 2.0
    kinds = {kind for reply in scored.groups for _, kind, _ in reply.problems}
    assert kinds == {Failure.timeout}
    done = [reply for reply in scored.groups if reply.values == [0.5, 0.5]]
    assert 1 <= len(done) <= 8


def test_a_dead_endpoint_is_given_up_after_one_request_of_retries() -> None:
    with FakeJudge(lambda body: GOOD) as fake:
        url = fake.url
    start = time.monotonic()
    scored = judge_of(url, retries=2).score(many(500))
    assert time.monotonic() - start < 5.0
    kinds = {kind for reply in scored.groups for _, kind, _ in reply.problems}
    assert kinds == {Failure.unreachable}
    assert all(reply.values == [None, None] for reply in scored.groups)


def test_failed_requests_are_asked_again_later() -> None:
    with FakeJudge(lambda body: GOOD, faults=[status(500)] * 2) as fake:
        judge = judge_of(fake.url)
        assert judge.score(many(1)).groups[0].values == [None, None]
        assert judge.score(many(1)).groups[0].values == [0.5, 0.5]


def test_a_wrong_reply_that_was_kept_fails_again_without_a_call(tmp_path: Path) -> None:
    wrong = tops([{"token": "A", "logprob": None}])
    with FakeJudge(lambda body: GOOD, faults=[wrong]) as fake:
        judge = judge_of(fake.url, max_in_flight=1, cache=str(tmp_path / "kept.sqlite"))
        first, second = judge.score(many(1)), judge.score(many(1))
        assert len(fake.bodies) == 2
    assert first.groups[0].values == second.groups[0].values == [None, None]
    assert "logprobs must be in OpenAI's format" in second.groups[0].problems[0][2]


def test_a_reference_of_half_a_character_is_asked_about() -> None:
    groups = [group_of("x", answer="cut \ud83d")]
    with FakeJudge(lambda body: GOOD) as fake:
        scored = judge_of(fake.url, opponents="column").score(groups)
        assert all("cut \ud83d" in body["messages"][-1]["content"] for body in fake.bodies)
    assert scored.groups[0].values == [0.5]


def test_a_bad_reply_that_repeats_the_key_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with FakeJudge(lambda body: GOOD, faults=[garbage(b"no: sk-very-secret")]) as fake:
        scored = judge_of(fake.url, max_in_flight=1, api_key="env:JUDGE_KEY").score(many(1))
    message = scored.groups[0].problems[0][2]
    assert "***" in message and "secret" not in message
