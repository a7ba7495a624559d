"""Every Triton kernel compiles to machine code for every target, without a GPU.

The interpreter of `test_interpreter.py` is Python: it accepts what the compiler refuses, like the
name of a Python type in a kernel's signature. `python tests/kernels/test_compile.py` prints the
table of docs/kernels.md.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from triton_places import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted functions cannot be compiled", allow_module_level=True)

import triton
from kernel_signatures import CASES, WITH_CODES
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlkit.generation.vllm.accel import (
    burst_kernel,
    draft_kernels,
    lora_kernels,
    lora_norm,
    narrow,
    rotary_kernel,
)
from rlkit.kernels import _kl_triton, _layers_triton, _logps_kernels, _rotary_triton
from rlkit.kernels.tilings import Tiling, forced, tiling_of
from rlkit.models import fp8_kernel

SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory that one program may have, from NVIDIA's table of compute capabilities."""
MATMULS = {80: "mma.sync", 86: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}
MATMULS |= {120: "mma.sync"}
FUSED = tuple(MATMULS)
OPTIONS: dict[str, dict[str, bool]] = {
    "forward": {},
    "stored": {"STORE": True},
    "all": {"STORE": True, "ENTROPY": True, "SOFTCAP": True, "BIAS": True},
}
MEASURED = (3, 6)
"""Triton of the CUDA constraints, with which the kernels were timed."""
MOST_SPILLS = {"forward": 16, "stored": 16, "all": 1024}
"""Bytes a thread; no model has a softcap, a bias and wants the entropy while it trains."""
MOST_SPILLS_OF_NEWER = {"forward": 128, "stored": 256, "all": 2048}
"""Triton 3.7.1 and 3.9.0 spill more on 9.0 and 10.0; docs/kernels.md has what each does."""


class Compiled(NamedTuple):
    ptx: str
    shared_kib: float
    registers: int
    spills: int
    """Bytes of local memory a thread."""


def build(
    kernel: Any,
    types: str,
    constants: dict[str, Any],
    target: int,
    *,
    options: dict[str, Any] | None = None,
    aligned: bool = False,
    folder: Path,
) -> Compiled:
    """Machine code of `kernel`; `aligned` says that pointers and sizes are multiples of 16."""
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    wide = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if aligned and (signature[name].startswith("*") or signature[name] == "i32")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=wide)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return Compiled(made.asm["ptx"], made.metadata.shared / 1024, *_usage(made, folder))


