"""FlashAttention's generations on packed rows: what is importable here, how fast, how exact.

    python -m benchmarks.kernels.attention [--out FILE]

Shapes are those of a micro-batch of `benchmarks.workloads`: completions that see their prompt and
themselves. `aten` is what training calls (FlashAttention 2 of torch); the others are tried and say
why not. Errors are the largest distance from `aten`, of the output and of three gradients.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.side import Result, write_report
from rlkit.runtime.torch_compat import flash_backward, flash_forward

_REPEATS = 20


class Case(NamedTuple):
    """One micro-batch: `rows` completions of one length behind a prompt each."""

    heads: int
    kv_heads: int
    width: int
    rows: int
    prompt: int
    completion: int


CASES = {
    "W1": Case(12, 2, 128, 32, 128, 512),
    "W2": Case(32, 8, 128, 32, 128, 512),
    "W3": Case(12, 2, 128, 8, 128, 4096),
    "W4": Case(9, 3, 64, 128, 128, 214),
}


class Inputs(NamedTuple):
    """Queries, keys, values and the ends of their sequences."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    shape: tuple[Tensor, Tensor, int, int]
    scale: float


class Way(NamedTuple):
    """A forward pass, and a backward pass on what it returned."""

    forward: Callable[[Inputs], tuple[Tensor, ...]]
    backward: Callable[[Inputs, tuple[Tensor, ...]], tuple[Tensor, Tensor, Tensor]]


def main() -> int:
    """Try every way on every case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.attention")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Result] = {"importable": importable()}
    print(results["importable"], flush=True)
    for name, make in WAYS.items():
        try:
            way = make()
        except Exception as error:
            results[name] = {"error": _said(error)}
            print(name, results[name], flush=True)
            continue
        for label, case in CASES.items():
            found = _tried(way, case)
            results[f"{name} {label}"] = found
            print(name, label, found, flush=True)
    if options.out:
        write_report(options.out, "benchmarks.kernels.attention", CASES, results)
    return 0


def importable() -> dict[str, str]:
    """Return for each module whether it imports, or why not."""
    found = {}
    for name in (
        "flash_attn_interface", "flash_attn", "flash_attn.cute.interface", "cutlass",
        "vllm.vllm_flash_attn", "vllm.vllm_flash_attn._vllm_fa3_C",
        "vllm.vllm_flash_attn.cute.interface", "vllm.vllm_flash_attn.flash_attn_interface",
    ):  # fmt: skip
        try:
            module = importlib.import_module(name)
            found[name] = str(getattr(module, "__version__", "yes"))
        except Exception as error:
            found[name] = _said(error)
    found["flash_attn_3 ops"] = str([
        name for name in ("fwd", "bwd") if hasattr(torch.ops.flash_attn_3, name)
    ])  # fmt: skip
    found["_vllm_fa3_C ops"] = str([
        name for name in ("fwd", "bwd") if hasattr(torch.ops._vllm_fa3_C, name)
    ])  # fmt: skip
    return found


def inputs_of(case: Case, device: str = "cuda") -> Inputs:
    """Return random 16-bit inputs of a case."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(tokens: int, heads: int) -> Tensor:
        shape = (tokens, heads, case.width)
        return torch.randn(shape, device=device, dtype=torch.bfloat16, generator=generator)

    keys = case.prompt + case.completion
    count = torch.arange(case.rows + 1, dtype=torch.int32, device=device)
    shape = (count * case.completion, count * keys, case.completion, keys)
    q, grad = (noise(case.rows * case.completion, case.heads) for _ in range(2))
    k, v = (noise(case.rows * keys, case.kv_heads) for _ in range(2))
    return Inputs(q, k, v, grad, shape, case.width**-0.5)


