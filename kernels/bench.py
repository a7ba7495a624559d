"""`python -m rlkit.kernels.bench`: time, memory and error of per-token logps, against peers.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.kernels._bench_peers import Entry, load_peers
from rlkit.kernels.kl import kl_exact
from rlkit.kernels.logps import EntropyMode

SHAPES = {
    "P1": (16384, 1536, 151936),
    "P2": (16384, 4096, 128256),
    "P3": (163840, 4096, 128256),
    "S1": (4096, 2048, 151936),
    "S2": (8192, 3584, 152064),
    "S3": (2048, 4096, 128256),
    "odd": (5000, 1536, 50257),
}
"""(N, D, V): Qwen2.5-1.5B, Llama-3.1-8B at 16 K and 160 K tokens, smaller batches, ragged sizes."""

OPS = {
    "forward": (1, EntropyMode.none),
    "forward+entropy": (1, EntropyMode.value),
    "fwd+bwd": (2, EntropyMode.none),
    "fwd+bwd+entropy": (2, EntropyMode.value),
    "fwd+bwd+entropy grad": (3, EntropyMode.differentiable),
    "trainable head": (4, EntropyMode.none),
    "exact KL": (3, EntropyMode.none),
}
"""Operation -> the fewest matmuls it needs, and what it wants of the entropy."""


class Data(NamedTuple):
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor


def make_data(shape: tuple[int, int, int], seed: int = 0) -> Data:
    """Normal weights; hidden states whose targets have p_y from 1e-6 to 1 - 1e-4."""
    n, d, v = shape
    gen = torch.Generator("cuda").manual_seed(seed)
    weight = torch.randn(v, d, generator=gen, device="cuda").mul_(d**-0.5).bfloat16()
    targets = torch.randint(v, (n,), generator=gen, device="cuda")
    hidden = torch.empty(n, d, device="cuda", dtype=torch.bfloat16)
    for start in range(0, n, 16384):
        rows = slice(start, min(start + 16384, n))
        size = rows.stop - rows.start
        pull = 18 + 4 * torch.randn(size, 1, generator=gen, device="cuda")
        noise = 2 * torch.randn(size, d, generator=gen, device="cuda")
        hidden[rows] = (pull * weight[targets[rows]].float() + noise).bfloat16()
    return Data(hidden, weight, targets, torch.randn(n, generator=gen, device="cuda"))


def matmul_rate(ms: int = 400) -> float:
    """TFLOP/s of an 8192^3 bfloat16 product on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
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


def operation(name: str, entry: Entry, data: Data) -> Callable[[], object]:
    """A closure that performs operation `name` of `OPS` once."""
    mode = OPS[name][1]
    if name.startswith("forward"):

        def forward() -> object:
            with torch.no_grad():
                return entry(data.hidden, data.weight, data.targets, mode)

        return forward
    weight = data.weight
    if name == "trainable head":
        weight = weight.detach().requires_grad_()

    def step() -> object:
        hidden = data.hidden.detach().requires_grad_()
        if name == "exact KL":
            kl = kl_exact(hidden, data.hidden.roll(1, 1), weight, direction="reverse")
            torch.autograd.backward(kl, data.upstream)
            return hidden.grad
        logps, h = entry(hidden, weight, data.targets, mode)
        upstream = data.upstream.to(logps.dtype)
        if mode == EntropyMode.differentiable and h is not None:
            torch.autograd.backward((logps, h), (upstream, upstream))
        else:
            torch.autograd.backward(logps, upstream)
        weight.grad = None
        return hidden.grad

    return step


def offers(peer: str, op: str, with_entropy: set[str]) -> bool:
    """Whether `peer` can do `op`; the exact KL is compared with nothing."""
    if op == "exact KL":
        return peer == "rlkit triton"
    return OPS[op][1] == EntropyMode.none or peer in with_entropy


