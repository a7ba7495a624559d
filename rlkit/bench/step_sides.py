"""The sides of `rlkit.bench.step`, each run in a process of its own; results are plain dicts.

rlkit     `rlkit generator=vllm`: its own command, whose metrics.jsonl says where the time went
trl       TRL's GRPOTrainer with colocated vLLM, micro-batches of `Work.trl_rows` rows
trl_whole the same with all rows in one micro-batch
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

PROMPT_TOKENS = 128
RANK = 16
ALPHA = 32.0
BETA = 0.04
LEARNING_RATE = 1e-4


class Work(NamedTuple):
    """What both sides do."""

    folder: Path
    """The model, `prompts.jsonl` and whatever a side writes."""
    num_prompts: int
    num_samples: int
    new_tokens: int
    warmup: int
    steps: int
    """Measured ones, after the warm-up."""
    trl_rows: int
    """Rows of TRL's micro-batch; gradients are accumulated over the rest."""
    overrides: tuple[str, ...] = ()
    """Further options of rlkit's command line."""

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.num_prompts * self.num_samples

    @property
    def total_steps(self) -> int:
        """Warm-up included."""
        return self.warmup + self.steps


def write_prompts(work: Work) -> None:
    """Different prompts of 128 characters, which the random model's tokenizer makes tokens of."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = []
    for n in range(work.num_prompts * work.total_steps + 1):
        text = "".join(letters[(7 * n + 3 * i + (n * i) % 11) % 26] for i in range(PROMPT_TOKENS))
        number = f"{n:06d}"
        lines.append(json.dumps({"prompt": number + text[len(number) :]}))
    (work.folder / "held_out.jsonl").write_text(lines.pop() + "\n")
    (work.folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def rlkit_overrides(work: Work, run_dir: Path) -> list[str]:
    """What one would write on rlkit's command line for this work."""
    return [
        f"run_dir={run_dir}",
        f"steps={work.total_steps}",
        f"prompts_per_step={work.num_prompts}",
        f"algorithm.group_size={work.num_samples}",
        f"kl.beta={BETA}",
        "correction=sequence_mask",  # TRL's default
        f"optim.learning_rate={LEARNING_RATE}",
        f"model.source={work.folder}",
        f"model.lora.rank={RANK}",
        f"model.lora.alpha={ALPHA}",
        "generator=vllm",
        "+generator.sampling.extra={ignore_eos: true}",
        "task=dataset",
        f"task.path={work.folder / 'prompts.jsonl'}",
        "+task.columns.prompt=prompt",
        "task.style=raw",
        f"task.eval_path={work.folder / 'held_out.jsonl'}",
        f"task.max_prompt_length={PROMPT_TOKENS}",
        f"task.max_completion_length={work.new_tokens}",
        "+reward.functions.noise.fn=rlkit.bench.step_reward:score",
        "evaluation.num_prompts=1",
        "evaluation.samples_per_prompt=1",
        "evaluation.kl=none",
        f"checkpoint.every={work.total_steps}",
        "tracker.console=plain",
        "tracker.report=false",
        "tracker.plot=false",
        *work.overrides,
    ]


