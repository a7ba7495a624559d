"""The sides of `benchmarks.step`, and rlkit's: `rlkit generator=vllm`, its own command,
whose metrics.jsonl says where the time went. Results are plain dicts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

PROMPT_TOKENS = 128
RANK = 16
ALPHA = 32.0
BETA = 0.04
LEARNING_RATE = 1e-4


class Work(NamedTuple):
    """The work of all sides."""

    folder: Path
    """The model, `prompts.jsonl` and whatever a side writes."""
    num_prompts: int
    num_samples: int
    new_tokens: int
    warmup: int
    steps: int
    """Measured ones, after the warm-up."""
    trl_rows: int
    """Rows of TRL's and Unsloth's micro-batch; gradients are accumulated over the rest."""
    overrides: tuple[str, ...] = ()
    """Further options of rlkit's command line."""
    four_bit: bool = False
    """QLoRA on a base in NF4; rlkit's option for it is among the overrides."""
    prompt_tokens: int = PROMPT_TOKENS
    """Most tokens of a prompt."""
    ends_itself: bool = False
    """Completions end at the model's own stop token; otherwise all have `new_tokens` tokens."""
    run_name: str = "rlkit-run"
    """The folder of rlkit's run, in `folder`."""
    processes: int = 1
    """Processes of TRL that share the rows, each on a device of its own."""

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
    """Return what one would write on rlkit's command line for this work."""
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
        *([] if work.ends_itself else ["+generator.sampling.extra={ignore_eos: true}"]),
        "task=dataset",
        f"task.path={work.folder / 'prompts.jsonl'}",
        "+task.columns.prompt=prompt",
        "task.style=raw",
        f"task.eval_path={work.folder / 'held_out.jsonl'}",
        f"task.max_prompt_length={work.prompt_tokens}",
        f"task.max_completion_length={work.new_tokens}",
        "+reward.functions.noise.fn=benchmarks.step_reward:score",
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

    from rlkit.config import load
    from rlkit.launch.composing import register
    from rlkit.launch.job import run_job

    run_dir = work.folder / work.run_name
    register()
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        config = load(compose("config", overrides=rlkit_overrides(work, run_dir)))
    code = run_job(config, run_dir=run_dir)
    if code != 0:
        raise RuntimeError(f"rlkit ended with {code}")
    return result_of(work, run_dir)


def rlkit_fp8_side(work: Work) -> dict[str, object]:
    """The same run on a base in 8 bits."""
    overrides = (*work.overrides, "memory.quant.kind=fp8")
    return rlkit_side(work._replace(overrides=overrides, run_name=f"{work.run_name}-fp8"))


def result_of(work: Work, run_dir: Path) -> dict[str, object]:
    """Return the numbers of a finished run of rlkit, all of them from its own metrics."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measured = lines[-work.steps :]
    lengths = [m["completions/mean_length"] for m in measured]
    check_tokens(lengths, work)
    plan = json.loads((run_dir / "memory_plan.json").read_text())
    return {
        "seconds": wall_seconds(lines, work.steps),
        "device_peak_bytes": max(m.get("memory/device_peak_bytes", 0.0) for m in measured),
        "allocator_peak_bytes": max(m.get("memory/cuda_peak_bytes", 0.0) for m in measured),
        "mean_tokens": lengths,
        "plan": plan,
        "kl": measured[-1].get("kl"),
        "mismatch": {k: v for k, v in measured[-1].items() if k.startswith("sampling/")},
    }


def wall_seconds(lines: Sequence[Mapping[str, float]], steps: int) -> dict[str, list[float]]:
    """Return the seconds of the last `steps` lines of metrics: the phases, and as `step` all that
    passed since the
    line before, what is written to files included; `other` is what no phase explains."""
    phases = ["generate", "reward", "score", "update", "sync"]
    measured = lines[-steps:]
    seconds = {phase: [line[f"time/{phase}"] for line in measured] for phase in phases}
    times = [line["time/unix"] for line in lines[-steps - 1 :]]
    seconds["step"] = [end - start for start, end in pairwise(times)]
    explained = [sum(parts) for parts in zip(*(seconds[phase] for phase in phases), strict=True)]
    seconds["other"] = [t - e for t, e in zip(seconds["step"], explained, strict=True)]
    return seconds


def check_tokens(lengths: list[float], work: Work) -> None:
    """Raise where a mean length is not that of all completions, if they have one length."""
    if not work.ends_itself and set(lengths) != {float(work.new_tokens)}:
        raise RuntimeError(f"every completion must have {work.new_tokens} tokens, got {lengths}")


def medians(result: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds of each phase."""
    return {phase: statistics.median(values) for phase, values in result["seconds"].items()}
