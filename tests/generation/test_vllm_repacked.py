"""Weights that vLLM packs for a CPU: rlkit tells vLLM not to, and notices where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from vllm_models import in_worker, save_tiny, tiny_llm

from rlkit.generation.vllm.compat.repacked import describe, repacked_layers
from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.weights import push_weights, weight_views

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
LAYERS = [
    f"model.layers.{n}.{leaf}"
    for n in range(2)
    for leaf in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
]


def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM take this CPU for one with AMX where it packs weights, and only there.

    The packing itself runs on any CPU. vLLM's attention kernels for AMX do not.
    """
    from vllm.model_executor.layers import utils

    def check_cpu_sgl_kernel(n: int, k: int, dtype: torch.dtype) -> bool:
        small = n * k * dtype.itemsize <= 2**20
        return dtype is torch.bfloat16 and small and k % 32 == 0 and n % 16 == 0

    monkeypatch.setattr(utils, "check_cpu_sgl_kernel", check_cpu_sgl_kernel)


def without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm._custom_ops as ops

    monkeypatch.setattr(ops, "_supports_onednn", False)


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let vLLM pack as it does without rlkit, for engines that start in the test."""
    from vllm.model_executor.layers import utils

    from rlkit.generation.vllm.compat import cpu

    cpu.prepare_cpu()
    dispatch: Any = utils.dispatch_cpu_unquantized_gemm
    monkeypatch.setattr(cpu, "prepare_cpu", lambda: None)
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", dispatch.args[0])
    yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weight_is_packed(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU with AMX, and on one where oneDNN would pack: the weights are those of the file."""
    amx(monkeypatch)
    location = save_tiny(tmp_path, "qwen2_tied", dtype)
    with tiny_llm(location, dtype=str(dtype).removeprefix("torch.")) as llm:
        assert in_worker(llm, lambda w: w.rlkit_repacked()) == []
        views = weight_views(llm)
        assert views["model.layers.0.self_attn.q_proj.weight"].shape == (128, 128)
        assert views["model.layers.0.self_attn.q_proj.bias"].dtype is dtype


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("pack", [amx, without_onednn], ids=["amx", "without onednn"])
def test_packed_weights_are_noticed(
    tmp_path: Path, pack: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own packing for AMX empties the layers; the tied head keeps a weight nobody reads."""
    without_onednn(monkeypatch)
    pack(monkeypatch)
    location = save_tiny(tmp_path, "qwen2_tied", torch.bfloat16)
    with tiny_llm(location, dtype="bfloat16", max_loras=0) as llm:
        found = in_worker(llm, lambda w: w.rlkit_repacked())
        if pack is without_onednn:
            assert found == []
            return
        assert set(LAYERS) <= set(found) and len(found) > len(LAYERS)
        norm = weight_views(llm)["model.norm.weight"]
        before = norm.clone()
        with pytest.raises(ValueError, match=f"packed the weights of {len(found)} layers"):
            push_weights(llm, {"model.norm.weight": torch.zeros_like(norm)})
        assert torch.equal(norm, before), "nothing may be written"


class _Layer(nn.Module):
    def __init__(self, product: Any, weight: torch.Tensor) -> None:
        super().__init__()
        self.cpu_linear, self.weight = product, nn.Parameter(weight, requires_grad=False)


def test_a_packed_layer_is_told_from_one_that_reads_its_weight() -> None:
    weight = torch.randn(6, 4)

    def refuses(*_: Any) -> torch.Tensor:
        raise RuntimeError("weight must have 6 rows")

    model = nn.ModuleDict(
        {
            "plain": _Layer(linear, weight),
            "vllm_plain": _Layer(lambda x, w, bias: linear(x, w, bias), weight),
            "copy": _Layer(lambda x, _w, bias: linear(x, weight, bias), weight),
            "empty": _Layer(lambda x, _w, bias: linear(x, weight, bias), torch.empty(0)),
            "refuses": _Layer(refuses, weight),
            "norm": nn.LayerNorm(4),
        }
    )
    assert repacked_layers(model) == ["copy", "empty", "refuses"]
    said = describe(["model.layers.0.mlp.down_proj", "lm_head"])
    assert "of 2 layers for this CPU (model.layers.0.mlp.down_proj first)" in said
    assert describe([]) == ""