def rlkit_side(work: Work) -> dict[str, object]:
    """A run as from the command line; every number is from its own metrics."""
    from hydra import compose, initialize_config_module

    from rlkit.config import load, register
    from rlkit.launch.job import run_job

    run_dir = work.folder / "rlkit-run"
    register()
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        config = load(compose("config", overrides=rlkit_overrides(work, run_dir)))
    code = run_job(config, run_dir=run_dir)
    if code != 0:
        raise RuntimeError(f"rlkit ended with {code}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measured = lines[-work.steps :]
    _check_tokens([m["completions/mean_length"] for m in measured], work)
    plan = json.loads((run_dir / "memory_plan.json").read_text())
    return {
        "seconds": wall_seconds(lines, work.steps),
        "device_peak_bytes": max(m.get("memory/device_peak_bytes", 0.0) for m in measured),
        "allocator_peak_bytes": max(m.get("memory/cuda_peak_bytes", 0.0) for m in measured),
        "plan": plan,
        "kl": measured[-1].get("kl"),
    }


def wall_seconds(lines: Sequence[Mapping[str, float]], steps: int) -> dict[str, list[float]]:
    """Of the last `steps` lines of metrics: the phases, and as `step` all that passed since the
    line before, what is written to files included; `other` is what no phase explains."""
    phases = ["generate", "reward", "score", "update", "sync"]
    measured = lines[-steps:]
    seconds = {phase: [line[f"time/{phase}"] for line in measured] for phase in phases}
    times = [line["time/unix"] for line in lines[-steps - 1 :]]
    seconds["step"] = [end - start for start, end in pairwise(times)]
    explained = [sum(parts) for parts in zip(*(seconds[phase] for phase in phases), strict=True)]
    seconds["other"] = [t - e for t, e in zip(seconds["step"], explained, strict=True)]
    return seconds


def trl_side(work: Work, *, rows: int | None = None) -> dict[str, object]:
    """`GRPOTrainer`; its phases are timed around its own methods, after waiting for the device."""
    from transformers import TrainerCallback

    from rlkit.trainer import memory_metrics

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

    micro = rows or work.trl_rows
    trainer = _trl_trainer(work, micro, Watch())
    print("the trainer is there", flush=True)
    trainer._generate_and_score_completions = clock.timed(
        "score", trainer._generate_and_score_completions
    )
    trainer._generate = clock.timed("generate", trainer._generate)
    engine = trainer.vllm_generation
    engine.sync_weights = clock.timed("sync", engine.sync_weights)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    logged = [line for line in trainer.state.log_history if "completions/mean_length" in line]
    _check_tokens([line["completions/mean_length"] for line in logged], work)
    measured = clock.steps[-work.steps :]
    return {
        "seconds": {key: [step[key] for step in measured] for key in _TRL_PHASES},
        "device_peak_bytes": max(m.get("memory/device_peak_bytes", 0.0) for m in metrics),
        "allocator_peak_bytes": max(m.get("memory/cuda_peak_bytes", 0.0) for m in metrics),
        "rows_per_microbatch": micro,
        "kl": logged[-1].get("kl"),
    }


def _trl_trainer(work: Work, micro: int, watch: Any) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from rlkit.bench.step_reward import noise

    on_cuda = torch.cuda.is_available()
    prompts = (work.folder / "prompts.jsonl").read_text()
    arguments = GRPOConfig(
        output_dir=str(work.folder / f"trl-{micro}"),
        max_steps=work.total_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=work.rows // micro,
        num_generations=work.num_samples,
        max_completion_length=work.new_tokens,
        beta=BETA,
        loss_type="grpo",
        learning_rate=LEARNING_RATE,
        bf16=on_cuda,
        use_cpu=not on_cuda,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=PROMPT_TOKENS + work.new_tokens,
        generation_kwargs={"ignore_eos": True},
        model_init_kwargs={"dtype": "bfloat16" if on_cuda else "float32"},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=str(work.folder),
        reward_funcs=lambda completions, **_: [noise(text) for text in completions],
        args=arguments,
        train_dataset=Dataset.from_list([json.loads(line) for line in prompts.splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(work.folder, padding_side="left"),
        callbacks=[watch],
        peft_config=LoraConfig(
            r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


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


def _check_tokens(lengths: list[float], work: Work) -> None:
    if set(lengths) != {float(work.new_tokens)}:
        raise RuntimeError(f"every completion must have {work.new_tokens} tokens, got {lengths}")


def _trl_whole(work: Work) -> dict[str, object]:
    return trl_side(work, rows=work.rows)


SIDES: dict[str, Callable[[Work], dict[str, object]]] = {
    "rlkit": rlkit_side,
    "trl": trl_side,
    "trl_whole": _trl_whole,
}


def medians(result: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds of each phase."""
    return {phase: statistics.median(values) for phase, values in result["seconds"].items()}
