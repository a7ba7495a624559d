"""Ask the trained policy about held-out prompts: its log-probs, and whether its answers succeed.

Every export is asked the same. Answers are greedy, so that no sampler's random numbers count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlkit.exports.trained import TrainedPolicy
from rlkit.generation import HFGeneratorConfig
from rlkit.generation.hf import HFGenerator
from rlkit.models.config import QuantConfig
from rlkit.models.load import load_model
from rlkit.models.quantize_error import next_token_logps
from rlkit.models.rope import row_lengths
from rlkit.models.special import completion_decoder
from rlkit.policy.lora import attach
from rlkit.policy.lora_files import load_adapter, read_adapter_config
from rlkit.rewards import SpecialTokens
from rlkit.runtime.say import Say
from rlkit.tasks import Example, Message, SplitName
from rlkit.tasks.render import render, render_all
from rlkit.types import Completion, FinishReason, Prompt, Rollout, SamplingConfig

_SCORED_PROMPTS = 8
_TOKENS_OF_EACH = 12
_NO_TASK = (
    "What is 17 + 25? Think step by step.",
    "Write one sentence about the sea.",
    "Repeat the word inside the tags: <answer>lantern</answer>",
)
_MAX_TOKENS = 32
"""Most tokens of a completion where the run's folder names no task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """This record holds one prompt with the policy's own answer, and the log-probs along it."""

    ids: tuple[int, ...]
    """The prompt and the start of the answer."""
    first: int
    """The position whose next-token distribution is the first one compared."""
    logps: Tensor
    """(T, V) log-probs of the policy, float32, at `first` and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """This record holds what the trained policy says, for exports to be compared with."""

    prompts: tuple[Prompt, ...]
    max_tokens: int
    """Most tokens of an answer."""
    rows: tuple[ScoredRow, ...]
    success: float | None
    """Share of the prompts whose greedy answer succeeds; None = the task cannot tell."""
    judge: Callable[[Sequence[Sequence[int]]], float | None]
    """Takes a completion for each prompt."""
    training_rows: tuple[tuple[int, ...], ...]
    """Training prompts with the policy's answers, to calibrate with."""

    @property
    def to_complete(self) -> list[list[int]]:
        """Return the ids of the prompts whose answers can be judged."""
        return [list(p.ids) for p in self.prompts] if self.success is not None else []

    @property
    def longest(self) -> int:
        """Return the most tokens of a prompt with its answer."""
        return max(len(prompt.ids) for prompt in self.prompts) + self.max_tokens


def ask_policy(
    trained: TrainedPolicy,
    *,
    num_prompts: int,
    num_training_rows: int,
    device: torch.device,
    say: Say,
) -> Reference:
    """Load the trained policy, as it was trained, and ask it.

    Args:
        trained: The policy.
        num_prompts: Held-out prompts that are answered, >= 1.
        num_training_rows: Training prompts that are answered to calibrate with, >= 0.
        device: The device to compute on.
        say: Takes a line before each slow step.

    Returns:
        Log-probs and answers; the model itself is let go.

    Raises:
        ValueError: A prompt cannot be rendered, or the model cannot be loaded.
    """
    prompts = _prompts(trained, num_prompts, SplitName.eval)
    trained_on = _prompts(trained, num_training_rows, SplitName.train)
    run = trained.run
    base = load_model(run.model, device=device, say=say, quant=quant_of(trained))
    active: AbstractContextManager[None] = nullcontext()
    if trained.adapter is not None:
        folder = trained.adapter.folder
        lora = attach(base.model, read_adapter_config(folder), dtype=base.dtype)
        active = lora.active(load_adapter(folder, lora, device=device))
    with active:
        answers = greedy(base.model, trained, prompts)
        rows = tuple(_scored(base.model, prompts, answers))
        if trained_on:
            say(f"{len(trained_on)} training prompts are answered, to calibrate with ...")
        further = greedy(base.model, trained, trained_on) if trained_on else []
    judge = _judge(trained, prompts)
    return Reference(
        prompts=prompts,
        max_tokens=max_tokens(trained),
        rows=rows,
        success=judge(answers),
        judge=judge,
        training_rows=tuple((*p.ids, *ids) for p, ids in zip(trained_on, further, strict=True)),
    )


