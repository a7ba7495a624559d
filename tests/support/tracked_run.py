"""A made-up run of 12 steps that learns: what the trainer would tell a tracker."""

from __future__ import annotations

import math
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlkit.tracking import EvalRecord, RunInfo, SampleRow, StepRecord, evaluate

REWARDS = ("correctness", "tag_format")
NUM_PROMPTS = 6
GROUP_SIZE = 8
_PROMPT = (
    "<|im_start|>user\nRepeat the word between the quotes: 'w{}'. Answer inside <answer></answer>."
)


def info(run_dir: Path, *, num_steps: int = 12, first_step: int = 0) -> RunInfo:
    return RunInfo(
        run_dir=run_dir,
        name="echo-seed0",
        task="echo",
        model="SmolLM2-135M-Instruct",
        algorithm="grpo",
        device="cpu",
        dtype="float32",
        dtype_reason="no GPU",
        num_steps=num_steps,
        first_step=first_step,
        prompts_per_step=NUM_PROMPTS,
        group_size=GROUP_SIZE,
        reward_names=REWARDS,
        config={"seed": 0, "algorithm.clip_low": 0.2, "model.hub_token": "hf_canary123456"},
        versions={"rlkit": "0.1.0", "torch": "2.13.0"},
    )


def record(step: int, *, seed: int = 0) -> StepRecord:
    """A pure function of its arguments, except for what starts with `time/` in a real run."""
    draw = random.Random(1000 * seed + step)
    skill = 1 / (1 + math.exp(-(step - 5) / 1.5))
    samples = [
        _sample(step, prompt, sample, draw.random() < skill, draw)
        for prompt in range(NUM_PROMPTS)
        for sample in range(GROUP_SIZE)
    ]
    rewards = [row.reward for row in samples]
    mean = sum(rewards) / len(rewards)
    metrics = {
        "reward": mean,
        "reward_std": math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)),
        "rewards/correctness/mean": sum(row.components[0] for row in samples) / len(samples),
        "rewards/tag_format/mean": sum(row.components[1] for row in samples) / len(samples),
        "frac_reward_zero_std": draw.choice([0.0, 1 / 6, 2 / 6]),
        "kl": 0.0 if step == 0 else 0.004 * step**1.5,
        "entropy": 1.4 - 0.09 * step,
        "completions/mean_length": sum(row.num_tokens for row in samples) / len(samples),
        "completions/clipped_ratio": 1 / 48,
        "clip_ratio/region_mean": 0.011,
        "grad_norm": 0.9 * draw.random() + 0.2,
        "learning_rate": 1e-4,
        "pg_signal": 0.71,
        "time/generate": 9.1,
        "time/reward": 0.02,
        "time/score": 2.2,
        "time/update": 5.9,
        "time/sync": 0.05,
        "time/other": 0.31,
        "time/step": 17.58,
        "speed/tokens_per_second": 118.0 + step,
        "memory/rss_bytes": 1.9 * 2**30,
    }
    return StepRecord(step=step, metrics=metrics, samples=samples)


def evaluation(label: str, step: int, *, rate: float, num_prompts: int = 64) -> EvalRecord:
    draw = random.Random(label)
    rows = [
        _sample(step, 1000 + prompt, sample, draw.random() < rate, draw)
        for prompt in range(num_prompts)
        for sample in range(2)
    ]
    success = [
        (rows[2 * i].components[0] + rows[2 * i + 1].components[0]) / 2 for i in range(num_prompts)
    ]
    return evaluate(
        label=label,
        step=step,
        prompt_indices=range(1000, 1000 + num_prompts),
        prompt_keys=[f"{1000 + prompt:016x}" for prompt in range(num_prompts)],
        values=success,
        samples_per_prompt=2,
        samples=rows,
    )


def _sample(step: int, prompt: int, sample: int, right: bool, draw: random.Random) -> SampleRow:
    text = (
        f"<answer>w{prompt}</answer>"
        if right
        else f"Sure! The word between the quotes is [bold]'w{prompt}'[/bold]. " * draw.randint(1, 4)
    )
    components = (1.0 if right else 0.0, 0.5 if right or draw.random() < 0.3 else 0.0)
    return SampleRow(
        step=step,
        prompt_index=prompt,
        sample_index=sample,
        prompt=_PROMPT.format(prompt),
        completion=text,
        finish_reason="stop",
        num_tokens=len(text) // 4,
        components=components,
        reward=sum(components),
        advantage=0.1 * sample,
        columns={"answer": f"w{prompt}"},
    )


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """The kernel lets no file grow beyond `num_bytes`, as on a full disk: the rest is refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
