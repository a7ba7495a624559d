"""Every Triton kernel compiles for Hopper, down to the machine code, without a GPU.

The interpreter of `test_interpreter.py` is Python: it accepts what the compiler refuses, like the
name of a Python type in a kernel's signature.
"""

from __future__ import annotations

from typing import Any

import pytest
from triton_places import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted functions cannot be compiled", allow_module_level=True)

import triton
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlkit.generation.vllm.accel import burst_kernel, lora_kernels, lora_norm
from rlkit.kernels import _heads_triton, _kl_triton, _layers_triton, _triton_kernels

_HOPPER = GPUTarget("cuda", 90, 32)
_LORA = {"RANK": 16, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_R": 16, "EARLY": True, "launch_pdl": True}
_HEADS = {"ROTATED": True, "QUERIES": 12, "KEYS": 2, "HALF": 64, "BLOCK": 64, "HEADS": 16}
_PLAIN = {"BIAS": True, "SOFTCAP": True}
CASES: list[tuple[str, Any, str, dict[str, Any]]] = [
    (
        "target_logits",
        _triton_kernels.target_logits,
        "*bf16 *bf16 *i64 *fp32 *fp32 i32 i32 i32 fp32 fp32",
        _PLAIN | {"BLOCK_D": 512},
    ),
    (
        "exponentials",
        _triton_kernels.exponentials,
        "tensordesc<bf16[128,64]> tensordesc<bf16[256,64]> tensordesc<bf16[128,256]> *fp32 *i64 "
        "*fp32 *fp32 *fp32 *fp32 *fp32 i32 i32 i32 fp32 fp32",
        _PLAIN
        | {"ENTROPY": True, "STORE": True, "WEIGHTED": False, "BLOCK_M": 128, "BLOCK_N": 256}
        | {"BLOCK_K": 64, "GROUP_M": 8, "PROGRAMS": 132},
    ),
    ("add_tiles", _triton_kernels.add_tiles, "*fp32 *fp32 i32", {"BLOCK_T": 1024}),
    (
        "directions",
        _triton_kernels.directions,
        "*fp32 *fp32 *fp32 *fp32 *bf16 *i64 *bf16 i32 i32 i32 fp32",
        {"SOFTCAP": True, "BLOCK_D": 1024},
    ),
    (
        "kl_rows",
        _kl_triton._kl_rows,
        "*fp32 *fp32 *fp32 *fp32 *bf16 i32 i32 i32 fp32 fp32",
        _PLAIN | {"REVERSE": True, "GRADIENT": True, "BLOCK": 4096},
    ),
    (
        "rms_norm_forward",
        _layers_triton.rms_norm_forward,
        "*bf16 *bf16 *bf16 *fp32 i32 fp32",
        {"D": 1536, "BLOCK_D": 2048, "ROWS": 2},
    ),
    (
        "rms_norm_backward",
        _layers_triton.rms_norm_backward,
        "*bf16 *bf16 *bf16 *fp32 *bf16 i32",
        {"D": 1536, "BLOCK_D": 2048, "ROWS": 2},
    ),
    (
        "rms_norm_weight_backward",
        _layers_triton.rms_norm_weight_backward,
        "*bf16 *bf16 *fp32 *fp32 i32",
        {"D": 1536, "BLOCK_D": 128, "ROWS": 32, "TILES": 8},
    ),
    (
        "sum_uses",
        _layers_triton.sum_uses,
        "*bf16 *i64 *i64 *bf16",
        {"WIDTH": 256, "BLOCK": 256},
    ),
    (
        "swiglu_forward",
        _layers_triton.swiglu_forward,
        "*bf16 *bf16 *bf16 i32",
        {"WIDTH": 8960, "SKIP": 8960, "BLOCK": 2048},
    ),
    (
        "swiglu_backward",
        _layers_triton.swiglu_backward,
        "*bf16 *bf16 *bf16 *bf16 *bf16 i32",
        {"WIDTH": 8960, "SKIP": 8960, "BLOCK": 2048},
    ),
    (
        "rotate",
        _heads_triton.rotate,
        "*bf16 *bf16 *bf16 *bf16 i32 i32",
        {"SIGN": 1, "HALF": 64, "BLOCK": 64, "HEADS": 16},
    ),
    (
        "split_heads",
        _heads_triton.split_heads,
        "*bf16 *bf16 *bf16 *bf16 *bf16 *bf16",
        _HEADS | {"SIGN": 1},
    ),
    (
        "split_heads_backward",
        _heads_triton.split_heads,
        "*bf16 *bf16 *bf16 *bf16 *bf16 *bf16",
        _HEADS | {"SIGN": -1},
    ),
    (
        "expand",
        lora_kernels._expand_kernel,
        "*bf16 *bf16 *bf16 *bf16 *i32 i32 i32 i32 i32 i32 i32",
        _LORA,
    ),
    (
        "expand_gated",
        lora_kernels._expand_gated_kernel,
        "*bf16 *bf16 *bf16 *bf16 *i32 i32 i32 i32 i32 i32",
        _LORA,
    ),
    (
        "copy",
        lora_kernels._copy_kernel,
        "*i64 *i32 fp32",
        {"SOURCE": tl.float32, "TARGET": tl.bfloat16, "BLOCK": 1024},
    ),
    (
        "expand_norm",
        lora_norm._kernel,
        "*bf16 *bf16 *bf16 *bf16 *bf16 *i32 *bf16 fp32 i32 i32 i32 i32",
        {"WIDTH": 1536, "RANK": 16, "BLOCK": 2048, "BLOCK_R": 16, "EARLY": True}
        | {"launch_pdl": True},
    ),
    (
        "token_logps_parts",
        burst_kernel._parts_kernel,
        "*bf16 i32 *fp32 *fp32 i32",
        {"BLOCK": 4096},
    ),
    (
        "token_logps",
        burst_kernel._logps_kernel,
        "*bf16 i32 *i64 *fp32 *fp32 *fp32 i32",
        {"PARTS": 64},
    ),
]


@pytest.mark.parametrize(
    ("kernel", "types", "constants"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_compiles_for_hopper(kernel: Any, types: str, constants: dict[str, Any]) -> None:
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=_HOPPER)
    assert len(compiled.asm["cubin"]) > 1000


def test_every_kernel_is_compiled() -> None:
    """Functions that only other kernels call are compiled with them."""
    modules = (
        lora_kernels,
        lora_norm,
        burst_kernel,
        _heads_triton,
        _kl_triton,
        _layers_triton,
        _triton_kernels,
    )
    launched = {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction)
    }
    called = {"scaled_logits", "_finish_tile", "_load_logits", "_excess", "LN_2"}
    called |= {"_weights", "_inputs", "_outputs", "_updated", "_turned", "_one_of"}
    assert launched - called == {case[1].__name__ for case in CASES}
