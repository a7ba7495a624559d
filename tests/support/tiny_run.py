"""A whole run in miniature: a random two-layer Llama over 26 letters, rewarded for one of them.

Real generator, real policy, real algorithms; small enough for a second a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from tiny_models import tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlkit.algorithms import (
    CorrectionConfig,
    KLConfig,
    Objective,
    RatioConfig,
    build,
)
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.base import AlgorithmConfig
from rlkit.assembly.shares import keep_own_share, shares_of
from rlkit.generation import HFGeneratorConfig, sample_seed
from rlkit.generation.hf import HFGenerator
from rlkit.models.config import TuningKind
from rlkit.models.families import head_of
from rlkit.models.sharded import shard_layers
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.lora import LoRA, LoRAConfig, attach, init_adapter
from rlkit.policy.policy import Policy, init_critic
from rlkit.ranks import ALONE, Ranks
from rlkit.tracking.base import EvalRecord, Level, Outcome, Phase, RunInfo, StepRecord
from rlkit.training.collect import Collector
from rlkit.training.evaluate import Evaluator
from rlkit.training.optim import OptimConfig, build_optimizer
from rlkit.training.schedule import RunSchedule
from rlkit.training.together import together
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState, UpdateSettings
from rlkit.types import Completion, Prompt, SamplingConfig, Setting

CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAD, STOP = 26, 27


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, then padding and stop."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"<pad>": PAD, "</s>": STOP}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<pad>"
    )


def tiny_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Random but always the same."""
    torch.manual_seed(0)
    config = tiny_config(
        "llama",
        vocab_size=28,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        eos_token_id=STOP,
        pad_token_id=PAD,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    # Random heads give almost flat logits, which no adapter below them could sharpen.
    model.lm_head.weight.data *= 20.0
    model.requires_grad_(False).train(False)
    return model


@dataclass(frozen=True)
class LetterScores:
    components: list[list[list[float]]]
    rewards: list[list[float]]
    failures: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> list[str]:
        return []

    def metrics(self) -> dict[str, float]:
        return {}

    def shares(self) -> dict[str, tuple[float, float]]:
        return {}


class LetterReward:
    """Letters `a` in a completion, of the six it may have."""

    names = ("letter",)
    weights = (1.0,)

    def score(self, groups: Sequence[Sequence[Completion]]) -> LetterScores:
        values = [[c.text.count("a") / 6 for c in group] for group in groups]
        return LetterScores([[[v] for v in group] for group in values], values)


@dataclass
class Recorder:
    """A tracker that remembers."""

    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvalRecord] = field(default_factory=list)

    def start(self, info: RunInfo) -> None: ...
    def progress(self, phase: Phase, done: int, total: int) -> None: ...
    def message(self, level: Level, text: str) -> None: ...
    def finish(self, outcome: Outcome) -> None: ...
    def close(self, deadline_s: float) -> None: ...

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluation(self, record: EvalRecord) -> None:
        self.evaluations.append(record)


def letter_prompts(
    *, step: int, attempt: int, success: Mapping[str, float] = MappingProxyType({})
) -> list[Prompt]:
    """Three prompts that share a prefix of two letters."""
    first = 3 * (step + 100 * attempt)
    texts = ["xy" + LETTERS[(first + i) % 26] * (1 + (first + i) % 3) for i in range(3)]
    return [
        Prompt(index=first + i, ids=tuple(LETTERS.index(c) for c in text), text=text)
        for i, text in enumerate(texts)
    ]


