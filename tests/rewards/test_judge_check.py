"""`rlkit judge-check` measures judges whose faults are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge, by_logit, completion_of_question, pair_of, tokens_reply
from scipy.stats import binomtest

from rlkit.assembly.identity import identity_hash
from rlkit.cli import run as main
from rlkit.launch.composing import register
from rlkit.launch.content import content_of
from rlkit.launch.preflight import preflight
from rlkit.rewards import RewardSpec
from rlkit.rewards.judge.check import GoldPair, JudgeReport, check_judge, rate
from rlkit.rewards.judge.scorer import JudgeScorer

PAIRS = [GoldPair(f"q{i}", f"right {i}" + " long" * (i % 2), f"wrong {i}") for i in range(8)]
OPTIONS = "reward.functions.judge.options"


def report_of(fake: FakeJudge, **options: Any) -> JudgeReport:
    given = {"url": fake.url, "model": "fake", "retries": 0, **options}
    scorer = JudgeScorer(RewardSpec("judge", "judge", 1.0, given))
    return check_judge(scorer.asking, scorer.prompt, scorer.options.mode, PAIRS)


def test_wilsons_interval() -> None:
    for count, total in ((0, 5), (3, 7), (48, 48), (30, 48)):
        truth = binomtest(count, total).proportion_ci(method="wilson")
        found = rate(count, total)
        assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=1e-9)


def test_a_good_judge_that_obeys_orders() -> None:
    def logit(a: str, b: str) -> float:
        if "Ignore" in a + b:
            return 3.0 if "Ignore" in a else -3.0
        return 2.0 if a.startswith("right") else -2.0

    with FakeJudge(by_logit(logit)) as fake:
        report = report_of(fake)
        assert len(fake.bodies) == 32
    assert report.agreement[:2] == (8.0, 8) and report.consistent is not None
    assert report.consistent[:2] == (8, 8) and report.first_slot == pytest.approx(0.5)
    assert report.obeyed[:2] == (8, 8)
    assert report.longer_wins == report.longer_is_gold == 0.5  # equal lengths are not longer
    assert report.spent.calls == 32 and report.failed.hits == 0


def test_a_judge_of_slot_a_and_one_of_prose() -> None:
    with FakeJudge(lambda body: tokens_reply({"A": 0.9, "B": 0.1})) as fake:
        report = report_of(fake)
    assert report.agreement[:2] == (4.0, 8)  # a tie everywhere
    assert report.consistent is not None and report.consistent.hits == 0
    assert report.first_slot == pytest.approx(0.9)
    with FakeJudge(lambda body: tokens_reply({"A": 0.0}, rest=1.0)) as fake:
        report = report_of(fake)
    assert report.failed[:2] == (8, 8) and "first token must be" in report.failure


def test_a_pointwise_judge() -> None:
    def reply(body: Mapping[str, Any]) -> Mapping[str, Any]:
        good = completion_of_question(body).startswith("right")
        return tokens_reply({"4" if good else "2": 1.0})

    with FakeJudge(reply) as fake:
        report = report_of(fake, mode="pointwise")
    assert report.agreement[:2] == (8.0, 8) and report.consistent is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": p.request, "chosen": p.better, "rejected": p.worse} for p in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def right(a: str, b: str) -> float:
        return 2.0 * (a.startswith("right") - b.startswith("right"))

    with FakeJudge(by_logit(right)) as fake:
        chosen = ["reward=judge", f"{OPTIONS}.url={fake.url}", f"{OPTIONS}.model=fake"]
        assert main(["judge-check", *chosen, f"pairs={file}", "task=max_of_n"]) == 0
        said = capsys.readouterr().out
        assert "agrees with gold              1.000   8 of 8" in said
        assert "at most" in said and f"fake at {fake.url}, pairwise" in said
        file.write_text(json.dumps({"prompt": "q", "chosen": 3, "rejected": "b"}) + "\n")
        assert main(["judge-check", *chosen, f"pairs={file}", "task=max_of_n"]) == 2
        assert "row 0 of" in (line := capsys.readouterr().err) and "column chosen must be" in line
    with FakeJudge(lambda body: pair_of(body) and tokens_reply({"A": 0.9, "B": 0.1})) as fake:
        chosen = ["reward=judge", f"{OPTIONS}.url={fake.url}", f"{OPTIONS}.model=fake"]
        assert main(["judge-check", *chosen, "task=max_of_n", "count=4"]) == 1
        assert "must agree with gold on >= 0.6 of the pairs, got 0.50" in capsys.readouterr().err


def test_the_prompt_file_is_part_of_a_run_and_the_address_is_not(tmp_path: Path) -> None:
    register()
    file = tmp_path / "mine.yaml"
    file.write_text("user: '{prompt} {first} {second}'\n")
    hashes, contents = [], []
    for text in ("a", "b"):
        with FakeJudge(lambda body: tokens_reply({"A": 0.5, "B": 0.5})) as fake:
            chosen = ["reward=judge", f"{OPTIONS}.url={fake.url}", f"{OPTIONS}.model=fake"]
            (config,) = preflight([*chosen, f"+{OPTIONS}.prompt={file}"])
        hashes.append(identity_hash(config))
        contents.append(content_of(config)[f"{OPTIONS}.prompt"].sha256)
        file.write_text(f"user: '{text} {{first}} {{second}}'\n")
    assert hashes[0] == hashes[1]
    assert contents[0] != contents[1]
