"""The final table of a run shows success where it is defined, the reward elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import RunCLI

from rlkit.tracking import read_evals

REWARDS = """\
def every_second(group):
    return [1.0 if i % 2 == 0 else None for i in range(len(group))]

def large(group):
    return [265.0 for _ in group]
"""


@pytest.fixture
def own_data(small: list[str], tmp_path: Path) -> list[str]:
    """Overrides of a run on eight rows, four of them held out, without a reward yet."""
    rows = [json.dumps({"q": f"Say {i}."}) for i in range(4)]
    held_out = [json.dumps({"q": f"Tell {i}."}) for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "held_out.jsonl").write_text("\n".join(held_out) + "\n")
    (tmp_path / "own.py").write_text(REWARDS)
    kept = [o for o in small if not o.startswith(("task=", "+reward", "steps=", "evaluation.samp"))]
    return [
        *kept,
        *("task=dataset", "task.path=rows.jsonl", "task.eval_path=held_out.jsonl", "steps=1"),
        *("+task.columns.prompt=q", "task.max_completion_length=8", "run_dir=run"),
        "evaluation.samples_per_prompt=2",
    ]


def test_samples_without_a_reward_are_left_out_and_counted(
    rlkit: RunCLI, own_data: list[str], tmp_path: Path
) -> None:
    """Four prompts with two samples each, one of them judged, with 1.0: the mean is 1, not 0.5."""
    result = rlkit(*own_data, "+reward.functions.half.fn=own.py:every_second")
    assert result.returncode == 0, result.stderr + result.stdout
    before, after = read_evals(tmp_path / "run")
    assert before.interval.mean == after.interval.mean == 1.0
    assert before.values == (1.0, 1.0, 1.0, 1.0)
    assert (before.metrics["judged"], before.metrics["unjudged"]) == (4.0, 4.0)
    assert "over 4 judged samples, 4 got no reward" in result.stdout


def test_a_task_without_a_criterion_shows_its_reward(
    rlkit: RunCLI, own_data: list[str], tmp_path: Path
) -> None:
    result = rlkit(*own_data, "+reward.functions.large.fn=own.py:large")
    assert result.returncode == 0, result.stderr + result.stdout
    assert [record.interval.mean for record in read_evals(tmp_path / "run")] == [265.0, 265.0]
    table = result.stdout[result.stdout.index("held-out prompts, 2 samples each") :]
    assert "reward" in table and "265.000" in table
    assert "success" not in result.stdout
    page = (tmp_path / "run/report.html").read_text()
    assert "Held-out reward 265" in page and "success" not in page.lower()


def test_compare_pairs_what_has_the_same_content_only(
    rlkit: RunCLI, own_data: list[str], small: list[str], tmp_path: Path
) -> None:
    """The second file holds two of the four questions, in another order: two pairs, not four."""
    large = "+reward.functions.large.fn=own.py:large"
    assert rlkit(*own_data, large).returncode == 0
    rows = [json.dumps({"q": text}) for text in ("New.", "Tell 3.", "Newer.", "Tell 0.")]
    (tmp_path / "held_out.jsonl").write_text("\n".join(rows) + "\n")
    assert rlkit(*own_data, large, "run_dir=other").returncode == 0
    both = rlkit("compare", "run", "other").stdout
    assert "over the held-out prompts both share, 2 of them" in both
    assert rlkit(*small, "steps=1", "run_dir=sums").returncode == 0
    assert "none can be paired" not in both
    apart = rlkit("compare", "run", "sums").stdout
    assert "both share" not in apart
    assert "one run measures reward, the other success" in apart
    heavier = "reward.functions.large.weight=2"
    assert rlkit(*own_data, large, f"+{heavier}", "run_dir=heavier").returncode == 0
    apart = rlkit("compare", "other", "heavier").stdout
    assert "both share" not in apart
    assert "heavier: its reward functions are others" in " ".join(apart.split())
