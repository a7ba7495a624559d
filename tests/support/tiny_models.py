"""Random models of every supported family, small enough for float64 on one core, and batches.

Every tiny model of the tests takes its shape from `tiny_config`, which tests change by option.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from rlkit.types import RolloutBatch

VOCAB = 67

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
_HEAD_DIM: dict[str, Any] = {"head_dim": 8}

# What is particular to a family: tied or untied heads, scales, caps, biases, windows.
_FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {**_HEAD_DIM, "sliding_window": None, "tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": _HEAD_DIM,
    "gemma": _HEAD_DIM,
    "gemma2": {
        **_HEAD_DIM,
        "sliding_window": 64,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {
        **_HEAD_DIM,
        "sliding_window": 64,
        "final_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": None},
    "granite": {"logits_scaling": 2.5, "embedding_multiplier": 1.5, "residual_multiplier": 0.7},
    "cohere": {"logit_scale": 0.25, "use_qk_norm": False},
    "smollm3": {},
}


NO_SPECIAL_TOKENS: dict[str, Any] = {
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def tiny_config(family: str, **options: object) -> Any:
    """The shape of a tiny model of `family`; `options` override it."""
    return CONFIG_MAPPING[family](**{**_SIZES, **_FAMILY_OPTIONS[family], **options})


def tiny_model(
    family: str, *, dtype: torch.dtype = torch.float64, **options: object
) -> PreTrainedModel:
    """A frozen random model of `family`; `options` override its config."""
    config = tiny_config(family, **options)
    implementation = "eager" if config.to_dict().get("attn_logit_softcapping") else "sdpa"
    torch.manual_seed(hash_of(family))
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, attn_implementation=implementation)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    torch.nn.Module.to(model, dtype)
    model.requires_grad_(False).train(False)
    return model


def hash_of(name: str) -> int:
    """A small seed that depends on `name` alone."""
    return sum(name.encode())


def make_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, pad: int = 0
) -> RolloutBatch:
    """A batch of these token ids; the columns that scoring does not read hold zeros."""
    num_rows = len(prompts)
    prompt_ids, prompt_mask = _pad(prompts, pad, left=True)
    completion_ids, completion_mask = _pad(completions, pad, left=False)
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        sampling_logps=torch.zeros(completion_ids.shape),
        rewards=torch.zeros(num_rows),
        reward_components=torch.zeros(num_rows, 1),
        reward_weights=torch.ones(1),
        group_ids=torch.arange(num_rows),
        truncated=torch.zeros(num_rows, dtype=torch.bool),
        policy_version=torch.zeros(num_rows, dtype=torch.long),
    )


def random_ids(length: int, *, seed: int) -> list[int]:
    """`length` ordinary token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


def grouped_batch(
    *, prefix: int, rests: Sequence[int], group_sizes: Sequence[int], completions: Sequence[int]
) -> RolloutBatch:
    """Prompts = a common prefix + a rest of each length, repeated group_sizes times."""
    common = random_ids(prefix, seed=0)
    rows = [
        common + random_ids(rest, seed=10 + i)
        for i, (rest, size) in enumerate(zip(rests, group_sizes, strict=True))
        for _ in range(size)
    ]
    return make_batch(rows, [random_ids(n, seed=50 + i) for i, n in enumerate(completions)])


def oracle_logps(model: PreTrainedModel, batch: RolloutBatch, *, temperature: float) -> Tensor:
    """One row at a time, without padding, from transformers' own logits; differentiable."""
    rows = []
    for i in range(len(batch)):
        prompt = batch.prompt_ids[i][batch.prompt_mask[i]]
        completion = batch.completion_ids[i][batch.completion_mask[i]]
        ids = torch.cat([prompt, completion])
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        logps = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : len(ids) - 1]
        selected = logps.gather(1, completion[:, None]).squeeze(1)
        padding = selected.new_zeros(batch.completion_ids.shape[1] - len(completion))
        rows.append(torch.cat([selected, padding]))
    return torch.stack(rows)


def _pad(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        fill, kept = [pad] * (width - len(row)), [True] * len(row)
        blank = [False] * len(fill)
        ids.append(fill + list(row) if left else list(row) + fill)
        mask.append(blank + kept if left else kept + blank)
    return torch.tensor(ids), torch.tensor(mask)
