"""TRL's GRPO on GSM8K, from the same warm start, with rlkit's prompts, reward and sizes.

    python -m experiments.gsm8k.trl_grpo MODEL ADAPTER DATA OUT --seed 0 --steps 40 [--seconds S]

OUT/samples/adapter is what it learnt after all steps. OUT/seconds/adapter is what it had learnt
when the seconds of its steps passed S, if they did; OUT/metrics.jsonl has a line a step.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from experiments.gsm8k.chains import chain_f1, is_derived
from rlkit.models import ModelConfig
from rlkit.models.source import locate
from rlkit.tasks.config import GSM8KConfig
from rlkit.tasks.rows import gsm8k


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Return what the reward `derived` of rlkit's runs pays."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(is_derived(text, gold)) for text, gold in zip(texts, answer, strict=True)]


def chain(completions: list[Any], solution: list[str], **_: Any) -> list[float | None]:
    """Return what the reward `chain` of rlkit's runs pays, before its weight."""
    texts = [completion[0]["content"] for completion in completions]
    return [chain_f1(text, known) for text, known in zip(texts, solution, strict=True)]


class Watch(TrainerCallback):
    """It counts the seconds of the steps, and saves the adapter once when they are spent."""

    def __init__(self, out: Path, seconds: float, limit: float) -> None:
        self.out, self.most = out, seconds
        self.end = time.perf_counter() + limit
        self.spent = self.begun = 0.0
        self.saved = seconds <= 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = self.begun or time.perf_counter()

    def on_step_end(self, _: Any, __: Any, control: Any, *, model: Any = None, **___: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.spent = time.perf_counter() - self.begun
        if not self.saved and self.spent >= self.most:
            model.save_pretrained(self.out / "seconds" / "adapter")
            self.saved = True
        control.should_training_stop |= time.perf_counter() > self.end

    def on_log(self, _: Any, state: Any, *__: Any, logs: Any = None, **___: Any) -> None:
        with (self.out / "metrics.jsonl").open("a") as lines:
            kept = {k: v for k, v in logs.items() if isinstance(v, (int, float))}
            lines.write(
                json.dumps(kept | {"seconds": self.spent, "step": state.global_step}) + "\n"
            )


def main(options: argparse.Namespace) -> None:
    """Train."""
    location = locate(ModelConfig(source=options.model), say=print)
    split = gsm8k(GSM8KConfig(path=options.data, eval_size=1)).train
    rows = [split.get(i) for i in range(split.size or 0)]
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": m.role, "content": m.content} for m in row.prompt],
                "answer": row.columns["answer"],
                "solution": row.columns["solution"],
            }
            for row in rows
        ]
    )
    options.out.mkdir(parents=True)
    base = AutoModelForCausalLM.from_pretrained(
        location, dtype=torch.bfloat16 if torch.cuda.is_available() else None
    )
    model = PeftModel.from_pretrained(base, options.adapter, is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(location, padding_side="left")
    watch = Watch(options.out, options.seconds, options.limit)
    trainer = GRPOTrainer(
        model=model,
        args=_arguments(options),
        processing_class=tokenizer,
        train_dataset=data,
        reward_funcs=[reward, chain],
        callbacks=[watch],
    )
    watch.begun = 0.0
    trainer.train()
    trainer.model.save_pretrained(options.out / "samples" / "adapter")


def _arguments(options: argparse.Namespace) -> GRPOConfig:
    rows, on_cuda = options.prompts * options.group, torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(options.out / "trl"),
        seed=options.seed,
        max_steps=options.steps,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=rows // options.micro,
        num_generations=options.group,
        max_completion_length=options.tokens,
        temperature=1.0,
        beta=0.0,
        reward_weights=[1.0, options.chain],
        loss_type=options.loss,
        scale_rewards="none" if options.loss == "dr_grpo" else "group",
        learning_rate=options.rate,
        lr_scheduler_type="constant",
        warmup_steps=2,
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=on_cuda,
        use_cpu=not on_cuda,
        gradient_checkpointing=False,
        use_vllm=on_cuda,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=options.share,
        vllm_max_model_length=768,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "adapter", "data"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="save once after so many; 0 = no"
    )
    parser.add_argument("--limit", type=float, default=1e9, help="end after so many seconds")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--chain", type=float, default=0.5, help="weight of the reward `chain`")
    parser.add_argument("--loss", default="dr_grpo")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.06)
    return parser.parse_args()


if __name__ == "__main__":
    main(_options())