def tiny_run(
    run_dir: Path,
    *,
    num_steps: int = 4,
    optim: OptimConfig | None = None,
    algorithm: AlgorithmConfig | None = None,
    kl: KLConfig | None = None,
    ratio: RatioConfig | None = None,
    objective: Objective[AlgorithmConfig] | None = None,
    tokens_per_microbatch: int = 10_000,
    dtype: torch.dtype = torch.float32,
    resample: bool = False,
    tuning: TuningKind = TuningKind.lora,
    device: torch.device = CPU,
    ranks: Ranks = ALONE,
    spread_over: Ranks = ALONE,
    at_once: int = 0,
) -> tuple[Trainer, TrainState, Recorder]:
    """A trainer, its fresh state and the tracker that sees what happens.

    `objective` stands for `algorithm`, `kl`, `ratio` and a correction together. `spread_over` are
    the ranks that share masters and moments.
    """
    optim = optim or OptimConfig(learning_rate=0.02)
    algorithm = objective.algorithm if objective else algorithm or GRPOConfig(group_size=4)
    model, tokenizer = tiny_model(dtype), tiny_tokenizer()
    torch.nn.Module.to(model, device)
    if ranks.in_step:
        shard_layers(model, ranks.mesh(), device=device)
    setting = Setting(
        group_size=algorithm.group_size,
        max_completion_length=6,
        updates_per_batch=optim.updates_per_batch,
        microbatched=tokens_per_microbatch > 0,
    )
    objective = objective or Objective(
        algorithm, kl or KLConfig(), ratio or RatioConfig(), CorrectionConfig()
    )
    algorithm_of_run = build(objective, setting)
    policy = tiny_policy(model, dtype, tuning)
    if algorithm_of_run.outputs.values:
        assert isinstance(policy.tuning, LoRA)
        critic = init_critic(policy.tuning, num_hidden=32, seed=1, device=device)
        policy = replace(policy, critic=critic)
    own = HFGenerator(
        model,
        tokenizer,
        activate=policy.tuning.active,
        stop_token_ids=frozenset({STOP}),
        config=HFGeneratorConfig(),
    )
    # Its passes gather the layers of all ranks, so that they sample together.
    generator = together(own, ranks, size=ranks.size if ranks.in_step else 1)
    sampling = SamplingConfig(max_completion_length=6)
    rewards, tracker = LetterReward(), Recorder()
    evaluator = Evaluator(
        generator=generator,
        prompts=letter_prompts(step=1000, attempt=0),
        num_samples=8,
        sampling=sampling,
        seed=lambda prompt, sample: sample_seed(-1, 0, prompt, sample),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        success=lambda completion: "a" in completion.text,
        rewards=rewards,
        tracker=tracker,
        ranks=ranks,
        at_once=at_once,
    )
    trainer = Trainer(
        algorithm=lambda step: algorithm_of_run,
        settings=UpdateSettings(
            optim=optim,
            total_updates=num_steps * optim.updates_per_batch,
            temperature=sampling.temperature,
            tokens_per_microbatch=tokens_per_microbatch,
            ranks=ranks,
        ),
        schedule=RunSchedule(
            num_steps=num_steps,
            evaluate_every=0,
            checkpoint_every=2,
            keep_last=2,
            config_hash="tiny",
        ),
        collector=Collector(
            generator=generator,
            prompts=letter_prompts,
            rewards=rewards,
            decode=evaluator.decode,
            seed=partial(sample_seed, 0),
            sampling=sampling,
            group_size=algorithm.group_size,
            resample=resample,
            ranks=ranks,
            at_once=at_once,
        ),
        generator=generator,
        evaluate=evaluator,
        tracker=tracker,
        shuffle_seed=lambda step, epoch: sample_seed(0, step, -1, epoch),
        pad_token_id=PAD,
        device=device,
        run_dir=run_dir,
        ranks=ranks,
    )
    keep_own_share(policy, spread_over)
    leaves = policy.named_parameters()
    optimizer = build_optimizer(leaves, optim, shares=shares_of(policy, spread_over))
    state = TrainState(learner=policy, optimizer=optimizer)
    return trainer, state, tracker


def tiny_policy(model: LlamaForCausalLM, dtype: torch.dtype, tuning: TuningKind) -> Policy:
    """With LoRA of rank 4, or all weights and their reference."""
    if tuning is TuningKind.full:
        full = FullWeights(model, dtype=dtype, holds_reference=True)
        return Policy(model=model, tuning=full, head=head_of(model), adapter=full.masters)
    lora = attach(model, LoRAConfig(rank=4, alpha=8.0), dtype=dtype)
    return Policy(
        model=model,
        tuning=lora,
        head=head_of(model),
        adapter={
            # float32 leaves, as always; float64 for tests that need more digits.
            name: leaf.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
            for name, leaf in init_adapter(lora, seed=0, device=model.device).items()
        },
    )


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All tensors as one vector."""
    return torch.cat([t.detach().flatten() for t in tensors.values()])
