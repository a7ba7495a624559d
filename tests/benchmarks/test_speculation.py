"""The benchmark of guesses on a random model, and its comparison of completions by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import speculation
from rlkit.types import FinishReason, Prompt, Rollout


def rollout(ids: tuple[int, ...], logps: tuple[float, ...]) -> Rollout:
    return Rollout(
        prompt=Prompt(index=0, ids=(1,), text=""),
        sample_index=0,
        completion_ids=ids,
        sampling_logps=logps,
        finish_reason=FinishReason.stop,
        policy_version=0,
    )


def test_completions_are_compared_up_to_the_first_token_that_differs() -> None:
    truth = [rollout((1, 2, 3), (-1.0, -2.0, -3.0)), rollout((4, 5), (-1.0, -1.0))]
    found = [rollout((1, 2, 3), (-1.0, -2.5, -3.0)), rollout((4, 6, 7), (-1.25, -9.0, -9.0))]
    compared = speculation._compared(found, truth)
    assert compared["same"] == 0.5 and compared["common_tokens"] == 4 / 5
    assert compared["logp_difference_max"] == 0.5


def test_a_tiny_run_prints_a_table_of_equal_completions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--tiny",
        "--prompts",
        "2",
        "--samples",
        "2",
        "--tokens",
        "12",
        "--repeats",
        "1",
        "--shortest",
        "1",
    ]
    sides = ["--sides", "group 3,history 2", "--out", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["speculation", *arguments, *sides])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    speculation.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert [row[0] for row in rows[2:]] == ["none", "group 3", "history 2"]
    assert rows[2][2] == "1.00" and rows[2][4] == "1.00"
    assert rows[3][5] == rows[4][5] == "1.000", "the same tokens, in float32"
    assert (tmp_path / "a.json").stat().st_size > 100
