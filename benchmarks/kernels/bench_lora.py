"""Is a fused LoRA linear worth writing? `python -m benchmarks.kernels.bench_lora --json out.json`.

Times, on the same tensors: the frozen linear alone; the plain composition (B scaled)
y = x W^T + (x A^T) B^T through autograd; and the "K-concatenated" form, a matmul of [x | x A^T]
with [W | B] forward and of [dy | dy B] with [W; A] backward, which needs no read-modify-write
of y. The distance from the first to the second is the most that any fusion could win.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

RANK, TOKENS = 16, 8192
SHAPES = {"1.5B q_proj": (1536, 1536), "1.5B up_proj": (1536, 8960), "8B up_proj": (4096, 14336)}


def plain(x: Tensor, w: Tensor, a: Tensor, b: Tensor, dy: Tensor) -> None:
    """Forward and backward of the composition that `rlkit.policy.lora` uses."""
    y = x @ w.T + (x @ a.T) @ b.T
    torch.autograd.grad(y, (x, a, b), dy)


def base(x: Tensor, w: Tensor, dy: Tensor) -> None:
    """Forward and backward of the frozen linear alone."""
    torch.autograd.grad(x @ w.T, x, dy)


def concatenated(x: Tensor, w: Tensor, a: Tensor, b: Tensor, dy: Tensor) -> None:
    """The same results as `plain`, each big product once; concatenating is part of the cost."""
    with torch.no_grad():
        xa = x @ a.T
        torch.cat([x, xa], 1) @ torch.cat([w, b], 1).T
        dyb = dy @ b
        torch.cat([dy, dyb], 1) @ torch.cat([w, a], 0)
        dyb.T @ x
        dy.T @ xa


def measure(num_inputs: int, num_outputs: int) -> dict[str, float]:
    """Milliseconds of each form, medians."""
    from triton.testing import do_bench

    torch.manual_seed(0)
    options = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(TOKENS, num_inputs, **options, requires_grad=True)  # type: ignore[call-overload]
    w = torch.randn(num_outputs, num_inputs, **options) * 0.02  # type: ignore[call-overload]
    a = torch.randn(RANK, num_inputs, **options, requires_grad=True)  # type: ignore[call-overload]
    b = torch.randn(num_outputs, RANK, **options, requires_grad=True)  # type: ignore[call-overload]
    dy = torch.randn(TOKENS, num_outputs, **options)  # type: ignore[call-overload]
    forms: dict[str, Callable[[], None]] = {
        "base": lambda: base(x, w, dy),
        "plain": lambda: plain(x, w, a, b, dy),
        "concatenated": lambda: concatenated(x, w, a, b, dy),
    }
    return {
        name: float(do_bench(f, warmup=100, rep=400, return_mode="median"))
        for name, f in forms.items()
    }


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    results = {name: measure(*shape) for name, shape in SHAPES.items()}
    for name, times in results.items():
        shown = "  ".join(f"{form} {ms:.3f} ms" for form, ms in times.items())
        print(f"{name:14} {shown}  plain/base {times['plain'] / times['base']:.2f}")
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tokens": TOKENS,
        "rank": RANK,
        "milliseconds": results,
    }
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