def _usage(made: Any, folder: Path) -> tuple[int, int]:
    """Registers and bytes of local memory, from the tool that lies beside Triton's assembler."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = folder / "kernel.cubin"
    path.write_bytes(made.asm["cubin"])
    printed = subprocess.run(
        [str(tool), "-res-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    assert found is not None, printed
    return int(found[1]), int(found[2])


def build_exponentials(
    tiling: Tiling, half: str, target: int, chosen: dict[str, bool], folder: Path
) -> Compiled:
    blocks = [(tiling.block_m, tiling.block_k), (tiling.block_n, tiling.block_k)]
    blocks.append((tiling.block_m, tiling.block_n))
    matrices = [
        f"tensordesc<{half}[{m},{n}]>" if tiling.descriptors else f"*{half}" for m, n in blocks
    ]
    types = " ".join([*matrices, "*fp32 *i64", *["*fp32"] * 6, *["i32"] * 6, "fp32 fp32"])
    off = dict.fromkeys(["BIAS", "SOFTCAP", "ENTROPY", "STORE", "WEIGHTED"], False)
    constants: dict[str, Any] = off | chosen | {"DESCRIPTORS": tiling.descriptors, "EVEN_K": True}
    constants |= {"SHIFTED": constants["STORE"] and half == "fp16", "FLATTEN": tiling.flatten}
    constants |= {"BLOCK_M": tiling.block_m, "BLOCK_N": tiling.block_n, "BLOCK_K": tiling.block_k}
    constants |= {"GROUP_M": tiling.group_m, "PROGRAMS": 132}
    options: dict[str, Any] = {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}
    options |= {} if tiling.arch is None else {"arch": tiling.arch}
    return build(
        _logps_kernels.exponentials, types, constants, target,
        options=options, aligned=True, folder=folder,
    )  # fmt: skip


def _own(target: int) -> Tiling:
    tiling = tiling_of(divmod(target, 10))
    assert tiling is not None
    return tiling


@pytest.mark.parametrize("chosen", OPTIONS)
@pytest.mark.parametrize("half", ["bf16", "fp16"])
@pytest.mark.parametrize("target", FUSED)
def test_log_probs_fit_every_card(target: int, half: str, chosen: str, tmp_path: Path) -> None:
    made = build_exponentials(_own(target), half, target, OPTIONS[chosen], tmp_path)
    assert made.shared_kib <= SHARED_KIB[target]
    is_measured = tuple(map(int, triton.__version__.split(".")[:2])) == MEASURED
    assert made.spills <= (MOST_SPILLS if is_measured else MOST_SPILLS_OF_NEWER)[chosen]
    assert MATMULS[target] in made.ptx
    assert ("cp.async.bulk.tensor" in made.ptx) == (target >= 90)
    if target < 90:
        assert "cp.async.cg.shared.global" in made.ptx and "0x10" in made.ptx  # 16 bytes each


@pytest.mark.parametrize("target", [80, 89, 120])
def test_older_instructions_are_forced_on_hopper(target: int, tmp_path: Path) -> None:
    made = build_exponentials(forced(divmod(target, 10)), "bf16", 90, {"STORE": True}, tmp_path)
    assert "mma.sync" in made.ptx and "wgmma" not in made.ptx
    assert ".target sm_90a" in made.ptx
    assert made.shared_kib <= SHARED_KIB[target]


@pytest.mark.parametrize("target", SHARED_KIB)
@pytest.mark.parametrize(
    ("kernel", "types", "constants"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_compiles_for_every_target(
    kernel: Any, types: str, constants: dict[str, Any], target: int, tmp_path: Path
) -> None:
    """In bfloat16, and on 7.5, which has none, in float16.

    Triton multiplies without tensor cores on 7.5, so the adapters' kernels spill a little there.
    """
    half = "fp16" if target < 80 else "bf16"
    if "EARLY" in constants:  # programs that start before the last kernel has ended: Hopper's
        constants = constants | {"EARLY": target >= 90, "launch_pdl": target >= 90}
    made = build(
        kernel, types.replace("half", half), constants, target, aligned=True, folder=tmp_path
    )
    assert made.shared_kib <= SHARED_KIB[target]
    assert made.spills <= (128 if target < 80 else 16)


@pytest.mark.parametrize("target", FUSED)
@pytest.mark.parametrize(
    ("kernel", "types", "constants"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_compiles_in_float16(
    kernel: Any, types: str, constants: dict[str, Any], target: int, tmp_path: Path
) -> None:
    if "EARLY" in constants:
        constants = constants | {"EARLY": target >= 90, "launch_pdl": target >= 90}
    made = build(
        kernel, types.replace("half", "fp16"), constants, target, aligned=True, folder=tmp_path
    )
    assert made.shared_kib <= SHARED_KIB[target]
    assert made.spills <= 16


@pytest.mark.parametrize(
    ("target", "half"), [(89, "bf16"), (90, "bf16"), (90, "fp16"), (100, "bf16"), (120, "bf16")]
)
@pytest.mark.parametrize(
    ("kernel", "types", "constants"), [c[1:] for c in WITH_CODES], ids=[c[0] for c in WITH_CODES]
)
def test_codes_of_8_bits_compile(
    kernel: Any, types: str, constants: dict[str, Any], target: int, half: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        k: constants[k] for k in ("num_warps", "num_stages") if k in constants
    }
    constants = {k: v for k, v in constants.items() if k not in options}
    if "EARLY" in constants:
        constants |= {"EARLY": target >= 90, "launch_pdl": target >= 90, "PACKED": half == "bf16"}
    made = build(
        kernel, types.replace("half", half), constants, target,
        options=options, aligned=True, folder=tmp_path,
    )  # fmt: skip
    assert made.shared_kib <= SHARED_KIB[target]
    assert made.spills <= 16


def test_every_kernel_is_compiled() -> None:
    """Functions that only other kernels call are compiled with them."""
    modules = (
        lora_kernels,
        lora_norm,
        rotary_kernel,
        burst_kernel,
        draft_kernels,
        _kl_triton,
        _layers_triton,
        _logps_kernels,
        _rotary_triton,
        narrow,
        fp8_kernel,
    )
    launched = {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction)
    }
    called = {"scaled_logits", "_finish_tile", "_load_tile", "_store_tile"}
    called |= {"_load_logits", "_excess", "_log_sums", "_terms", "_exponent", "LN_2"}
    called |= {"_weights", "_inputs", "_outputs", "_updated", "_turned", "_one_of"}
    called |= {"_dot", "_numbers"}
    compiled = {case[1].__name__ for case in [*CASES, *WITH_CODES]}
    assert launched - called == compiled | {"exponentials"}


def _table() -> None:
    """Prints the rows of docs/kernels.md."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        for target in FUSED:
            tiling, cells = _own(target), []
            for half in ("bf16", "fp16"):
                for chosen in OPTIONS.values():
                    made = build_exponentials(tiling, half, target, chosen, Path(name))
                    cells.append(f"{made.shared_kib:.0f}, {made.registers}, {made.spills}")
            blocks = f"{tiling.block_m}x{tiling.block_n}x{tiling.block_k}"
            loads = "descriptors" if tiling.descriptors else "pointers"
            print(
                f"| {target / 10} | {loads}, {blocks}, {tiling.num_stages} | {' | '.join(cells)} |"
            )


if __name__ == "__main__":
    _table()
