"""Products of 64 rows in decoding: cuBLAS beside our kernel in several tilings, each alone.

    python -m benchmarks.kernels.narrow --json out.json [--shapes W1.o,W1.down] [--seconds 150]

A CUDA graph holds one launch for each of many weights, together larger than the cache. So each
launch reads its weight from memory, as a decoding step does. Microseconds are those of one launch,
gaps included. `--tiny` tries the program on a CPU under Triton's interpreter,
without times; that multiplies bfloat16 wrongly, so its errors say nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels.narrow_kernel import NarrowProduct, NarrowTiling

ROWS = 64
BYTES = 400_000_000
"""Weights of one graph; the cache of an H200 has 50 MB."""
SHAPES = {
    "W1.o": (1536, 1552),
    "W1.qkv": (1536, 2096),
    "W1.down": (8960, 1552),
    "W1.gate_up": (1536, 17952),
    "W2.o": (4096, 4112),
    "W2.down": (14336, 4112),
    "W2.gate_up": (4096, 28704),
}
"""Inputs and outputs, with the rows of an adapter of rank 16 behind them."""
TINY = {"tiny": (128, 48)}


def tilings(num_inputs: int, num_outputs: int, *, early: bool) -> Iterator[NarrowTiling]:
    """Yield cuts into one to four programs a multiprocessor."""
    for block_n, block_k in ((32, 128), (64, 64), (64, 128), (128, 64)):
        blocks = -(-num_outputs // block_n)
        steps = num_inputs // block_k
        chosen = set()
        for programs in (132, 264, 528):
            fitting = [n for n in range(1, min(steps, 16) + 1) if steps % n == 0]
            chosen.add(min(fitting, key=lambda n: abs(blocks * n - programs)))
        for splits in sorted(chosen):
            yield NarrowTiling(block_n, block_k, splits, 4, 4, early)


def microseconds(calls: list[Callable[[], Tensor]]) -> float:
    """Return the median time of one call, in a CUDA graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    for _ in range(12):
        start, end = _event(), _event()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000.0 * start.elapsed_time(end) / len(calls))
    return sorted(times[2:])[len(times[2:]) // 2]


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def measure(shape: tuple[int, int], until: float) -> dict[str, Any]:
    """Return the times and errors of cuBLAS and of each tiling that fits into the time."""
    num_inputs, num_outputs = shape
    on_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if on_cuda else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "generator": generator}
    count = max(4, BYTES // (2 * num_inputs * num_outputs)) if on_cuda else 1
    x = torch.randn(ROWS, num_inputs, **options).bfloat16()
    weights = [
        (torch.randn(num_outputs, num_inputs, **options) * num_inputs**-0.5).bfloat16()
        for _ in range(count)
    ]
    truth = x.double() @ weights[0].double().T

    def error(got: Tensor) -> float:
        return float((got.double() - truth).abs().max() / truth.abs().max())

    def row(calls: list[Callable[[], Tensor]]) -> dict[str, Any]:
        found = error(calls[0]())
        return {"error": found, "us": microseconds(calls) if on_cuda else None}

    rows: dict[str, Any] = {"cublas": row([partial(F.linear, x, w) for w in weights])}
    early = on_cuda and torch.cuda.get_device_capability()[0] >= 9
    for tile in tilings(num_inputs, num_outputs, early=early):
        if time.monotonic() > until:
            break
        try:
            products = [NarrowProduct(w, None, tile) for w in weights]
            rows[str(tuple(tile))] = row([partial(p, x) for p in products])
        except Exception as failure:  # a tiling that the card does not take
            rows[str(tuple(tile))] = {"failed": " ".join(str(failure).split())[:200]}
    limit = 2e6 * num_inputs * num_outputs / 4.3e12
    return {"inputs": num_inputs, "outputs": num_outputs, "limit_us": limit, "rows": rows}


def main() -> None:
    """Measure the shapes, print the best tilings and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=150.0, help="of all shapes")
    parser.add_argument("--tiny", action="store_true", help="a test of this program")
    options = parser.parse_args()
    shapes = TINY if options.tiny else {name: SHAPES[name] for name in options.shapes.split(",")}
    started, results = time.monotonic(), {}
    for number, (name, shape) in enumerate(shapes.items(), start=1):
        results[name] = measure(shape, started + options.seconds * number / len(shapes))
        rows = results[name]["rows"]
        print(f"{name}: limit {results[name]['limit_us']:.1f} us")
        for key, row in sorted(rows.items(), key=lambda item: item[1].get("us") or 1e9)[:6]:
            print(f"  {key:<40} {row}", flush=True)
        record = {"torch": torch.__version__, "rows": ROWS, "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