def _tried(way: Way, case: Case) -> Result:
    try:
        x = inputs_of(case)
        saved = way.forward(x)
        forward_ms = _ms(lambda: way.forward(x))
        result: Result = {"forward_ms": forward_ms}
        truth = _ATEN.forward(x)
        result["output_error"] = float((saved[0].float() - truth[0].float()).abs().max())
        result["lse_error"] = float((saved[1].flatten() - truth[1].flatten()).abs().max())
        gradients = way.backward(x, saved)
        result["backward_ms"] = _ms(lambda: way.backward(x, saved))
        again = way.backward(x, saved)
        pairs = list(zip(gradients, _ATEN.backward(x, truth), strict=True))
        result["gradient_errors"] = [float((a.float() - b.float()).abs().max()) for a, b in pairs]
        result["repeats"] = all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    except Exception as error:
        return {"error": _said(error)}
    return result


def _ms(run: Callable[[], object]) -> float:
    for _ in range(3):
        run()
    start: Any
    end: Any
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(_REPEATS):
        run()
    end.record()
    torch.cuda.synchronize()
    return round(float(start.elapsed_time(end)) / _REPEATS, 4)


def _aten_forward(x: Inputs) -> tuple[Tensor, ...]:
    return flash_forward((x.q, x.k, x.v), x.shape, scale=x.scale, left=-1)


def _aten_backward(x: Inputs, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return flash_backward(x.grad, (x.q, x.k, x.v, *saved), x.shape, scale=x.scale, left=-1)


_ATEN = Way(_aten_forward, _aten_backward)


def _vllm_fa3() -> Way:
    """Return vLLM's FlashAttention 3 for the forward pass, and FlashAttention 2's backward."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    none = torch.empty(0, dtype=torch.uint64, device="cuda")

    def forward(x: Inputs) -> tuple[Tensor, ...]:
        ends_q, ends_k, most_q, most_k = x.shape
        out, lse, *_ = flash_attn_varlen_func(
            x.q, x.k, x.v, max_seqlen_q=most_q, cu_seqlens_q=ends_q, max_seqlen_k=most_k,
            cu_seqlens_k=ends_k, softmax_scale=x.scale, causal=True, return_softmax_lse=True,
            fa_version=3,
        )  # fmt: skip
        return out, lse, none, none

    def backward(x: Inputs, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        state = _aten_forward(x)[2:] if saved[2].numel() == 0 else saved[2:]
        return _aten_backward(x, (*saved[:2], *state))

    return Way(forward, backward)


def _fa4(path: str) -> Callable[[], Way]:
    def make() -> Way:
        module: Any = importlib.import_module(path)

        def forward(x: Inputs) -> tuple[Tensor, ...]:
            ends_q, ends_k, most_q, most_k = x.shape
            out, lse, *_ = module._flash_attn_fwd(
                x.q, x.k, x.v, softmax_scale=x.scale, causal=True, return_lse=True,
                cu_seqlens_q=ends_q, cu_seqlens_k=ends_k, max_seqlen_q=most_q, max_seqlen_k=most_k,
            )  # fmt: skip
            return out, lse

        def backward(x: Inputs, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
            ends_q, ends_k, most_q, most_k = x.shape
            dq, dk, dv, *_ = module._flash_attn_bwd(
                x.q, x.k, x.v, saved[0], x.grad, saved[1].contiguous(), softmax_scale=x.scale,
                causal=True, cu_seqlens_q=ends_q, cu_seqlens_k=ends_k, max_seqlen_q=most_q,
                max_seqlen_k=most_k, deterministic=True,
            )  # fmt: skip
            return dq, dk, dv

        return Way(forward, backward)

    return make


def _torch_fa3() -> Way:
    """Return torch's operators once FlashAttention 3 has taken their place; must come last."""
    from torch.nn.attention import activate_flash_attention_impl

    activate_flash_attention_impl("FA3")
    return _ATEN


WAYS: dict[str, Callable[[], Way]] = {
    "aten": lambda: _ATEN,
    "vllm fa3 + aten backward": _vllm_fa3,
    "vllm fa4": _fa4("vllm.vllm_flash_attn.cute.interface"),
    "flash_attn fa4": _fa4("flash_attn.cute.interface"),
    "torch fa3": _torch_fa3,
}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


if __name__ == "__main__":
    sys.exit(main())
