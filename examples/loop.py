"""GRPO on one page: the whole loop over rlkit's public functions, without its trainer.

    python examples/loop.py                          # SmolLM2-135M-Instruct, minutes on two cores
    python examples/loop.py --model FOLDER --steps 3 # any model folder in Hugging Face format

The model learns to repeat a word inside <answer></answer>. What the real trainer adds is left out:
micro-batches, several updates a batch, checkpoints, evaluation, vLLM, and the memory plan.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from rlkit import Prompt, Rollout, RolloutBatch, SamplingConfig, ScoredRollout
from rlkit.functional import (
    clipped_surrogate_loss,
    divide_by_std,
    group_mean_advantages,
    group_std,
    importance_ratio,
    log_ratio,
    reverse_k3,
    sequence_mean,
)
from rlkit.generation import HFGeneratorConfig, sample_seed
from rlkit.generation.hf import HFGenerator
from rlkit.models import ModelConfig
from rlkit.models.load import BaseModel, load_model
from rlkit.policy.policy import Policy, new_policy
from rlkit.tasks.base import Example, Message
from rlkit.tasks.render import render
from rlkit.training.collate import collate

WORDS = ("lantern", "river", "copper", "window", "garden", "silver", "candle", "forest")
GROUP_SIZE = 8
"""Completions of each prompt; their mean reward is the baseline."""
BETA = 0.04
"""Weight of the KL divergence from the model we started with."""
CLIP = 0.2
LEARNING_RATE = 1e-3
SAMPLING = SamplingConfig(max_completion_length=24, temperature=1.0)


def reward(text: str, word: str) -> float:
    """Likeness of a completion to the right answer, in [0, 1]; 1 = the same text."""
    return SequenceMatcher(None, text.strip(), f"<answer>{word}</answer>").ratio()


def prompts_of(base: BaseModel) -> list[Prompt]:
    """One prompt a word, rendered with the model's own chat template."""
    texts = [f"Repeat inside <answer></answer> tags, and nothing else: {word}" for word in WORDS]
    examples = [Example(prompt=(Message("user", text),)) for text in texts]
    return [render(example, base.tokenizer, index=i) for i, example in enumerate(examples)]


def text_of(rollout: Rollout, base: BaseModel) -> str:
    """Return the completion without special tokens."""
    return str(base.tokenizer.decode(list(rollout.completion_ids), skip_special_tokens=True))


def score(rollouts: Sequence[Sequence[Rollout]], base: BaseModel) -> list[list[ScoredRollout]]:
    """Return every sample with its text and its reward."""
    scored = []
    for word, group in zip(WORDS, rollouts, strict=True):
        texts = [text_of(rollout, base) for rollout in group]
        values = [reward(text, word) for text in texts]
        scored.append(
            [
                ScoredRollout(rollout=rollout, text=text, components=(value,), reward=value)
                for rollout, text, value in zip(group, texts, values, strict=True)
            ]
        )
    return scored


def grpo_loss(policy: Policy, batch: RolloutBatch, advantages: Tensor, ref_logps: Tensor) -> Tensor:
    """The clipped surrogate and beta times KL(policy || reference), a mean over sequences.

    Args:
        policy: The policy; gradients flow into its adapter.
        batch: B rollouts with C completion tokens.
        advantages: (B,), one number a sample.
        ref_logps: (B, C), logps of the reference policy, in nats.

    Returns:
        A scalar to minimise.
    """
    mask = batch.completion_mask
    logps = policy.forward(batch, adapter=policy.adapter, temperature=SAMPLING.temperature).logps
    # One update a batch: the old policy is the policy itself, so the ratio is 1 and has a gradient.
    ratio = importance_ratio(log_ratio(logps, logps.detach(), mask))
    per_token = advantages[:, None].expand_as(logps)
    surrogate = clipped_surrogate_loss(ratio, per_token, low=CLIP, high=CLIP)
    return sequence_mean(surrogate + BETA * reverse_k3(logps, ref_logps), mask, len(batch))


def train(source: str, *, steps: int, device: torch.device) -> Iterator[float]:
    """Train for some steps; yields the mean reward of each step's samples."""
    config = ModelConfig(source=source)
    base = load_model(config, device=device, say=print)
    policy = new_policy(base, config, seed=0)
    optimizer = torch.optim.AdamW(policy.named_parameters().values(), lr=LEARNING_RATE)
    generator = HFGenerator(
        base.model,
        base.tokenizer,
        activate=policy.tuning.active,
        stop_token_ids=base.stop_ids,
        config=HFGeneratorConfig(),
    )
    prompts = prompts_of(base)
    for step in range(steps):
        generator.load_adapter(policy.adapter, step)
        seeds = [[sample_seed(0, step, p.index, i) for i in range(GROUP_SIZE)] for p in prompts]
        rollouts = generator.generate(
            prompts, num_samples=GROUP_SIZE, sampling=SAMPLING, seeds=seeds
        )
        pad_token_id = base.tokenizer.pad_token_id
        batch = collate(
            score(rollouts, base), reward_weights=[1.0], pad_token_id=pad_token_id, device=device
        )
        with torch.no_grad():
            ref_logps = policy.forward(batch, adapter=None, temperature=SAMPLING.temperature).logps
            std = group_std(batch.rewards, batch.group_ids, bessel=True)
            centred = group_mean_advantages(batch.rewards, batch.group_ids)
            advantages = divide_by_std(centred, std, eps=1e-4)
        loss = grpo_loss(policy, batch, advantages, ref_logps)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(policy.named_parameters().values(), 1.0)
        optimizer.step()
        yield float(batch.rewards.mean())


def main() -> None:
    """Read the command line, train, and print a line a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="starter", help="starter, a folder or a .gguf file")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for step, mean in enumerate(train(options.model, steps=options.steps, device=device)):
        print(f"step {step:3d}   mean reward {mean:.3f}", flush=True)


if __name__ == "__main__":
    main()
