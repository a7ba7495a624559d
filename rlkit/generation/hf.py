"""`HFGenerator` samples from any transformers causal LM, in process, on the trainer's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkit.generation.base import (
    HFGeneratorConfig,
    Progress,
    ProgressCallback,
    check_request,
    check_sampling,
)
from rlkit.generation.batching import (
    Prefill,
    SamplingRow,
    common_prefix_length,
    make_rows,
    plan_prefill,
    split_rows,
)
from rlkit.generation.cache import check_layers, empty_cache, spread_prefix, take_rows
from rlkit.generation.sampling import Draw, sample
from rlkit.generation.stopping import StopRule
from rlkit.models.compat import Cache, with_cache
from rlkit.models.rope import check_row, factors_key, row_lengths
from rlkit.types import FinishReason, Prompt, Rollout, SamplingConfig

Adapter = Mapping[str, Tensor]
Activate = Callable[[Adapter | None], AbstractContextManager[None]]

_WORTH_DROPPING = 8
"""Ended rows are dropped once they are 1 / 8 of the batch, as dropping copies the cache."""


class HFGenerator:
    """This generator has a decoding loop of its own over a key-value cache.

    One call computes the longest token prefix that all prompts share once. It computes the rest of
    each distinct prompt once per batch, and expands both to the samples. All of it runs under the
    adapter in force. Nothing is kept from one call to the next, so no key or value can come from
    another policy. Rows that have ended leave the batch. A row's tokens and logps depend on
    its prompt, its seed and the policy only, up to floating-point noise.

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
        self._model: PreTrainedModel | None = model
        self._tokenizer = tokenizer
        self._activate = activate
        self._stop_token_ids = stop_token_ids
        self._config = config
        self._progress = progress
        self._adapter: Adapter | None = None
        self._version = 0

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
            run = _Run(self._model, rows, sampling, stop, self._config, self._progress)
            run.sample_all()
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for row in rows:
            rollouts[row.prompt_number].append(row.rollout(self._version))
        return rollouts


