"""The side of `benchmarks.episodes` that is TRL's GRPOTrainer with a tool.

A random model writes no calls, so TRL's parser is replaced by one that finds a call in each turn.
All else is TRL's: the calls, the text between turns, the second generation, masks and update.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.random_model import LINEAR_LAYERS
from benchmarks.step_sides import ALPHA, PROMPT_TOKENS, RANK, Work
from benchmarks.step_trl import _trainer_arguments, _trainer_seconds

_ROWS = 8
"""Rows of a micro-batch, as in `benchmarks.step`."""
_TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content or '' }}\
{% for call in message.tool_calls or [] %}\
{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}\
{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
"""TRL refuses a template that leaves calls out, though none of them is rendered here."""


def reply() -> str:
    """Say 32 letters."""
    return "abcdefghijklmnopqrstuvwxyzabcdef"


def trl_tools_side(work: Work, reply_tokens: int) -> dict[str, object]:
    """Train with two turns of half of the tokens each, and a reply of the tool in between.

    Args:
        work: The sizes.
        reply_tokens: Tokens that the reply may take with the template's text around it.

    Returns:
        The seconds of each phase and the peaks of memory.
    """
    micro = min(_ROWS, work.rows)
    return _trainer_seconds(work, micro, lambda watch: _trainer(work, micro, reply_tokens, watch))


def _trainer(work: Work, micro: int, reply_tokens: int, watch: Any) -> Any:
    import trl.trainer.grpo_trainer as trainer_module
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.step_reward import noise

    trainer_module.parse_response = _always_a_call
    tokenizer = AutoTokenizer.from_pretrained(work.folder, padding_side="left")
    tokenizer.chat_template = _TEMPLATE
    tokenizer.response_schema = {}  # TRL looks for one of its own otherwise, by the template
    lines = (work.folder / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    options = _trainer_arguments(work, micro) | {
        "max_completion_length": work.new_tokens + reply_tokens,
        "vllm_max_model_length": PROMPT_TOKENS + 64 + work.new_tokens + 2 * reply_tokens,
        "generation_kwargs": {"ignore_eos": True, "max_tokens": work.new_tokens // 2},
        "max_tool_calling_iterations": 1,
    }
    return GRPOTrainer(
        model=str(work.folder),
        args=GRPOConfig(
            **options,
            model_init_kwargs={"dtype": "bfloat16" if torch.cuda.is_available() else "float32"},
        ),
        processing_class=tokenizer,
        callbacks=[watch],
        tools=[reply],
        peft_config=LoraConfig(
            r=RANK, lora_alpha=int(ALPHA), target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM"
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": text}]} for text in prompts]
        ),
        reward_funcs=lambda completions, **_: [noise(str(turns)) for turns in completions],
    )


def _always_a_call(tokenizer: Any, ids: list[int], **_: Any) -> dict[str, Any]:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    call = {"type": "function", "function": {"name": "reply", "arguments": {}}}
    return {"role": "assistant", "content": text, "tool_calls": [call]}
