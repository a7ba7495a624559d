"""The sides of `benchmarks.step` that are TRL's GRPOTrainer, with vLLM in the process.

trl       as TRL comes, micro-batches of `Work.trl_rows` rows
trl_whole the same with all rows in one micro-batch
unsloth   Unsloth's model and its version of the trainer, vLLM on the same weights (fast_inference);
          the options that Unsloth sets otherwise are TRL's
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.random_model import LINEAR_LAYERS
from benchmarks.step_sides import (
    ALPHA,
    BETA,
    LEARNING_RATE,
    RANK,
    Work,
    check_tokens,
)

_VLLM_SHARE = 0.3
"""The share of the device's memory for vLLM."""


def trl_side(work: Work, *, rows: int | None = None) -> dict[str, object]:
    """`GRPOTrainer` with vLLM as its own, and peft's LoRA."""
    micro = rows or work.trl_rows
    return _trainer_seconds(work, micro, lambda watch: _trl_trainer(work, micro, watch))


def _trainer_seconds(
    work: Work, micro: int, build: Callable[[Any], Any], *, sync: str = "sync_weights"
) -> dict[str, object]:
    """Train what `build` makes with one callback. Its phases are timed around its own methods,
    after waiting for the device; `sync` is what its vLLM's weights are updated with."""
    from transformers import TrainerCallback

    from rlkit.training.metrics import memory_metrics

    clock = Clock()
    metrics: list[Mapping[str, float]] = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.next()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.next()
            metrics.append(memory_metrics(device))
            print(f"step {len(metrics)}: {clock.steps[-1]['step']:.2f} s", flush=True)

    trainer = build(Watch())
    print("the trainer is there", flush=True)
    trainer._generate_and_score_completions = clock.timed(
        "score", trainer._generate_and_score_completions
    )
    trainer._generate = clock.timed("generate", trainer._generate)
    engine = trainer.vllm_generation
    if not hasattr(engine, sync):
        raise RuntimeError(f"{type(engine)} has no {sync}: its vLLM has weights of its own")
    setattr(engine, sync, clock.timed("sync", getattr(engine, sync)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    logged = [line for line in trainer.state.log_history if "completions/mean_length" in line]
    lengths = [line["completions/mean_length"] for line in logged]
    check_tokens(lengths, work)
    measured = clock.steps[-work.steps :]
    return {
        "seconds": {key: [step[key] for step in measured] for key in _TRL_PHASES},
        "device_peak_bytes": max(m.get("memory/device_peak_bytes", 0.0) for m in metrics),
        "allocator_peak_bytes": max(m.get("memory/cuda_peak_bytes", 0.0) for m in metrics),
        "mean_tokens": lengths[-work.steps :],
        "rows_per_microbatch": micro,
        "kl": logged[-1].get("kl"),
    }


def _trl_trainer(work: Work, micro: int, watch: Any) -> Any:
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return GRPOTrainer(
        model=str(work.folder),
        args=GRPOConfig(**_trainer_arguments(work, micro), model_init_kwargs={"dtype": dtype}),
        processing_class=AutoTokenizer.from_pretrained(work.folder, padding_side="left"),
        callbacks=[watch],
        quantization_config=_nf4() if work.four_bit else None,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        **_trainer_data(work),
    )


def _nf4() -> Any:
    """Return the quantisation of QLoRA, as rlkit's `memory=qlora` has it."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _trainer_arguments(work: Work, micro: int) -> dict[str, Any]:
    """Return the arguments of a `GRPOConfig`; what is not here is as by default in TRL."""
    on_cuda = torch.cuda.is_available()
    return {
        "output_dir": str(work.folder / f"trl-{micro}"),
        "max_steps": work.total_steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": work.rows // micro // work.processes,
        "num_generations": work.num_samples,
        "max_completion_length": work.new_tokens,
        "beta": BETA,
        "loss_type": "grpo",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",  # as rlkit's; TRL's default falls to 0
        "bf16": on_cuda,
        "use_cpu": not on_cuda,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": _VLLM_SHARE,
        "vllm_max_model_length": work.prompt_tokens + work.new_tokens,
        "generation_kwargs": {} if work.ends_itself else {"ignore_eos": True},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _trainer_data(work: Work) -> dict[str, Any]:
    """The prompts and the reward, as a `GRPOTrainer` takes them."""
    from datasets import Dataset

    from benchmarks.step_reward import noise

    prompts = (work.folder / "prompts.jsonl").read_text().splitlines()
    return {
        "train_dataset": Dataset.from_list([json.loads(line) for line in prompts]),
        "reward_funcs": lambda completions, **_: [noise(text) for text in completions],
    }


_TRL_PHASES = ("generate", "score", "update", "sync", "step")


class Clock:
    """Seconds of each phase of each step; a phase inside another is not counted in it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._start = 0.0
        self._spent: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def next(self) -> None:
        """A step ends; what no phase explains is its update."""
        now = self._now()
        if self._start:
            total = now - self._start
            rest = total - sum(self._spent.values())
            self.steps.append({**self._spent, "update": rest, "step": total})
        self._start, self._spent = now, defaultdict(float)

    def timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method`, booked on `phase`."""

        def run(*arguments: Any, **options: Any) -> Any:
            with self._phase(phase):
                return method(*arguments, **options)

        return run

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        start = self._now()
        self._inside.append(0.0)
        yield
        seconds = self._now() - start
        self._spent[phase] += seconds - self._inside.pop()
        if self._inside:
            self._inside[-1] += seconds

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def trl_whole_side(work: Work) -> dict[str, object]:
    """`trl_side` with all rows in one micro-batch."""
    return trl_side(work, rows=work.rows)


def unsloth_side(work: Work) -> dict[str, object]:
    """Unsloth's trainer; `import unsloth` must come before transformers and TRL."""
    micro = work.trl_rows
    with chdir(work.folder):  # it writes the adapter's configuration where it is
        result = _trainer_seconds(
            work,
            micro,
            lambda watch: _unsloth_trainer(work, micro, watch),
            sync="_unsloth_load_lora",
        )
    return result | {"versions": _unsloth_versions()}


def _unsloth_versions() -> dict[str, str]:
    """Return the versions of what Unsloth's speed depends on and may be absent."""
    found = {}
    for package in ("unsloth", "unsloth_zoo", "trl", "xformers", "flash_attn"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _unsloth_trainer(work: Work, micro: int, watch: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer  # Unsloth's, since its import was the first
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(work.folder),
        max_seq_length=work.prompt_tokens + work.new_tokens,
        dtype=torch.bfloat16,
        load_in_4bit=work.four_bit,
        fast_inference=True,
        gpu_memory_utilization=_VLLM_SHARE,
        max_lora_rank=RANK,
    )
    tokenizer.padding_side = "left"
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=int(ALPHA), target_modules=list(LINEAR_LAYERS)
    )
    options = _trainer_arguments(work, micro) | _TRL_DEFAULTS
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(**options),
        processing_class=tokenizer,
        callbacks=[watch],
        **_trainer_data(work),
    )


_TRL_DEFAULTS = {
    "vllm_importance_sampling_correction": True,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "torch_empty_cache_steps": None,
}
"""Unsloth's defaults are others here, and the work would differ."""
