"""The table of all workloads, and the kernels of a trace, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.kernel_trace import Kernel, busy_us, by_name, in_order, one_step
from benchmarks.speed import rows_of, table


def side(step: float) -> dict[str, Any]:
    phases = {"generate": 0.5, "reward": 0.0, "score": 0.25, "update": 0.125, "sync": 0.0}
    seconds = {name: [0.0, value, 9.0] for name, value in phases.items()}
    return {"seconds": seconds | {"step": [0.0, step, 99.0]}, "device_peak_bytes": 2.4e10}


def test_medians_stand_beside_the_limit_and_the_others() -> None:
    rows = {"W1": {"rlkit": side(2.0), "trl": side(7.0)}, "Q1": {"rlkit": {"error": "no card"}}}
    assert table(rows).splitlines()[2:] == [
        "| W1 | 0.88 | 0.50 / 0.25 / 0.12 | **2.00** | 24 | 7.00 (3.50x, 24 GB) |",
        "| Q1 |  |  | no card |  |  |",
    ]


def test_files_of_several_runs_make_one_table(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].write_text(json.dumps({"results": {"W4": {"rlkit": 1}, "W2": {"rlkit": 2}}}))
    files[1].write_text(json.dumps({"results": {"W2": {"trl": 3}, "W1": {"trl": 4}}}))
    found = rows_of(files)
    assert list(found) == ["W1", "W2", "W4"]
    assert found == {"W1": {"trl": 4}, "W2": {"rlkit": 2, "trl": 3}, "W4": {"rlkit": 1}}


KERNELS = [
    Kernel("sample", 0.0, 2.0),
    Kernel("gemm", 3.0, 10.0),
    Kernel("copy", 5.0, 4.0),  # beside the product
    Kernel("sample", 15.0, 2.0),
    Kernel("gemm", 17.5, 10.0),
    Kernel("sample", 30.0, 2.0),
]


def test_time_in_which_nothing_runs_is_idle() -> None:
    assert busy_us(KERNELS) == 2 + 10 + 2 + 10 + 2
    lines = by_name(KERNELS, most=1)
    assert lines[0] == "6 kernels in 0.03 ms: busy 0.03 ms, idle 0.01 ms"
    assert lines[2].split() == ["0.020", "2", "10.00", "gemm"]
    assert lines[3].split() == ["0.010", "4", "2.50", "2", "others"]


def test_one_step_is_cut_at_its_mark_and_shows_gaps() -> None:
    step = one_step(KERNELS, "sample")
    assert [kernel.name for kernel in step] == ["sample", "gemm"]
    assert [line.split() for line in in_order(step)[1:]] == [
        ["0.0", "0.00", "2.00", "sample"],
        ["2.5", "0.50", "10.00", "gemm"],
    ]
    assert one_step(KERNELS[:2], "sample") == []
