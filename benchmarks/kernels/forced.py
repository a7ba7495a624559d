"""`python -m benchmarks.kernels.forced --json out.json`: the paths of other cards on this card.

Each path of the log-probs runs on the same tensors: the tilings and the instructions of 8.0, 8.6,
8.9 and 12.0, the chunked path, and the card's own. The unit is one matmul of 2 N V D operations at
the rate of an 8192^3 product in the same dtype and process, measured before and after each shape.
Without a GPU it runs tiny shapes under TRITON_INTERPRET=1, which proves the program and no speed.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.kernels.bench import matmul_rate, peak_extra, timed
from benchmarks.kernels.cases import Data, Shape, Truth, errors, make_data, operation, truth
from benchmarks.kernels.peers import Transform, rlkit_entry
from rlkit.kernels.logps import Impl
from rlkit.kernels.tilings import AMPERE, SMALL_AMPERE, Tiling, forced

SHAPES = {"D1536": Shape(16384, 1536, 151936), "D4096": Shape(16384, 4096, 128256)}
TINY = {"tiny": Shape(40, 64, 200)}
OPS = {"forward": 1, "fwd+bwd": 2}
"""Operation -> the fewest matmuls it needs."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_SMALL_FORCED = forced((8, 9))
PATHS: dict[str, tuple[Impl, Tiling | None]] = {
    "own": (Impl.triton, None),
    "8.0": (Impl.triton, forced((8, 0))),
    "8.6, 8.9": (Impl.triton, _SMALL_FORCED),
    "12.0": (Impl.triton, forced((12, 0))),
    "chunked": (Impl.torch, None),
    "8.0 with 128x128x64, 4 stages": (
        Impl.triton,
        forced((8, 0))._replace(block_n=128, num_stages=4, flatten=True),
    ),
    "8.6, 8.9 flattened": (Impl.triton, _SMALL_FORCED._replace(flatten=True)),
    "8.6, 8.9 with 128x256x64, 2 stages": (
        Impl.triton,
        _SMALL_FORCED._replace(block_n=256, num_stages=2),
    ),
    "8.0 tiling, own instructions": (Impl.triton, AMPERE),
    "8.6, 8.9 tiling, own instructions": (Impl.triton, SMALL_AMPERE),
}
"""Name -> implementation and forced tiling; those that a card uses come first."""


def interpreted(tiling: Tiling | None) -> Tiling | None:
    """The tiling with tiles that the interpreter finishes, and no architecture."""
    if tiling is None:
        return None
    return tiling._replace(block_m=32, block_n=64, block_k=32, group_m=2, arch=None)


def measure_path(
    name: str, data: Data, exact: Truth, *, operations: int, ms: int, on_gpu: bool
) -> dict[str, Any]:
    """Times, peak memory and errors of one path, or why it failed.

    Args:
        name: A key of `PATHS`.
        data: The tensors.
        exact: Float64 results for some of the rows.
        operations: Those of one matmul.
        ms: Measuring time of each operation.
        on_gpu: False in the interpreter, which measures no memory.

    Returns:
        Numbers by name.
    """
    impl, tiling = PATHS[name]
    entry = rlkit_entry(impl, tiling if on_gpu else interpreted(tiling))
    found: dict[str, Any] = {"tiling": None if tiling is None else tiling._asdict()}
    try:
        for op, matmuls in OPS.items():
            run = operation(op, entry, data, Transform())
            began = time.perf_counter()
            run()
            first = time.perf_counter() - began
            times = timed(run, ms) if on_gpu else [1e3 * first]
            cell: dict[str, float] = {
                "ms": statistics.median(times),
                "fastest_ms": min(times),
                "first_seconds": first,
                "tflops": matmuls * operations / statistics.median(times) / 1e9,
            }
            if on_gpu:
                cell["peak_mib"] = peak_extra(run) / 2**20
            found[op] = cell
        found["errors"] = errors(entry, data, exact, Transform())
    except Exception as error:  # compilers and drivers raise types of their own
        found["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    return found


def measure(
    shape: Shape, dtype: torch.dtype, *, ms: int, on_gpu: bool, more_time: Callable[[], bool]
) -> dict[str, Any]:
    """All paths on one shape in one dtype.

    Args:
        shape: N, D and V.
        dtype: Of hidden states and weights.
        ms: Measuring time of each operation.
        on_gpu: Whether there is a GPU.
        more_time: Whether another path may start.

    Returns:
        The unit and the results by path.
    """
    data = make_data(shape, dtype=dtype, device="cuda" if on_gpu else "cpu")
    exact = truth(data, Transform())
    rates = [matmul_rate(100, dtype)] if on_gpu else []
    results: dict[str, Any] = {}
    for name in PATHS:
        if not more_time():
            results[name] = {"failed": "left out: no time was left"}
            continue
        results[name] = measure_path(
            name, data, exact, operations=shape.operations, ms=ms, on_gpu=on_gpu
        )
    record: dict[str, Any] = {"shape": shape[:3], "results": results}
    if on_gpu:
        rates.append(matmul_rate(100, dtype))
        unit = shape.operations / statistics.mean(rates) / 1e9
        record |= {"matmul_tflops": rates, "unit_ms": unit}
        for row in results.values():
            for op in OPS:
                if op in row:
                    row[op]["matmuls"] = row[op]["ms"] / unit
        torch.cuda.empty_cache()
    return record


def table(key: str, record: dict[str, Any]) -> str:
    """The results as rows of a Markdown table."""
    unit = f"{record['unit_ms']:.2f} ms" if "unit_ms" in record else "not measured"
    lines = [
        f"{key} {tuple(record['shape'])}, one matmul: {unit}",
        "| path | forward | forward + backward | logp error, nats | gradient error |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["results"].items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | | |")
            continue
        cells = [f"{row[op].get('matmuls', float('nan')):.2f}" for op in OPS]
        cells += [f"{row['errors'][e]:.1e}" for e in ("logp_max", "jacobian")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def hardware(on_gpu: bool) -> dict[str, Any]:
    """The card, or the processor."""
    if not on_gpu:
        return {"device": platform.processor() or platform.machine(), "interpreted": True}
    card = torch.cuda.get_device_properties(0)
    return {
        "device": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gib": card.total_memory / 2**30,
        "cuda": torch.version.cuda,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.forced")
    parser.add_argument("--json", type=Path, required=True, help="where to write the results")
    parser.add_argument("--ms", type=int, default=120, help="measuring time per operation")
    parser.add_argument("--seconds", type=float, default=140, help="no path starts after these")
    args = parser.parse_args(arguments)
    began, on_gpu = time.perf_counter(), torch.cuda.is_available()
    record: dict[str, Any] = {
        **hardware(on_gpu),
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.kernels.forced " + shlex.join(arguments),
        "versions": {
            "torch": str(torch.__version__),
            "triton": triton.__version__,
            "python": sys.version.split()[0],
        },
        "runs": {},
    }
    print(record["device"], record["versions"], flush=True)
    for name, shape in (SHAPES if on_gpu else TINY).items():
        for label, dtype in DTYPES.items():
            key = f"{name} {label}"
            found = measure(
                shape, dtype, ms=args.ms, on_gpu=on_gpu,
                more_time=lambda: time.perf_counter() - began < args.seconds,
            )  # fmt: skip
            record["runs"][key] = found
            record["seconds"] = time.perf_counter() - began
            args.json.write_text(json.dumps(record, indent=1))
            print(table(key, found), f"{record['seconds']:.0f} s", sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
