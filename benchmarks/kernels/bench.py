"""`python -m benchmarks.kernels.bench`: time, memory and error of per-token logps, against peers.

Unit: one matmul of 2 N V D operations at the rate of an 8192^3 bfloat16 cuBLAS product, measured
in the same process before and after each shape. Needs a CUDA GPU. With `--plot`, draws the JSON
of an earlier run instead (no GPU).
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.cases import OPS, SHAPES, errors, make_data, offers, operation, truth
from benchmarks.kernels.peers import Transform, load_peers


def matmul_rate(ms: int = 400, dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of an 8192^3 product on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
    return 2 * 8192**3 / statistics.median(timed(lambda: a @ b, ms)) / 1e9


def copy_rate() -> float:
    """TB/s, bytes read plus bytes written, of a 4 GB device-to-device copy."""
    a = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * 2**32 / statistics.median(timed(lambda: b.copy_(a), 100)) / 1e9


def timed(run: Callable[[], object], ms: int) -> list[float]:
    """Milliseconds of each repetition in about `ms` of them, L2 flushed before each."""
    from triton.testing import do_bench

    times: list[float] = do_bench(run, warmup=ms // 4, rep=ms, return_mode="all")
    return times


def peak_extra(run: Callable[[], object]) -> int:
    """Bytes that `run` holds at its peak beyond what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_shape(
    name: str, peers: list[str], ops: list[str], *, temperature: float, ms: int
) -> dict[str, Any]:
    """All operations of all peers on one shape, peers interleaved in two rounds."""
    shape = SHAPES[name]
    entries, _, with_entropy = load_peers()
    data = make_data(shape)
    transform = Transform(temperature, shape.softcap)
    exact = truth(data, transform)
    rates = [matmul_rate()]
    results: dict[str, dict[str, Any]] = {peer: {} for peer in peers if peer in entries}
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(2):
        for op in ops:
            for peer in results:
                if not offers(peer, op, with_entropy):
                    continue
                try:
                    run = operation(op, entries[peer], data, transform)
                    run()
                    samples.setdefault((peer, op), []).extend(timed(run, ms))
                    if "peak_mib" not in results[peer].setdefault(op, {}):
                        results[peer][op]["peak_mib"] = peak_extra(run) / 2**20
                except Exception as error:  # a peer may raise anything
                    results[peer][op] = {"failed": _first_line(error)}
                torch.cuda.empty_cache()
        rates.append(matmul_rate())
    floor = shape.operations / statistics.mean(rates) / 1e9
    for (peer, op), times in samples.items():
        results[peer][op] |= _summary(times, floor) | {
            "tflops": OPS[op][0] * shape.operations / statistics.median(times) / 1e9
        }
    for peer in results:
        try:
            results[peer]["errors"] = errors(entries[peer], data, exact, transform)
        except Exception as error:
            results[peer]["errors"] = {"failed": _first_line(error)}
        torch.cuda.empty_cache()
    return {
        "shape": shape[:3],
        "softcap": shape.softcap,
        "temperature": temperature,
        "matmul_tflops": rates,
        "floor_ms": floor,
        "results": results,
    }


def _summary(times: list[float], floor: float) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=5) if len(times) > 1 else [times[0]] * 4
    middle = statistics.median(times)
    return {"ms": middle, "p20": cuts[0], "p80": cuts[3], "matmuls": middle / floor}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def table(name: str, measured: dict[str, Any]) -> str:
    """The shape's results as text: milliseconds and multiples of one matmul."""
    lines = [f"{name} {tuple(measured['shape'])}: one matmul = {measured['floor_ms']:.2f} ms"]
    for peer, row in measured["results"].items():
        for op in OPS:
            cell = row.get(op)
            if cell is None or "ms" not in cell:
                continue
            lines.append(
                f"  {peer:18s} {op:25s} {cell['ms']:8.2f} ms {cell['matmuls']:6.2f} x "
                f"{cell['tflops']:5.0f} TF/s {cell['peak_mib']:8.0f} MiB"
            )
        found = row["errors"]
        if "failed" not in found:
            lines.append(
                f"  {peer:18s} error: logp {found['logp_max']:.1e}, J {found['jacobian']:.1e}, "
                f"J(p>.999) {found['jacobian_sure']:.1e}, grad = no-grad: "
                f"{bool(found['grad_equals_no_grad'])}"
            )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.bench", description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["P1", "P2"], choices=list(SHAPES))
    parser.add_argument("--ops", nargs="+", default=list(OPS)[:4], choices=list(OPS))
    parser.add_argument("--peers", nargs="+", help="default: all that import")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--ms", type=int, default=800, help="measuring time per cell and round")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--plot", type=Path, help="draw the results in --json to this PNG")
    args = parser.parse_args(arguments)
    if args.plot is not None:
        from benchmarks.kernels.plot import plot

        floors = {op: matmuls for op, (matmuls, _) in OPS.items()}
        plot(json.loads(args.json.read_text()), floors, args.plot)
        return
    if not torch.cuda.is_available():
        parser.error("a CUDA GPU is needed, except for --plot")
    import triton

    entries, versions, _ = load_peers()
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.kernels.bench " + shlex.join(arguments),
        "versions": {**versions, "triton": triton.__version__, "python": sys.version.split()[0]},
        "copy_tb_s": copy_rate(),
        "shapes": {},
    }
    print(record["device"], record["versions"], f"copy {record['copy_tb_s']:.2f} TB/s", flush=True)
    for name in args.shapes:
        peers = args.peers or list(entries)
        record["shapes"][name] = measure_shape(
            name, peers, args.ops, temperature=args.temperature, ms=args.ms
        )
        print(table(name, record["shapes"][name]), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(record, indent=1))
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
