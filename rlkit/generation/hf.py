"""`HFGenerator` samples from any transformers causal LM, in process, on the trainer's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkit.generation.base import (
    HFGeneratorConfig,
    ProgressCallback,
    check_request,
    check_sampling,
)
from rlkit.generation.batching import (
    make_rows,
)
from rlkit.generation.cache import check_layers, check_whole_attention
from rlkit.generation.hf_run import Run
from rlkit.generation.speculation import DraftHistory, DraftSource
from rlkit.generation.stopping import StopRule
from rlkit.models.rope import check_row
from rlkit.types import Prompt, Rollout, SamplingConfig

Adapter = Mapping[str, Tensor]
Activate = Callable[[Adapter | None], AbstractContextManager[None]]


class HFGenerator:
    """This generator has a decoding loop of its own over a key-value cache.

    One call computes the longest token prefix that all prompts share once. It computes the rest of
    each distinct prompt once per batch, and expands both to the samples. All of it runs under the
    adapter in force. Nothing is kept from one call to the next, so no key or value can come from
    another policy. Rows that have ended leave the batch. A row's tokens and logps depend on
    its prompt, its seed and the policy only, up to floating-point noise.

    With `generator.speculation` the history of guesses is kept, and it changes no token.

    Sampling logps are those of the distribution defined in `rlkit.generation.sampling`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        activate: Activate,
        stop_token_ids: frozenset[int],
        config: HFGeneratorConfig,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Sample from `model` inside `activate(adapter)`; `activate(None)` is the base model.

        `stop_token_ids` end a completion: the union of the tokenizer's and the generation
        configuration's. `progress` is called after every look at which rows have ended.
        Raises `ValueError` for models whose layers are not plain attention.
        """
        check_layers(model)
        if config.speculation.is_on:
            check_whole_attention(model)
        self._model: PreTrainedModel | None = model
        self._tokenizer = tokenizer
        self._activate = activate
        self._stop_token_ids = stop_token_ids
        self._config = config
        self._progress = progress
        self._adapter: Adapter | None = None
        self._version = 0
        self._history = DraftHistory()

    def load_adapter(self, tensors: Adapter, version: int) -> None:
        """Sample with `tensors` from now on and tag the rollouts with `version`.

        The tensors are kept by reference, not copied: they are the trainer's own, and an update in
        place is seen by the next call. The trainer says so by calling this again with its version.
        """
        self._adapter = tensors
        self._version = version

    def close(self) -> None:
        """Let go of the model and the adapter; idempotent. `generate` then raises."""
        self._model = None
        self._adapter = None

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample from the policy that `load_adapter` set.

        Args:
            prompts: The prompts, none of them empty.
            num_samples: The samples of each prompt, >= 0.
            sampling: The sampling distribution with the longest completion.
            seeds: One seed for each sample: [prompt][sample], in [0, 2**63).

        Returns:
            The rollouts, [prompt][sample].

        Raises:
            ValueError: An option is out of range, a prompt leaves no room for
                `max_completion_length`, or the rotary factors of a row could change on the way.
            FloatingPointError: The logits are not finite; the message names the prompt.
        """
        if self._model is None:
            raise RuntimeError("generate() after close()")
        check_sampling(sampling)
        context = self._model.config.get_text_config().to_dict().get("max_position_embeddings")
        check_request(prompts, num_samples, sampling, seeds, context=context)
        if not prompts or num_samples == 0:
            return [[] for _ in prompts]
        longest = sampling.max_completion_length
        for length, more in {(len(p.ids), p.most_tokens(longest)) for p in prompts}:
            # The cache keeps keys as they were rotated: factors must not change on the way.
            check_row(self._model, length, length + more)
        rows = make_rows(prompts, num_samples=num_samples, seeds=seeds)
        stop = StopRule(self._tokenizer, token_ids=self._stop_token_ids, strings=sampling.stop)
        with torch.no_grad(), _evaluating(self._model), self._activate(self._adapter):
            run = Run(
                self._model,
                rows,
                sampling,
                stop,
                self._config,
                self._progress,
                self._history,
            )
            run.sample_all()
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for row in rows:
            rollouts[row.prompt_number].append(row.rollout(self._version))
        if self._config.speculation.source is DraftSource.history:
            for prompt, group in zip(prompts, rollouts, strict=True):
                self._history.put(prompt.ids, [rollout.completion_ids for rollout in group])
        return rollouts


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Turn dropout off; the model's training mode comes back afterwards."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)