def peak_extra(run: Callable[[], object]) -> int:
    """Bytes that `run` holds at its peak beyond what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Truth(NamedTuple):
    rows: Tensor
    logps: Tensor
    jacobian: Tensor


def truth(data: Data, num_rows: int = 512) -> Truth:
    """float64 logps and their gradients for some rows."""
    rows = torch.arange(num_rows, device="cuda") * (len(data.targets) // num_rows)
    hidden, weight = data.hidden[rows].double(), data.weight.double()
    y = data.targets[rows, None]
    z = hidden @ weight.T
    z_y = z.gather(1, y)
    odds = z.scatter(1, y, -torch.inf).logsumexp(1, keepdim=True) - z_y
    doubt = torch.sigmoid(odds)
    others = (z - z_y - odds).scatter(1, y, -torch.inf).exp_()
    jacobian = doubt * (weight[y.squeeze(1)] - others @ weight)
    logps = -torch.nn.functional.softplus(odds, threshold=1e4).squeeze(1)
    return Truth(rows, logps, jacobian)


def errors(entry: Entry, data: Data, exact: Truth) -> dict[str, float]:
    """Errors of logps and of the Jacobian, with upstream gradient 1."""
    hidden = data.hidden.detach().requires_grad_()
    out, _ = entry(hidden, data.weight, data.targets, EntropyMode.none)
    torch.autograd.backward(out, torch.ones_like(out))
    assert hidden.grad is not None
    error = out.detach()[exact.rows].double() - exact.logps
    miss = (hidden.grad[exact.rows].double() - exact.jacobian).norm(dim=1)
    size = exact.jacobian.norm(dim=1)
    sure = exact.logps.exp() > 0.999
    with torch.no_grad():
        again, _ = entry(data.hidden, data.weight, data.targets, EntropyMode.none)
    return {
        "logp_max": error.abs().max().item(),
        "logp_mean": error.abs().mean().item(),
        "logp_bias": error.mean().item(),
        "jacobian": (miss.norm() / size.norm()).item(),
        "jacobian_row_median": (miss / size).median().item(),
        "jacobian_sure": (miss[sure].norm() / size[sure].norm()).item() if sure.any() else 0.0,
        "rows_sure": int(sure.sum()),
        "grad_equals_no_grad": float(torch.equal(again, out.detach())),
    }


def measure_shape(name: str, peers: list[str], ops: list[str], ms: int) -> dict[str, Any]:
    """All operations of all peers on one shape, peers interleaved in two rounds."""
    shape = SHAPES[name]
    entries, _, with_entropy = load_peers()
    data = make_data(shape)
    exact = truth(data)
    rates = [matmul_rate()]
    results: dict[str, dict[str, Any]] = {peer: {} for peer in peers if peer in entries}
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(2):
        for op in ops:
            for peer in results:
                if not offers(peer, op, with_entropy):
                    continue
                try:
                    run = operation(op, entries[peer], data)
                    run()
                    samples.setdefault((peer, op), []).extend(timed(run, ms))
                    if "peak_mib" not in results[peer].setdefault(op, {}):
                        results[peer][op]["peak_mib"] = peak_extra(run) / 2**20
                except (RuntimeError, TypeError, ValueError) as error:
                    results[peer][op] = {"failed": str(error).splitlines()[0][:200]}
                torch.cuda.empty_cache()
        rates.append(matmul_rate())
    floor = 2 * shape[0] * shape[1] * shape[2] / statistics.mean(rates) / 1e9
    for (peer, op), times in samples.items():
        cuts = statistics.quantiles(times, n=5) if len(times) > 1 else [times[0]] * 4
        middle = statistics.median(times)
        results[peer][op] |= {
            "ms": middle,
            "p20": cuts[0],
            "p80": cuts[3],
            "matmuls": middle / floor,
            "tflops": OPS[op][0] * 2 * shape[0] * shape[1] * shape[2] / middle / 1e9,
        }
    for peer in results:
        try:
            results[peer]["errors"] = errors(entries[peer], data, exact)
        except (RuntimeError, TypeError, ValueError) as error:
            results[peer]["errors"] = {"failed": str(error).splitlines()[0][:200]}
        torch.cuda.empty_cache()
    return {"shape": shape, "matmul_tflops": rates, "floor_ms": floor, "results": results}


def table(name: str, measured: dict[str, Any]) -> str:
    """The shape's results as text: milliseconds and multiples of one matmul."""
    lines = [f"{name} {tuple(measured['shape'])}: one matmul = {measured['floor_ms']:.2f} ms"]
    for peer, row in measured["results"].items():
        for op in OPS:
            cell = row.get(op)
            if cell is None or "ms" not in cell:
                continue
            lines.append(
                f"  {peer:18s} {op:20s} {cell['ms']:8.2f} ms {cell['matmuls']:6.2f} x "
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
    parser = argparse.ArgumentParser(prog="python -m rlkit.kernels.bench", description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["P1", "P2"], choices=list(SHAPES))
    parser.add_argument("--ops", nargs="+", default=list(OPS)[:4], choices=list(OPS))
    parser.add_argument("--peers", nargs="+", help="default: all that import")
    parser.add_argument("--ms", type=int, default=800, help="measuring time per cell and round")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--plot", type=Path, help="draw the results in --json to this PNG")
    args = parser.parse_args(arguments)
    if args.plot is not None:
        from rlkit.kernels._bench_plot import plot

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
        "command": "python -m rlkit.kernels.bench " + shlex.join(arguments),
        "versions": {**versions, "triton": triton.__version__, "python": sys.version.split()[0]},
        "copy_tb_s": copy_rate(),
        "shapes": {},
    }
    print(record["device"], record["versions"], f"copy {record['copy_tb_s']:.2f} TB/s", flush=True)
    for name in args.shapes:
        peers = args.peers or list(entries)
        record["shapes"][name] = measure_shape(name, peers, args.ops, args.ms)
        print(table(name, record["shapes"][name]), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(record, indent=1))
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
