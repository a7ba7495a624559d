"""The cache argument by both of its names, and what transformers must still do for rlkit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_model
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from rlkit.models import fused
from rlkit.models.compat import (
    Known,
    attention_function,
    attention_named,
    cache_of,
    known_kind,
    last_products,
    with_cache,
)
from rlkit.models.fused import fuse
from rlkit.models.recompute import Trained, recomputed


class Old(nn.Module):
    def forward(self, x: Tensor, past_key_values: object = None) -> object:
        return past_key_values


class New(nn.Module):
    def forward(self, x: Tensor, cache: object = None) -> object:
        return cache


@pytest.mark.parametrize("module", [Old(), New()], ids=["old", "new"])
@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_by_either_name_reaches_modules_of_both_kinds(module: nn.Module, name: str) -> None:
    cache = object()
    given: dict[str, Any] = {"other": 1, name: cache}
    assert cache_of(given) is cache
    options = with_cache(module, given, cache_of(given))
    assert options.pop("other") == 1
    assert module(torch.zeros(1), **options) is cache


def test_no_cache_leaves_no_name_and_two_caches_are_refused() -> None:
    assert cache_of({"cache": None, "past_key_values": None}) is None
    assert with_cache(New(), {"cache": None, "past_key_values": None, "a": 2}, None) == {"a": 2}
    same = object()
    assert cache_of({"cache": same, "past_key_values": same}) is same
    with pytest.raises(ValueError, match="must get one cache"):
        cache_of({"cache": object(), "past_key_values": object()})


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@pytest.mark.parametrize("implementation", ["sdpa", "rlkit_like_sdpa"])
def test_a_fused_attention_fills_the_cache_it_is_given(
    name: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where inputs suit the kernels and attention is packed: those would forget the cache."""
    AttentionInterface.register("rlkit_like_sdpa", attention_function("sdpa"))
    monkeypatch.setattr(fused, "takes", lambda x: True)
    model = tiny_model("llama")
    layer: Any = model.get_submodule("model.layers.0.self_attn")
    states = torch.randn(1, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tables = model.model.rotary_emb(states, torch.arange(6)[None])
    whole, _ = layer(states, tables, None)  # causal, in one go
    fuse(model)
    cache = DynamicCache()
    outputs = []
    with warnings.catch_warnings(), attention_named(model.config, implementation):
        warnings.simplefilter("error")
        for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
            some = (tables[0][:, part], tables[1][:, part])
            outputs.append(layer(states[:, part], some, None, **{name: cache})[0])
    assert cache.get_seq_length() == 6
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fusing", [False, True])
def test_a_pass_with_a_cache_warns_of_nothing(fusing: bool) -> None:
    model = tiny_model("llama")
    ids = torch.tensor([random_ids(9, seed=1)])
    whole = model(input_ids=ids, use_cache=False).logits
    if fusing:
        fuse(model)
    cache, parts = DynamicCache(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start, stop in ((0, 5), (5, 6), (6, 9)):
            given = with_cache(model, {"use_cache": True}, cache)
            parts.append(model(input_ids=ids[:, start:stop], **given).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)


def test_layers_are_known_by_name_attributes_and_arguments() -> None:
    model = tiny_model("qwen3")
    kinds = [known_kind(module) for module in model.modules()]
    assert kinds.count(Known.attention) == 2
    assert kinds.count(Known.mlp) == 2
    assert kinds.count(Known.norm) == 2 * 4 + 1
    products = {f"model.layers.{n}.mlp.down_proj" for n in (0, 1)}
    assert last_products(model) == products

    mlp = model.get_submodule("model.layers.0.mlp")
    del mlp.up_proj
    assert known_kind(mlp) is None  # its class has changed: transformers' own code

    class Qwen3Attention(nn.Module):
        q_proj = k_proj = v_proj = o_proj = head_dim = scaling = config = 1

        def forward(self, hidden_states: Tensor, attention_sinks: Tensor) -> None: ...

    assert known_kind(Qwen3Attention()) is None  # an argument that rlkit does not know


def test_every_decoder_layer_runs_twice_inside_recomputed() -> None:
    model: PreTrainedModel = tiny_model("llama")

    class NothingTrains:
        def trained_in(self, layer: str) -> Trained:
            raise LookupError(layer)

    with recomputed(model, NothingTrains()), pytest.raises(LookupError, match=r"model\.layers\.0"):
        model(input_ids=torch.tensor([random_ids(3, seed=1)]), use_cache=False)
    model(input_ids=torch.tensor([random_ids(3, seed=1)]), use_cache=False)
