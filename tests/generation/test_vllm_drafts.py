"""Bursts with guesses against vLLM's scheduler, in float32 on a CPU; and where texts are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.random_model import write_random_model
from rlkit.generation.speculation import DraftSource, SpeculationKind, SpeculationOptions
from rlkit.generation.vllm.accel.draft_burst import _take_back
from rlkit.generation.vllm.accel.draft_graphs import draft_sizes
from rlkit.generation.vllm.accel.draft_texts import DraftTexts
from rlkit.generation.vllm.config import is_installed

TESTS = Path(__file__).parents[1]
CASES = ("length", "stops", "min_p")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run `vllm_drafts_on_cpu.py`, which samples 9 completions of up to 37 tokens, 4 at once."""
    if not is_installed() or torch.cuda.is_available():
        pytest.skip("needs vLLM for CPUs; GPUs have test_vllm_gpu.py")
    folder = tmp_path_factory.mktemp("drafts")
    write_random_model(folder / "tiny", "tiny", dtype=torch.float32)
    done = subprocess.run(
        [sys.executable, str(TESTS / "support" / "vllm_drafts_on_cpu.py"), str(folder / "tiny")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def same(found: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    for a, b in zip(found, truth, strict=True):
        assert a["ids"] == b["ids"] and a["reason"] == b["reason"]
        np.testing.assert_allclose(a["logps"], b["logps"], atol=2e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_guesses_sample_what_the_scheduler_samples(found: Any, case: str) -> None:
    """Rows that end, that join, and whose limits differ; an adapter; steps scheduled ahead."""
    truth = found[f"{case} scheduler"]
    for source in ("own", "group", "history"):
        rows = found[f"{case} {source}"]
        same(rows, truth)
        assert sum(row["drafted"] for row in rows) > 20
        assert all(0 <= row["accepted"] <= row["drafted"] for row in rows)
        assert all(row["accepted"] < len(row["ids"]) for row in rows)
    # The second call of one policy and the same seeds says what the first one said.
    again = found[f"{case} history"]
    assert sum(row["accepted"] for row in again) > 0.5 * sum(row["drafted"] for row in again)
    steps = sum(len(row["ids"]) for row in truth)
    assert found[f"{case} replays"] < steps / 2


@pytest.mark.nightly
def test_plain_bursts_take_over_while_many_rows_are_under_way(found: Any) -> None:
    same(found["length few"], found["length scheduler"])


@pytest.mark.nightly
def test_an_interrupted_burst_leaves_the_engine_ready(found: Any) -> None:
    assert found["interrupted"] == 0
    same(found["after"], found["length scheduler"])
    assert found["lost blocks"] == 0


def request(name: str, prompt: tuple[int, ...] = (1, 2), *, adapter: str = "v1") -> Any:
    return SimpleNamespace(
        request_id=name,
        prompt_token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        max_tokens=5,
        lora_request=SimpleNamespace(lora_name=adapter),
    )


def texts_of(source: DraftSource) -> DraftTexts:
    options = SpeculationOptions(kind=SpeculationKind.ngram, source=source)
    return DraftTexts(options, max_num_seqs=2, places=8, device=torch.device("cpu"))


def test_a_row_searches_itself_first_and_then_what_joined_last() -> None:
    texts = texts_of(DraftSource.group)
    a, b, c = (request(name) for name in "abc")
    other, newer = request("d", (3, 4)), request("e", adapter="v2")
    first = texts.batch([a, b], [5, 6])
    assert first.states.tolist() == [5, 6] and first.limits.tolist() == [7, 7]
    place = dict(zip("ab", first.texts.tolist(), strict=True))
    assert first.sources.tolist() == [[place["a"], place["b"]], [place["b"], place["a"]]]
    third = texts.batch([c, other], [1, 2])
    place |= dict(zip("cd", third.texts.tolist(), strict=True))
    assert len({*place.values()}) == 4
    assert third.sources.tolist() == [
        [place["c"], place["b"], place["a"]],
        [place["d"], -1, -1],
    ]
    # There are four places: what has another policy takes that of `a`, used longest ago.
    last = texts.batch([newer, c], [1, 2])
    assert last.texts.tolist() == [place["a"], place["c"]]
    assert last.sources.tolist() == [[place["a"], -1], [place["c"], place["b"]]]


@pytest.mark.parametrize("source, shared", [(DraftSource.own, 1), (DraftSource.history, 3)])
def test_what_is_searched_follows_the_option(source: DraftSource, shared: int) -> None:
    texts = texts_of(source)
    texts.batch([request("a"), request("b")], [0, 1])
    rows = texts.batch([request("c", adapter="v2")], [0])
    assert rows.sources.shape == (1, shared)


def test_texts_are_read_from_the_states() -> None:
    texts = texts_of(DraftSource.own)
    rows = texts.batch([request("a"), request("b")], [3, 1])
    ids = torch.arange(40, dtype=torch.int32).view(5, 8)
    texts.read(rows, ids, torch.tensor([0, 4, 0, 7, 0], dtype=torch.int32))
    assert texts.table[rows.texts.long()].tolist() == ids[[3, 1]].tolist()
    assert texts.lengths[rows.texts.long()].tolist() == [7, 4]


@pytest.mark.parametrize(
    "stop, most, expected, reason, counts",
    [
        (99, 20, [1, 2, 3, 4, 5, 6], None, (5, 3)),
        (99, 10 + 6, [1, 2, 3, 4, 5, 6], "length", (5, 3)),
        (6, 20, [1, 2, 3, 4, 5, 6], "stop", (5, 3)),
        (4, 20, [1, 2, 3, 4], "stop", (3, 2)),  # the only token of the second step
        (2, 20, [1, 2], "stop", (2, 1)),  # the first guess
        (1, 20, [1], "stop", (2, 0)),
    ],
)
def test_what_a_request_gains_and_gives_back(
    stop: int, most: int, expected: list[int], reason: str | None, counts: tuple[int, int]
) -> None:
    """Three steps of up to 3 tokens, with 2 of 2 guesses right, none of 1, and 1 of 2.

    A step gives 1 token and one for each right guess: 3 + 1 + 2 tokens here.
    """
    kept: list[int] = []
    row = SimpleNamespace(
        request_id="a",
        num_output_placeholders=9 + 9,  # another burst is on its way
        num_computed_tokens=100 + 9 + 9,
        num_output_tokens=10,
        max_tokens=most,
        sampling_params=SimpleNamespace(stop_token_ids=[stop]),
        append_output_token_ids=kept.extend,
    )
    steps, held = [[1, 2, 3], [4, 0, 0], [5, 6, 0]], [3, 1, 2]
    made = [2, 1, 2]
    logps = [[-float(token) for token in step] for step in steps]
    piece = _take_back(row, steps, logps, held, made)
    assert piece.token_ids == expected and piece.finish_reason == reason
    assert piece.logps == [-float(token) for token in expected]
    assert (piece.drafted, piece.accepted) == counts
    assert row.num_output_placeholders == 9 and row.num_computed_tokens == 100 + 9 + 6
    assert kept == (expected if reason is None else [])


def test_graphs_have_a_multiple_of_the_tokens_of_a_row() -> None:
    assert draft_sizes(4, 64, 64) == [4, 8, 16, 32, 64, 128, 192, 256]
    assert draft_sizes(3, 6, 512) == [3, 6, 12, 18]
