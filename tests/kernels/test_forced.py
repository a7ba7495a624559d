"""The benchmark of forced paths, on tiny shapes under the interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from triton_places import INTERPRETED

pytest.importorskip("triton")


@pytest.mark.skipif(not INTERPRETED, reason="test_interpreter.py")
def test_all_paths_run_and_agree_in_triton(tmp_path: Path) -> None:
    from benchmarks.kernels import forced

    forced.main(["--json", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    assert set(record["runs"]) == {"tiny bf16", "tiny fp16"}
    for key, run in record["runs"].items():
        assert set(run["results"]) == set(forced.PATHS)
        for row in run["results"].values():
            assert "failed" not in row
            assert row["forward"]["ms"] > 0 and row["fwd+bwd"]["ms"] > 0
            assert row["errors"]["logp_max"] < 1e-4
            assert row["errors"]["jacobian"] < (3e-3 if "bf16" in key else 5e-4)
            assert row["errors"]["grad_equals_no_grad"] == 1.0
