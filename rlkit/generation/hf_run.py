"""One call of `generate` with transformers: batches, prefill, and token after token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rlkit.generation.base import HFGeneratorConfig, Progress, ProgressCallback
from rlkit.generation.batching import (
    Prefill,
    SamplingRow,
    common_prefix_length,
    plan_prefill,
    split_rows,
)
from rlkit.generation.cache import empty_cache, spread_prefix, take_rows
from rlkit.generation.hf_drafts import DraftedRows, Drafts, Pass
from rlkit.generation.sampling import Draw, sample
from rlkit.generation.speculation import DraftHistory
from rlkit.generation.stopping import StopRule
from rlkit.models.compat import Cache, with_cache
from rlkit.models.rope import factors_key, row_lengths
from rlkit.types import FinishReason, SamplingConfig

_WORTH_DROPPING = 8
"""Ended rows are dropped once they are 1 / 8 of the batch, as dropping copies the cache."""


class Run:
    """This object does the work of one call of `generate`."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[SamplingRow],
        sampling: SamplingConfig,
        stop: StopRule,
        config: HFGeneratorConfig,
        progress: ProgressCallback | None,
        history: DraftHistory,
    ) -> None:
        self._model = model
        self._rows = rows
        self._sampling = sampling
        self._stop = stop
        self._config = config
        self._progress = progress
        self._history = history
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
        everyone = rows
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
                drafted = self._drafts_pay(len(active))
                many = num_ended * _WORTH_DROPPING >= len(rows)
                if (many and num_ended * steps_left > len(rows)) or (drafted and num_ended):
                    keep = torch.tensor(active, device=device)
                    take_rows(cache, keep)
                    rows = [rows[n] for n in active]
                    next_ids, pads, seeds = next_ids[keep], pads[keep], seeds[keep]
                    mask = mask[keep] if mask is not None else None
                if drafted:
                    columns = plan.num_columns + position
                    self._sample_drafted(rows, everyone, cache, columns, mask, seeds)
                    return
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            start = plan.num_columns + position
            logits = self._forward(cache, next_ids[:, None], start, pads, mask)

    def _drafts_pay(self, num_rows: int) -> bool:
        """Tell whether the next tokens of `num_rows` rows are guessed.

        A pass has no more tokens than the most rows of a batch: memory is planned for those.
        """
        speculation = self._config.speculation
        fits = num_rows * (speculation.tokens + 1) <= max(self._config.max_rows, 16)
        return speculation.is_on and num_rows <= speculation.rows and fits

    def _sample_drafted(
        self,
        rows: list[SamplingRow],
        everyone: Sequence[SamplingRow],
        cache: Cache,
        columns: int,
        mask: Bool[Tensor, "N L"] | None,
        seeds: Int[Tensor, " N"],
    ) -> None:
        """Sample `rows` to their ends with guesses from `everyone`; see `hf_drafts`."""
        if mask is None:
            mask = torch.ones(len(rows), columns, dtype=torch.bool, device=seeds.device)
        batch = DraftedRows(
            rows=rows,
            cache=cache,
            mask=mask,
            seeds=seeds,
            sampling=self._sampling,
            drafts=Drafts(everyone, self._config.speculation, self._history),
            forward=self._forward_pass,
            extend=self._extend,
        )
        while batch.rows:
            batch.step()
            self._report()

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
        positions = (columns - pads[:, None]).clamp(min=0)
        return self._logits(cache, input_ids, positions, mask, keep=1)[:, -1]

    def _forward_pass(self, cache: Cache, tokens: Pass) -> Float[Tensor, "N R V"]:
        """Append the columns of a pass to `cache`; return the logits behind each of its tokens."""
        return self._logits(cache, *tokens, keep=tokens.input_ids.shape[1])

    def _logits(
        self,
        cache: Cache,
        input_ids: Int[Tensor, "N R"],
        positions: Int[Tensor, "N R"],
        mask: Bool[Tensor, "N L"] | None,
        *,
        keep: int,
    ) -> Float[Tensor, "N K V"]:
        output = self._model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            **with_cache(self._model, {"use_cache": True, "logits_to_keep": keep}, cache),
        )
        logits: Tensor = output.logits
        return logits

    def _settle(self, rows: Sequence[SamplingRow], draws: Sequence[Draw]) -> None:
        """Hand freshly drawn tokens to their rows; the only place that waits for the device."""
        ids = torch.stack([draw.ids for draw in draws], dim=1).tolist()
        logps = torch.stack([draw.logps for draw in draws], dim=1).tolist()
        for row, row_ids, row_logps in zip(rows, ids, logps, strict=True):
            if row.finish_reason is None:
                self._extend(row, row_ids, row_logps)
        self._report()

    def _report(self) -> None:
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
