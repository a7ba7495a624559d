"""The signature of every Triton kernel, with "half" for the 16-bit dtype, and its constants."""

from __future__ import annotations

from typing import Any

from triton import language as tl

from rlkit.generation.vllm.accel import (
    burst_kernel,
    draft_kernels,
    lora_kernels,
    lora_norm,
    narrow,
    rotary_kernel,
)
from rlkit.kernels import _kl_triton, _layers_triton, _logps_kernels, _rotary_triton
from rlkit.models import fp8_kernel

_LORA = {"RANK": 16, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_R": 16, "EARLY": True, "launch_pdl": True}
_HEADS = {"ROTATED": True, "QUERIES": 12, "KEYS": 2, "HALF": 64, "BLOCK": 64, "HEADS": 16}
_PLAIN = {"BIAS": True, "SOFTCAP": True}
_NARROW = {"K": 4096, "DEPTH": 1024, "SPLITS": 4, "BIAS": True, "BLOCK_M": 64, "EARLY": True}
_NARROW |= {"launch_pdl": True}
_OF_NARROW = "*half *half {} *fp32 *half *half *fp32 *i32" + 5 * " i32"
Case = tuple[str, Any, str, dict[str, Any]]
CASES: list[Case] = [
    (
        "rotary",
        rotary_kernel._rotary_kernel,
        "*half *half *half *half *half *half *i32 *i64 *half *i64" + 12 * " i32",
        {"HALF": 64, "RANK": 16, "BLOCK_M": 32, "BLOCK_R": 16, "EARLY": True, "launch_pdl": True},
    ),
    (
        "target_logits",
        _logps_kernels.target_logits,
        "*half *half *i64 *fp32 *fp32 i32 i32 i32 fp32 fp32",
        _PLAIN | {"BLOCK_D": 512},
    ),
    ("add_tiles", _logps_kernels.add_tiles, "*fp32 *fp32 i32", {"BLOCK_T": 1024}),
    (
        "directions",
        _logps_kernels.directions,
        "*fp32 *fp32 *fp32 *fp32 *fp32 *half *i64 *half i32 i32 i32 fp32",
        {"SOFTCAP": True, "SHIFTED": True, "BLOCK_D": 1024},
    ),
    (
        "level_tiles",
        _logps_kernels.level_tiles,
        "*half *fp32 *fp32 i32 i32 i32",
        {"TILE": 256, "BLOCK_T": 1024, "BLOCK": 4096},
    ),
    (
        "kl_rows",
        _kl_triton._kl_rows,
        "*fp32 *fp32 *fp32 *fp32 *fp32 *half i32 i32 i32 fp32 fp32",
        _PLAIN | {"REVERSE": True, "GRADIENT": True, "SHIFTED": True, "BLOCK": 4096},
    ),
    (
        "rms_norm_forward",
        _layers_triton.rms_norm_forward,
        "*half *half *half *fp32 i32 fp32",
        {"D": 1536, "BLOCK_D": 2048, "ROWS": 2},
    ),
    (
        "rms_norm_backward",
        _layers_triton.rms_norm_backward,
        "*half *half *half *fp32 *half i32",
        {"D": 1536, "BLOCK_D": 2048, "ROWS": 2},
    ),
    (
        "rms_norm_weight_backward",
        _layers_triton.rms_norm_weight_backward,
        "*half *half *fp32 *fp32 i32",
        {"D": 1536, "BLOCK_D": 128, "ROWS": 32, "TILES": 8},
    ),
    (
        "sum_uses",
        _layers_triton.sum_uses,
        "*half *i64 *i64 *half",
        {"WIDTH": 256, "BLOCK": 256},
    ),
    (
        "swiglu_forward",
        _layers_triton.swiglu_forward,
        "*half *half *half i32",
        {"WIDTH": 8960, "SKIP": 8960, "BLOCK": 2048},
    ),
    (
        "swiglu_backward",
        _layers_triton.swiglu_backward,
        "*half *half *half *half *half i32",
        {"WIDTH": 8960, "SKIP": 8960, "BLOCK": 2048},
    ),
    (
        "rotate",
        _rotary_triton.rotate,
        "*half *half *half *half i32 i32",
        {"SIGN": 1, "HALF": 64, "BLOCK": 64, "HEADS": 16},
    ),
    (
        "split_heads",
        _rotary_triton.split_heads,
        "*half *half *half *half *half *half",
        _HEADS | {"SIGN": 1},
    ),
    (
        "split_heads_backward",
        _rotary_triton.split_heads,
        "*half *half *half *half *half *half",
        _HEADS | {"SIGN": -1},
    ),
    (
        "expand",
        lora_kernels._expand_kernel,
        "*half *half *half *half *i32 i32 i32 i32 i32 i32 i32",
        _LORA,
    ),
    (
        "expand_gated",
        lora_kernels._expand_gated_kernel,
        "*half *half *half *half *i32 i32 i32 i32 i32 i32",
        _LORA,
    ),
    (
        "copy",
        lora_kernels._copy_kernel,
        "*i64 *i32 fp32",
        {"SOURCE": tl.float32, "TARGET": tl.float16, "BLOCK": 1024},
    ),
    (
        "expand_norm",
        lora_norm._kernel,
        "*half *half *half *half *half *i32 *half fp32 i32 i32 i32 i32",
        {"WIDTH": 1536, "RANK": 16, "BLOCK": 2048, "BLOCK_R": 16, "EARLY": True}
        | {"launch_pdl": True},
    ),
    (
        "token_logps_parts",
        burst_kernel._parts_kernel,
        "*half i32 *fp32 *fp32 i32",
        {"BLOCK": 4096},
    ),
    (
        "token_logps",
        burst_kernel._logps_kernel,
        "*half i32 *i64 *fp32 *fp32 *fp32 i32",
        {"PARTS": 64},
    ),
    (
        "draft_match",
        draft_kernels._match_kernel,
        "*i32 i32 *i32 *i32 *i32",
        {"SHORTEST": 2, "LONGEST": 4, "PLACES": 1 << 24, "BLOCK": 1024},
    ),
    (
        "draft_guess",
        draft_kernels._guess_kernel,
        "*i32 i32 *i32 *i32 *i32 *i64 i32 *i32 *i32 i32 i32",
        {"PLACES": 1 << 24, "PARTS": 16, "TOKENS": 4},
    ),
    (
        "draft_keep",
        draft_kernels._keep_kernel,
        "*i64 *i64 i32 *i32 *i32 *i32 i32 *i32 *i32 *i32 *i32 *i32 i32",
        {"TOKENS": 4},
    ),
]
WITH_CODES: list[Case] = [
    (
        f"narrow_e4m3_{block_n}_{block_k}_{num_warps}_{num_stages}",
        narrow._product_kernel,
        _OF_NARROW.format("*u8"),
        _NARROW
        | {"CODES": True, "BLOCK_N": block_n, "BLOCK_K": block_k}
        | {"num_warps": num_warps, "num_stages": num_stages, "STAGES": num_stages, "PACKED": True},
    )
    for block_n, block_k, num_warps, num_stages in narrow.SIZES[:2]  # those of `tiling`
]
"""These read e4m3, from 8.9 on; number of warps and of stages are options of the compiler."""
WITH_CODES += [
    ("values_of_e4m3", fp8_kernel._values_kernel, "*half *u8 *fp32 i32 i64", {"BLOCK": 4096})
]
