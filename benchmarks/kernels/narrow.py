"""Products of 64 rows in decoding: cuBLAS in bfloat16 beside our kernel, in 16 and in 8 bits.

    python -m benchmarks.kernels.narrow --json out.json [--shapes W1.o,W2.down] [--workers 12]

A CUDA graph holds one launch for each of many weights, together larger than the cache. So each
launch reads its weight from memory, as a decoding step does. Microseconds are those of one launch,
gaps included. Processes of their own compile the kernels first (`--workers`; 0 = none), into
Triton's cache. `--tiny` tries the program on a CPU under Triton's interpreter, without times; that
multiplies bfloat16 wrongly, so its errors say nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.generation.vllm.accel.narrow import (
    NarrowTiling,
    NarrowWeight,
    Workspace,
    product,
    tiling,
    tilings,
)
from rlkit.models.fp8 import quantise

ROWS = 64
BYTES = 400_000_000
"""Weights of one graph; the cache of an H200 has 50 MB."""


class Shape(NamedTuple):
    """A layer of decoding with an adapter of rank 16."""

    inputs: int
    outputs: int
    more: int
    """Rows of A."""


SHAPES = {
    "W2.gate_up": Shape(4096, 28672, 32),
    "W2.down": Shape(14336, 4096, 16),
    "W2.qkv": Shape(4096, 6144, 48),
    "W2.o": Shape(4096, 4096, 16),
    "W1.gate_up": Shape(1536, 17920, 32),
    "W1.down": Shape(8960, 1536, 16),
    "W1.qkv": Shape(1536, 2048, 48),
    "W1.o": Shape(1536, 1536, 16),
}
TINY = {"tiny": Shape(128, 48, 16)}


class Case(NamedTuple):
    """One kernel: the codes of a weight or its numbers, with a cut."""

    codes: bool
    tile: NarrowTiling

    def __str__(self) -> str:
        kind = "e4m3" if self.codes else "bf16"
        cut = "x".join(map(str, self.tile[:3]))
        return f"{kind} {cut} warps {self.tile[3]} stages {self.tile[4]} early {self.tile[5]}"


def cases(shape: Shape) -> Iterator[Case]:
    """Yield each cut with numbers and with codes; A is read with codes, and is among numbers."""
    on_cuda = torch.cuda.is_available()
    early = on_cuda and torch.cuda.get_device_capability()[0] >= 9
    for codes in (True, False):
        outputs = shape.outputs + (0 if codes else shape.more)
        more = shape.more if codes else 0
        own = tiling(outputs, shape.inputs, more)
        found = [own, *tilings(outputs, shape.inputs, more)]
        if early:
            found += [tile._replace(early=True) for tile in found[:3]]
        yield from (Case(codes, tile) for tile in dict.fromkeys(found))


class Layer:
    """Random weights of a shape: [W; A] of all, and W in 8 bits."""

    def __init__(self, shape: Shape) -> None:
        on_cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if on_cuda else "cpu")
        generator = torch.Generator(self.device).manual_seed(0)
        options: dict[str, Any] = {"device": self.device, "generator": generator}
        size = shape.outputs + shape.more
        count = max(4, BYTES // (2 * shape.inputs * size)) if on_cuda else 1
        self.shape = shape
        self.x = torch.randn(ROWS, shape.inputs, **options).bfloat16()
        self.wide = [
            (torch.randn(size, shape.inputs, **options) * shape.inputs**-0.5).bfloat16()
            for _ in range(count)
        ]
        # Half the bytes a weight: twice as many, so that the cache holds as little of them.
        codes = [quantise(wide[: shape.outputs]) for wide in self.wide]
        self.codes = [*codes, *((values.clone(), scale) for values, scale in codes)]
        self.workspace = Workspace(self.device)

    def calls(self, case: Case) -> list[Callable[[], Tensor]]:
        """Return the products of each weight."""
        if not case.codes:
            weights = [NarrowWeight(wide, None, self.workspace) for wide in self.wide]
            return [partial(product, self.x, w, None, None, tile=case.tile) for w in weights]
        a = self.wide[0][self.shape.outputs :]
        held = [NarrowWeight(values, scale, self.workspace) for values, scale in self.codes]
        return [partial(product, self.x, w, a, None, tile=case.tile) for w in held]

    def error(self, got: Tensor, *, codes: bool) -> float:
        """Return the largest error by the largest result."""
        wide = self.wide[0].double()
        if codes:
            values, scale = self.codes[0]
            size = self.shape.outputs
            wide[:size] = values.view(torch.float8_e4m3fn).double() * scale.double()[:, None]
        truth = self.x.double() @ wide.T
        return float((got.double() - truth).abs().max() / truth.abs().max())


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


def measure(shape: Shape, until: float) -> dict[str, Any]:
    """Return the times and errors of cuBLAS and of each case that fits into the time."""
    layer = Layer(shape)
    on_cuda = layer.device.type == "cuda"

    def row(calls: list[Callable[[], Tensor]], *, codes: bool) -> dict[str, Any]:
        found = layer.error(calls[0](), codes=codes)
        return {"error": found, "us": microseconds(calls) if on_cuda else None}

    plain: list[Callable[[], Tensor]] = [partial(F.linear, layer.x, w) for w in layer.wide]
    rows: dict[str, Any] = {"cublas bf16": row(plain, codes=False)}
    for case in cases(shape):
        if time.monotonic() > until:
            break
        try:
            rows[str(case)] = row(layer.calls(case), codes=case.codes)
        except Exception as failure:  # a cut that the card does not take
            rows[str(case)] = {"failed": " ".join(str(failure).split())[:200]}
    read = shape.inputs * (shape.outputs + shape.more)
    return {**shape._asdict(), "limit_us": 2e6 * read / 4.3e12, "rows": rows}


def compile_ahead(shapes: dict[str, Shape], workers: int) -> None:
    """Compile in processes of their own, and wait for them."""
    command = [sys.executable, "-m", "benchmarks.kernels.narrow", f"--shapes={','.join(shapes)}"]
    started = [
        subprocess.Popen([*command, f"--worker={number}", f"--workers={workers}"])
        for number in range(workers)
    ]
    for process in started:
        process.wait()


def _compile(shapes: dict[str, Shape], worker: int, workers: int) -> None:
    every = [(shape, case) for shape in shapes.values() for case in cases(shape)]
    layers: dict[Shape, Layer] = {}
    for shape, case in every[worker::workers]:
        if shape not in layers:
            layers = {shape: Layer(shape)}
        try:
            layers[shape].calls(case)[0]()
        except Exception as failure:  # it is reported where it is timed
            print(f"{case}: {' '.join(str(failure).split())[:200]}", flush=True)
    torch.cuda.synchronize()


def best(rows: dict[str, Any], kind: str) -> tuple[float, str]:
    """Return the least time of a kind, and what had it."""
    timed = [
        (row["us"], key) for key, row in rows.items() if key.startswith(kind) and row.get("us")
    ]
    return min(timed, default=(float("nan"), "none"))


def main() -> None:
    """Measure the shapes, print the best cuts and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=150.0, help="of all shapes")
    parser.add_argument("--workers", type=int, default=0, help="processes that compile ahead")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="a test of this program")
    options = parser.parse_args()
    shapes = TINY if options.tiny else {name: SHAPES[name] for name in options.shapes.split(",")}
    if options.worker is not None:
        _compile(shapes, options.worker, options.workers)
        return
    started, results = time.monotonic(), {}
    if options.workers:
        compile_ahead(shapes, options.workers)
        print(f"compiled after {time.monotonic() - started:.0f} s", flush=True)
    for name, shape in shapes.items():
        results[name] = measure(shape, started + options.seconds)
        rows = results[name]["rows"]
        limit = results[name]["limit_us"]
        print(f"{name}: limit {limit:.1f} us in 16 bits, {limit / 2:.1f} in 8", flush=True)
        for kind in ("cublas", "bf16", "e4m3"):
            print("  {:.1f} us {}".format(*best(rows, kind)), flush=True)
        for key, row in rows.items():
            if "failed" in row:
                print(f"  {key}: {row['failed']}", flush=True)
        if options.json:
            record = {"torch": torch.__version__, "rows": ROWS, "results": results}
            options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
