"""Whole runs with a judge: what it judged is kept, shown, and never paid for twice."""

from __future__ import annotations

import json
import random
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_process import RunCLI
from fake_judge import FakeJudge, by_logit, pair_of, send, status, text_reply, tokens_reply
from safetensors.torch import load_file

from rlkit import load_run

OPTIONS = "reward.functions.judge.options"


@pytest.fixture(scope="module")
def judged(small: list[str]) -> list[str]:
    """Online DPO with the judge's own probabilities as labels."""
    kept = [o for o in small if not o.startswith("+reward")]
    return [
        *kept,
        *("algorithm=online_dpo", "algorithm.group_size=2", "algorithm.labels=wins"),
        *("reward=judge", f"{OPTIONS}.model=fake", f"+{OPTIONS}.retries=0"),
        *("task.max_completion_length=6", "checkpoint.keep_last=4", "evaluation.kl=none"),
    ]


def moody(body: Mapping[str, Any]) -> dict[str, Any]:
    """A judge that says something else each time, as temperature 0 does at some endpoints."""
    p = random.Random().uniform(0.05, 0.95)
    pair_of(body)
    return tokens_reply({"A": p, "B": 1.0 - p})


def test_a_resumed_run_gets_the_same_judgments_for_nothing(
    rlkit: RunCLI, judged: list[str], tmp_path: Path
) -> None:
    with FakeJudge(moody) as fake:
        result = rlkit(*judged, f"{OPTIONS}.url={fake.url}", "run_dir=whole")
        assert result.returncode == 0, result.stderr
        paid = len(fake.bodies)
    metrics = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    assert {m["rewards/judge/calls"] + m["rewards/judge/cached"] for m in metrics} == {4.0}
    assert all(0.0 <= m["rewards/judge/first_slot"] <= 1.0 for m in metrics)
    assert all(m["rewards/judge/mean"] == pytest.approx(0.5) for m in metrics)
    assert paid > 16
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", again)
    for step in (3, 4):
        shutil.rmtree(again / f"checkpoints/step-{step:06d}")
    for left in ("adapter", "status.json"):
        path = again / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    here = f"{OPTIONS}.url=http://127.0.0.1:1/v1", f"+{OPTIONS}.cache_only=true"
    result = rlkit(*judged, *here, "run_dir=again", "resume=must")
    assert result.returncode == 0, result.stderr
    name = "adapter/adapter_model.safetensors"
    before, after = load_file(tmp_path / "whole" / name), load_file(again / name)
    assert before.keys() == after.keys()
    assert all(bool((before[k] == after[k]).all()) for k in before)
    assert any(bool(t.any()) for k, t in before.items() if "lora_B" in k)


def share_of_ascii(text: str) -> float:
    """The share of ASCII characters in a text; an empty text has none."""
    return sum(c.isascii() for c in text) / max(1, len(text))


def test_a_policy_learns_what_a_biased_judge_prefers(
    rlkit: RunCLI, judged: list[str], tmp_path: Path
) -> None:
    """The judge prefers ASCII characters, and the first place; only the first of both is learnt."""

    def logit(first: str, second: str) -> float:
        return 6.0 * (share_of_ascii(first) - share_of_ascii(second)) + 1.0

    with FakeJudge(by_logit(logit)) as fake:
        result = rlkit(
            *(*judged, f"{OPTIONS}.url={fake.url}", "run_dir=learns", "steps=20"),
            *("prompts_per_step=16", "optim.learning_rate=1e-2", "model.tuning=full"),
            *(
                "evaluation.num_prompts=16",
                "evaluation.samples_per_prompt=4",
                "checkpoint.every=100",
            ),
        )
        assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "learns/metrics.jsonl").open()]
    assert all(line["rewards/judge/first_slot"] > 0.6 for line in lines), "the bias is measured"
    before, after = (_shares(tmp_path / "learns", label) for label in ("before", "after"))
    gains = [b - a for a, b in zip(before, after, strict=True)]
    assert len(gains) == 16
    error = statistics.stdev(gains) / len(gains) ** 0.5
    assert statistics.fmean(gains) > 2.131 * error, "beyond Student's interval of 95%, 15 degrees"
    assert statistics.fmean(after) > statistics.fmean(before) + 0.2


def _shares(folder: Path, label: str) -> list[float]:
    """Return the mean share of ASCII of each held-out prompt's completions."""
    (record,) = (r for r in load_run(folder).evals if r.label == label)
    found: dict[str, list[float]] = {}
    for row in record.samples:
        found.setdefault(row.prompt, []).append(share_of_ascii(row.completion))
    return [statistics.fmean(shares) for shares in found.values()]


def test_a_judge_that_fails_stops_the_run_where_it_is_told_to(
    rlkit: RunCLI, judged: list[str], tmp_path: Path
) -> None:
    with FakeJudge(moody, faults=[]) as fake:
        fake.faults = [lambda handler: _good(handler)] * 2 + [status(500)] * 500
        result = rlkit(
            *judged,
            *(f"{OPTIONS}.url={fake.url}", "run_dir=stopped", "reward.max_failure_rate=0.2"),
        )
    assert result.returncode == 1
    said = json.loads((tmp_path / "stopped/status.json").read_text())["message"]
    assert "reward.functions.judge failed on 4 of 4 samples" in said, said
    assert "refused: status 500" in said and "for the completion" in said


def _good(handler: Any) -> None:
    send(handler, 200, tokens_reply({"A": 0.9, "B": 0.1}))


@pytest.mark.parametrize(
    ("reply", "options", "line"),
    [
        (None, [], f"{OPTIONS}.url must be an endpoint that answers, got http://127.0.0.1:1/v1"),
        ("Well, both.", [], f"{OPTIONS}.model must give a verdict, got fake"),
        ("A", [f"+{OPTIONS}.api_key=sk-secret-key"], f"{OPTIONS}.api_key must be env:NAME"),
        ("A", [f"+{OPTIONS}.prompt=none.yaml"], f"{OPTIONS}.prompt must be a file, got none.yaml"),
    ],
)
def test_bad_input_is_one_line_and_no_folder(
    rlkit: RunCLI,
    judged: list[str],
    tmp_path: Path,
    reply: str | None,
    options: list[str],
    line: str,
) -> None:
    with FakeJudge(lambda body: text_reply(reply or "")) as fake:
        url = fake.url if reply else "http://127.0.0.1:1/v1"
        result = rlkit(*judged, f"{OPTIONS}.url={url}", *options, "run_dir=none")
    assert result.returncode == 2
    (said,) = [text for text in result.stderr.splitlines() if text.startswith("rlkit: ")]
    assert line in said and "sk-secret" not in result.stderr
    assert not (tmp_path / "none").exists()
