"""The loop on one page learns, and its gradient is that of `algorithm=grpo`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config
from tiny_tokenizers import byte_level_tokenizer
from transformers import LlamaForCausalLM

from examples import loop
from rlkit.algorithms import Objective, build
from rlkit.config import setting_of
from rlkit.functional import divide_by_std, group_mean_advantages, group_std
from rlkit.launch.api import compose
from rlkit.models import ModelConfig
from rlkit.models.load import load_model
from rlkit.policy.policy import new_policy
from rlkit.training.update import UpdateSettings, score
from rlkit.types import RolloutBatch

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama over bytes, with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer()
    config = tiny_config(
        "llama",
        vocab_size=len(tokenizer),
        intermediate_size=64,
        max_position_embeddings=2048,
        initializer_range=0.02,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data *= 10.0  # a random head is too flat for an adapter to sharpen
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_mean_reward_rises(folder: Path) -> None:
    rewards = list(loop.train(str(folder), steps=25, device=CPU))
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.02


def random_batch(vocabulary: int) -> RolloutBatch:
    """Two groups of four samples with ragged lengths and random rewards."""
    torch.manual_seed(1)
    rows, width = 8, 6
    lengths = torch.tensor([6, 3, 1, 5, 2, 6, 4, 3])
    return RolloutBatch(
        prompt_ids=torch.randint(vocabulary, (2, 5)).repeat_interleave(4, dim=0),
        prompt_mask=torch.ones(rows, 5, dtype=torch.bool),
        completion_ids=torch.randint(vocabulary, (rows, width)),
        completion_mask=torch.arange(width)[None] < lengths[:, None],
        sampling_logps=torch.zeros(rows, width),
        rewards=torch.rand(rows),
        reward_components=torch.zeros(rows, 1),
        reward_weights=torch.ones(1),
        group_ids=torch.arange(2).repeat_interleave(4),
        truncated=torch.zeros(rows, dtype=torch.bool),
        policy_version=torch.zeros(rows, dtype=torch.long),
    )


def test_its_gradient_is_that_of_grpo(folder: Path) -> None:
    config = compose("algorithm=grpo", "algorithm.group_size=4", f"kl.beta={loop.BETA}")
    algorithm = build(Objective.of(config), setting_of(config))
    model = ModelConfig(source=str(folder))
    base = load_model(model, device=CPU, say=lambda _: None)
    policy = new_policy(base, model, seed=0)
    with torch.no_grad():  # away from the reference, so that the KL term has a gradient
        for name, leaf in policy.adapter.items():
            leaf += 0.1 * torch.randn(
                leaf.shape, generator=torch.Generator().manual_seed(len(name))
            )
    settings = UpdateSettings(
        optim=config.optim, total_updates=1, temperature=1.0, tokens_per_microbatch=0
    )
    batch = score(policy, random_batch(300), algorithm, settings)
    train_batch = algorithm.prepare(batch)
    output = policy.forward(batch, adapter=policy.adapter, temperature=1.0, spec=algorithm.outputs)
    leaves = list(policy.adapter.values())
    expected = torch.autograd.grad(algorithm.loss(output, train_batch).loss, leaves)
    assert batch.ref_logps is not None
    advantages = train_batch.advantages[:, 0]
    loss = loop.grpo_loss(policy, batch, advantages, batch.ref_logps)
    found = torch.autograd.grad(loss, leaves)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert norm > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=float(1e-6 * norm))


def test_the_advantages_are_those_of_grpo() -> None:
    # By hand: rewards 0, 0, 1, 1 have mean 1/2 and standard deviation sqrt(1/3) with n - 1.
    rewards = torch.tensor([0.0, 0.0, 1.0, 1.0])
    std = group_std(rewards, torch.zeros(4, dtype=torch.long), bessel=True)
    centred = group_mean_advantages(rewards, torch.zeros(4, dtype=torch.long))
    found = divide_by_std(centred, std, eps=1e-4)
    torch.testing.assert_close(found[2], torch.tensor(0.5 / (3**-0.5 + 1e-4)))


def test_it_runs_as_its_docstring_says(folder: Path) -> None:
    command = [sys.executable, "examples/loop.py", "--model", str(folder), "--steps", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["step", "0"], ["step", "1"]]
    assert result.stderr == ""
