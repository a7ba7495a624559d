"""A judge on a real `vllm serve`: SmolLM2-135M on the CPU is a bad one, and is found out."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_judge import group_of
from vllm_serve import served

from rlkit.generation.vllm.config import is_installed
from rlkit.models import ModelConfig
from rlkit.models.source import locate
from rlkit.rewards import RewardSpec
from rlkit.rewards.judge.check import GoldPair, check_judge, report_lines
from rlkit.rewards.judge.scorer import JudgeScorer

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
WORDS = ("apple", "river", "stone", "cloud", "tiger", "paper", "green", "seven")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    source = os.environ.get("RLKIT_SMOLLM2_GGUF", "starter")
    folder = Path(locate(ModelConfig(source=source), say=print))
    log = tmp_path_factory.mktemp("log") / "server.txt"
    options = ("--served-model-name", "smollm2", "--max-model-len", "1024")
    with served(folder, *options, log=log) as address:
        yield f"{address}/v1"


def judge_of(url: str, **options: object) -> JudgeScorer:
    given = {"url": url, "model": "smollm2", "min_mass": 0.0, "max_in_flight": 8, **options}
    return JudgeScorer(RewardSpec("judge", "judge", 1.0, given))


def gold_pairs() -> list[GoldPair]:
    """The right answer repeats a word, the wrong one another."""
    draw = random.Random(0)
    pairs = []
    for _ in range(24):
        word, other = draw.sample(WORDS, 2)
        pairs.append(GoldPair(f"Repeat the word {word}.", word, other))
    return pairs


def test_a_small_judge_prefers_a_place_and_the_check_says_so(url: str) -> None:
    scorer = judge_of(url)
    scorer.check()
    report = check_judge(scorer.asking, scorer.prompt, scorer.options.mode, gold_pairs())
    print("\n".join(report_lines(report)))
    assert report.failed.hits == 0 and report.spent.calls >= 24
    assert report.first_slot is not None and report.consistent is not None
    assert abs(report.first_slot - 0.5) > 0.1, "it has learnt to judge?"
    assert report.consistent.share < 0.5


def test_what_it_said_comes_back_from_the_cache_bit_for_bit(url: str, tmp_path: Path) -> None:
    groups = [group_of("apple", "stone", "a cloud", index=i) for i in range(3)]
    first = judge_of(url)
    first.keep_in(tmp_path)
    before = first.score(groups)
    first.close()
    again = judge_of("http://127.0.0.1:1/v1", cache_only=True)
    again.keep_in(tmp_path)
    after = again.score(groups)
    assert [r.values for r in after.groups] == [r.values for r in before.groups]
    assert after.counts["calls"] == 0.0 and before.counts["tokens"] > 0.0
    for reply in before.groups:
        values = [v for v in reply.values if v is not None]
        assert sum(values) == pytest.approx(1.5, abs=1e-9)


def test_the_default_mass_refuses_a_judge_that_wants_to_say_something_else(url: str) -> None:
    scorer = judge_of(url, min_mass=0.99)
    with pytest.raises(ValueError, match=r"must give a verdict, got smollm2 .no_verdict.: the rep"):
        scorer.check()


def test_prose_is_read_or_refused(url: str) -> None:
    scorer = judge_of(url, verdicts="text", max_tokens=8)
    with pytest.raises(ValueError, match=r"must give a verdict, got smollm2 .no_verdict.: the rep"):
        scorer.check()