def max_tokens(trained: TrainedPolicy) -> int:
    """Return the most tokens of an answer, as in training."""
    return _MAX_TOKENS if trained.task is None else trained.task.max_completion_length


def greedy(
    model: PreTrainedModel, trained: TrainedPolicy, prompts: Sequence[Prompt]
) -> list[tuple[int, ...]]:
    """Return the likeliest completion of each prompt, ended as the run ends them."""
    generator = HFGenerator(
        model,
        trained.tokenizer,
        activate=_as_it_is,
        stop_token_ids=trained.stops.ids,
        config=HFGeneratorConfig(),
    )
    sampling = SamplingConfig(
        max_completion_length=max_tokens(trained), top_k=1, stop=trained.stops.strings
    )
    seeds = [[0] for _ in prompts]
    rollouts: list[list[Rollout]] = generator.generate(
        prompts, num_samples=1, sampling=sampling, seeds=seeds
    )
    return [group[0].completion_ids for group in rollouts]


def logps_of(model: PreTrainedModel, row: ScoredRow) -> Tensor:
    """Return the (T, V) log-probs of a loaded export where the policy has those of `row`."""
    return _row_logps(model, row.ids)[row.first :]


def _as_it_is(_adapter: object) -> AbstractContextManager[None]:
    return nullcontext()


def _row_logps(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    with torch.no_grad(), row_lengths(model, len(ids)):
        return next_token_logps(model, ids).cpu()


def _scored(
    model: PreTrainedModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> Iterator[ScoredRow]:
    for prompt, answer in zip(prompts[:_SCORED_PROMPTS], answers, strict=False):
        ids = (*prompt.ids, *answer[: _TOKENS_OF_EACH - 1])
        first = len(prompt.ids) - 1
        yield ScoredRow(ids=ids, first=first, logps=_row_logps(model, ids)[first:])


def _prompts(trained: TrainedPolicy, count: int, name: SplitName) -> tuple[Prompt, ...]:
    task, options = trained.task, trained.run.task
    if count == 0:
        return ()
    if task is None or options is None:
        chats = [Example(prompt=(Message("user", text),)) for text in _NO_TASK[:count]]
        return tuple(render(e, trained.tokenizer, index=i) for i, e in enumerate(chats))
    split = task.train if name is SplitName.train else task.eval
    rendered = render_all(
        split,
        range(min(count, split.size or count)),
        trained.tokenizer,
        max_length=task.max_prompt_length,
        overlong=options.overlong_prompts,
    )
    return tuple(rendered.prompts)


def _judge(
    trained: TrainedPolicy, prompts: Sequence[Prompt]
) -> Callable[[Sequence[Sequence[int]]], float | None]:
    """Return the function from completions to the share of them that succeed."""
    task = trained.task
    keep = trained.run.special_tokens is SpecialTokens.keep
    decode = completion_decoder(trained.tokenizer, keep=keep, ends=trained.stops.ids)

    def judge(answers: Sequence[Sequence[int]]) -> float | None:
        if task is None or task.success is None:
            return None
        good = 0
        for prompt, ids in zip(prompts, answers, strict=True):
            completion = Completion(
                prompt=prompt, text=decode(ids), ids=tuple(ids), finish_reason=FinishReason.stop
            )
            good += bool(task.success(completion))
        return good / len(prompts)

    return judge


def quant_of(trained: TrainedPolicy) -> QuantConfig:
    """Return the quantisation that the run's base was loaded with."""
    return trained.run.options.memory.quant if trained.run.has_adapter else QuantConfig()
