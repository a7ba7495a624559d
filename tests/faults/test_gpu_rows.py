"""F17, F18 and F22 on a CUDA device: wrong adapters, logps of both sides, the end of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.faults import engine_logps, gpu
from benchmarks.faults.engine_resume import resumed
from rlkit.generation.vllm.config import is_installed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
# A machine without a registry has the model as a file.
MODEL = os.environ.get("RLKIT_SMOLLM2_GGUF", "starter")


def test_wrong_adapters_are_seen_and_logps_agree() -> None:
    rows = [row for four in (False, True) for row in engine_logps.rows(MODEL, quantised=four)]
    assert [row.name.split()[0] for row in rows] == ["F17", "F18", "F18"]
    assert [row.note for row in rows if row.lost] == []
    assert [row.injected for row in rows] == [6, 6, 6]


def test_runs_end_within_half_a_minute(tmp_path: Path) -> None:
    row = gpu.exits(4, tmp_path, MODEL)
    assert row.lost == 0, row.note


def test_an_interrupted_run_is_the_same_or_says_where_it_parts(tmp_path: Path) -> None:
    row = resumed(tmp_path, MODEL)
    assert row.lost == 0, row.note