class _Run:
    """This object does the work of one call of `generate`."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[SamplingRow],
        sampling: SamplingConfig,
        stop: StopRule,
        config: HFGeneratorConfig,
        progress: ProgressCallback | None,
    ) -> None:
        self._model = model
        self._rows = rows
        self._sampling = sampling
        self._stop = stop
        self._config = config
        self._progress = progress
        self._check_every = config.check_every or (1 if model.device.type == "cpu" else 8)
        self._num_done = 0
        self._num_tokens = 0

    def sample_all(self) -> None:
        """Sample every row to its end; rows with other rotary factors share nothing."""
        by_factors: dict[tuple[int, ...], list[SamplingRow]] = {}
        for row in self._rows:
            by_factors.setdefault(factors_key(self._model, len(row.prompt.ids)), []).append(row)
        for rows in by_factors.values():
            with row_lengths(self._model, len(rows[0].prompt.ids)):
                self._sample_rows(rows)

    def _sample_rows(self, rows: Sequence[SamplingRow]) -> None:
        """Sample rows with the same rotary factors, batch after batch."""
        batches = split_rows(
            rows,
            max_completion_length=self._longest(rows),
            max_rows=self._config.max_rows,
            max_tokens=self._config.max_tokens,
        )
        prompts = list({row.prompt.ids: None for row in rows})
        prefix_length = common_prefix_length(prompts) if len(prompts) > 1 else 0
        prefix = empty_cache()
        if prefix_length > 0:
            shared = plan_prefill(
                [prompts[0][:prefix_length]], prefix_length=0, device=self._model.device
            )
            self._forward(prefix, shared.input_ids, 0, shared.pads, None)
        for batch in batches:
            self._sample_batch(list(batch), prefix, prefix_length)

    def _sample_batch(self, rows: list[SamplingRow], prefix: Cache, prefix_length: int) -> None:
        """Sample `rows` together. Column c of the cache holds token c - pads[i] of row i."""
        device = self._model.device
        cache, logits, plan = self._prefill(rows, prefix, prefix_length)
        pads, mask = plan.pads, plan.mask
        seeds = torch.tensor([row.seed for row in rows], device=device)
        draws: list[Draw] = []
        longest = self._longest(rows)
        for position in range(longest):
            draws.append(sample(logits, seeds, position, self._sampling))
            next_ids = draws[-1].ids
            steps_left = longest - position - 1
            if steps_left == 0 or len(draws) == self._check_every:
                self._settle(rows, draws)
                draws = []
                active = [n for n, row in enumerate(rows) if row.finish_reason is None]
                if not active:
                    return
                num_ended = len(rows) - len(active)
                if num_ended * _WORTH_DROPPING >= len(rows) and num_ended * steps_left > len(rows):
                    keep = torch.tensor(active, device=device)
                    take_rows(cache, keep)
                    rows = [rows[n] for n in active]
                    next_ids, pads, seeds = next_ids[keep], pads[keep], seeds[keep]
                    mask = mask[keep] if mask is not None else None
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            start = plan.num_columns + position
            logits = self._forward(cache, next_ids[:, None], start, pads, mask)

    def _longest(self, rows: Sequence[SamplingRow]) -> int:
        """Return the most tokens that one of `rows` may get."""
        return max(row.most_tokens(self._sampling.max_completion_length) for row in rows)

    def _prefill(
        self, rows: Sequence[SamplingRow], prefix: Cache, prefix_length: int
    ) -> tuple[Cache, Float[Tensor, "N V"], Prefill]:
        """Return cache and next-token logits of every row, each distinct prompt computed once."""
        numbers = {ids: n for n, ids in enumerate(dict.fromkeys(row.prompt.ids for row in rows))}
        device = self._model.device
        plan = plan_prefill(list(numbers), prefix_length=prefix_length, device=device)
        cache = spread_prefix(prefix, plan.prefix_columns) if prefix_length > 0 else empty_cache()
        logits = self._forward(cache, plan.input_ids, prefix_length, plan.pads, plan.mask)
        expand = torch.tensor([numbers[row.prompt.ids] for row in rows], device=device)
        if len(numbers) < len(rows):
            take_rows(cache, expand)
        mask = plan.mask[expand] if plan.mask is not None else None
        return cache, logits[expand], plan._replace(pads=plan.pads[expand], mask=mask)

    def _forward(
        self,
        cache: Cache,
        input_ids: Int[Tensor, "N R"],
        start: int,
        pads: Int[Tensor, " N"],
        mask: Bool[Tensor, "N L"] | None,
    ) -> Float[Tensor, "N V"]:
        """Append columns `start`, `start + 1`, ... to `cache`; return the logits after the last."""
        columns = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        output = self._model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=(columns - pads[:, None]).clamp(min=0),
            **with_cache(self._model, {"use_cache": True, "logits_to_keep": 1}, cache),
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _settle(self, rows: Sequence[SamplingRow], draws: Sequence[Draw]) -> None:
        """Hand freshly drawn tokens to their rows; the only place that waits for the device."""
        ids = torch.stack([draw.ids for draw in draws], dim=1).tolist()
        logps = torch.stack([draw.logps for draw in draws], dim=1).tolist()
        for row, row_ids, row_logps in zip(rows, ids, logps, strict=True):
            if row.finish_reason is None:
                self._extend(row, row_ids, row_logps)
        if self._progress is not None:
            self._progress(Progress(self._num_done, len(self._rows), self._num_tokens))

    def _extend(self, row: SamplingRow, ids: list[int], logps: list[float]) -> None:
        """Append tokens to a row, up to and including the one that ends it."""
        num_old = len(row.ids)
        row.ids += ids
        row.logps += logps
        most = row.most_tokens(self._sampling.max_completion_length)
        del row.ids[most:], row.logps[most:]  # drawn between two looks, for longer rows
        kept = self._stop.tokens_kept(row.ids, num_old)
        if kept is not None:
            row.finish_reason = FinishReason.stop
            del row.ids[kept:], row.logps[kept:]
        elif len(row.ids) == most:
            row.finish_reason = FinishReason.length
        for offset, logp in enumerate(row.logps[num_old:]):
            if not math.isfinite(logp):
                raise FloatingPointError(
                    f"logits must be finite, got NaN or inf for token {num_old + offset} of sample "
                    f"{row.sample_index} of prompt {row.prompt.index} ({row.prompt.text[-60:]!r})"
                )
        self._num_done += row.finish_reason is not None
        self._num_tokens += len(row.ids) - num_old


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Turn dropout off; the model's training mode comes back afterwards."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)
