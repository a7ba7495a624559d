"""Bursts with guesses: each step computes a row's last token and the guesses behind it at once.

Rows advance unevenly, and the host does not wait to see by how much. All that a step needs is on
the card: the texts, the count of tokens, the limit of each row. A row at its limit stands still. To
vLLM's scheduler a burst is a long step in which all guesses were right, until it lands. Then the
tokens that were not gained are taken back.

vLLM's kernels for drafts put the guesses behind the last tokens and count rejected ones. Its graphs
for decoding have one token a row, so there is a second set of them (`draft_graphs`). The sampler is
that of plain bursts: it draws at each place what it would draw there without guesses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.generation.speculation import SpeculationOptions
from rlkit.generation.vllm.accel.burst import (
    Burst,
    Decoder,
    Flight,
    ended,
    first_stop,
    tokens_left,
)
from rlkit.generation.vllm.accel.draft_graphs import DraftGraphs
from rlkit.generation.vllm.accel.draft_texts import DraftedBatch, DraftTexts
from rlkit.generation.vllm.compat.line import VLLMLine
from rlkit.generation.vllm.piece import Piece

_STEPS = 8
"""Steps of one burst with guesses, each of which may give a row several tokens."""


class DraftedBurst(NamedTuple):
    """This burst has rows with guesses; its graph is one of `draft_graphs`."""

    requests: list[Any]
    num_steps: int
    graph: Any


@dataclass(frozen=True, slots=True)
class DraftedFlight:
    """This burst with guesses is on its way; its tensors are (rows, steps, ...)."""

    requests: tuple[Any, ...]
    token_ids: Tensor
    """(rows, steps, K + 1) the sampler's tokens, of which the first `held` hold."""
    logps: Tensor
    held: Tensor
    made: Tensor
    """Guesses that were made."""
    landed: torch.cuda.Event | None


class DraftedDecoder(Decoder):
    """This decoder guesses while few rows are under way, and else runs plain bursts."""

    def __init__(
        self,
        core: Any,
        runner: Any,
        line: VLLMLine,
        options: SpeculationOptions,
        graphs: DraftGraphs,
    ) -> None:
        # The import is not at the top: Triton may be missing where vLLM decodes step by step.
        from rlkit.generation.vllm.accel import draft_kernels

        super().__init__(core, runner, line)
        self._draft_kernels, self._options, self._graphs = draft_kernels, options, graphs
        self._texts = DraftTexts(
            options,
            max_num_seqs=runner.max_num_reqs,
            places=runner.max_model_len,
            device=runner.device,
        )
        self._drafts = torch.zeros(
            *(runner.max_num_reqs, options.tokens), dtype=torch.int64, device=runner.device
        )
        """(states, K) the guesses for the next step."""
        self._num_flights = 0

    def run(self) -> Iterator[list[Piece]]:
        """Decode as plain bursts do; see `Decoder.run`."""
        self._num_flights = 0
        yield from super().run()

    def _next(self) -> Any:
        burst = self._next_drafted()
        # A plain burst must know the length of each row, so none follows one still on its way.
        return burst if burst is not None or self._num_flights else super()._next()

    def _next_drafted(self) -> DraftedBurst | None:
        batch = list(self._scheduler.running)
        if not batch or len(batch) > self._options.rows or self._can_join():
            return None
        graph = self._graphs.find([request.request_id for request in batch])
        num_steps = min(_STEPS, max(map(tokens_left, batch)))
        if graph is None or num_steps <= 0:
            return None
        size = self._runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        blocks = 0
        for request in batch:
            held = request.num_computed_tokens
            blocks += math.ceil((held + self._room(request, num_steps)) / size)
            blocks -= math.ceil(held / size)
        pool = self._scheduler.kv_cache_manager.block_pool
        fits = blocks <= pool.get_num_free_blocks()
        return DraftedBurst(batch, num_steps, graph) if fits else None

    def _room(self, request: Any, num_steps: int) -> int:
        """Count the places that a burst may write to: never more than K behind the last token."""
        last = request.num_prompt_tokens + request.max_tokens + self._options.tokens
        most = num_steps * (self._options.tokens + 1)
        return max(0, min(most, int(last - request.num_computed_tokens)))

    def _launch(self, burst: Any) -> Any:
        if isinstance(burst, Burst):
            return super()._launch(burst)
        batch, num_steps, _ = burst
        self._num_flights += 1
        tokens = self._options.tokens + 1
        ids, logps, held, made = self._drafted_steps(burst)
        for request in batch:
            request.num_computed_tokens += num_steps * tokens
            request.num_output_placeholders += num_steps * tokens
        landed = None
        if ids.is_cuda:
            ids, logps, held, made = (
                part.to("cpu", non_blocking=True) for part in (ids, logps, held, made)
            )
            landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            landed.record()
        return DraftedFlight(tuple(batch), ids, logps, held, made, landed)

    def _land(self, flight: Any) -> list[Piece]:
        if isinstance(flight, Flight):
            return super()._land(flight)
        if flight.landed is not None:
            flight.landed.synchronize()
        self._num_flights -= 1
        rows = zip(
            flight.requests,
            flight.token_ids.tolist(),
            flight.logps.tolist(),
            flight.held.tolist(),
            flight.made.tolist(),
            strict=True,
        )
        pieces = [_take_back(*row) for row in rows if not row[0].is_finished()]
        self._core.abort_requests([piece.request_id for piece in pieces if piece.finish_reason])
        return pieces

    def _schedule_drafted(self, burst: DraftedBurst) -> Any:
        """Schedule the first step as vLLM would for drafts, with the blocks of all steps."""
        tokens = self._options.tokens
        rooms = {r: self._room(r, burst.num_steps) for r in burst.requests}
        scheduled = self._schedule(burst.requests, rooms)
        names = scheduled.scheduled_cached_reqs.req_ids
        scheduled.num_scheduled_tokens = dict.fromkeys(names, tokens + 1)
        scheduled.total_num_scheduled_tokens = len(names) * (tokens + 1)
        # The ids are on the card; vLLM counts these, and reads none of them.
        scheduled.scheduled_spec_decode_tokens = {name: [0] * tokens for name in names}
        return scheduled

    @torch.inference_mode()
    def _drafted_steps(self, burst: DraftedBurst) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ids and logps, (rows, steps, K + 1), and counts held and made, (rows, steps)."""
        runner, states = self._runner, self._runner.req_states
        # vLLM's kernel reads the guesses there; without a drafter of its own there is no room.
        states.draft_tokens = self._drafts
        places = [states.req_id_to_index[request.request_id] for request in burst.requests]
        rows = self._texts.batch(burst.requests, places)
        self._texts.read(rows, states.all_token_ids.gpu, states.total_len.gpu)
        made = self._guess(rows)
        # vLLM itself runs the first step, with the graphs for so many tokens a row.
        with self._graphs.in_use():
            runner.execute_model(self._schedule_drafted(burst))
        state, runner.execute_model_state = runner.execute_model_state, None
        batch, hidden = state.input_batch, state.hidden_states
        plain, found = self._sampler.is_plain(batch), []
        for step in range(burst.num_steps):
            if step:
                made = self._guess(rows)
                hidden = self._replay(
                    batch, burst.graph, self._graphs.manager, self._options.tokens + 1
                )
            sampled, logps = self._sampler(hidden, batch, plain=plain)
            sampled = sampled.view(len(burst.requests), -1)
            held, rejected = self._draft_kernels.keep(
                *(sampled, self._drafts, rows.states, made),
                *(self._texts.table, self._texts.lengths, rows.texts, rows.limits),
            )
            runner.postprocess_sampled(
                batch.idx_mapping, sampled, held, rejected, batch.query_start_loc
            )
            found.append((sampled, logps.view_as(sampled), held, made))
        ids, logps, held, made = (torch.stack(part, 1) for part in zip(*found, strict=True))
        return ids, logps, held, made

    def _guess(self, rows: DraftedBatch) -> Tensor:
        return self._draft_kernels.guess(
            self._texts.table,
            self._texts.lengths,
            rows.sources,
            self._drafts,
            rows.states,
            match=(self._options.shortest, self._options.longest),
        )


def _take_back(
    request: Any,
    steps: Sequence[Sequence[int]],
    logps: Sequence[Sequence[float]],
    held: Sequence[int],
    made: Sequence[int],
) -> Piece:
    """Give a request the tokens of its burst, and take back those that it did not gain."""
    most = sum(map(len, steps))
    request.num_output_placeholders -= most
    request.num_computed_tokens -= most - sum(held)
    ids = [token for step, count in zip(steps, held, strict=True) for token in step[:count]]
    its_logps = [x for step, count in zip(logps, held, strict=True) for x in step[:count]]
    num_new, reason = ended(request, len(ids), first_stop(request, ids))
    drafted = accepted = 0
    left = num_new
    for count, guesses in zip(held, made, strict=True):
        if left <= 0:
            break
        drafted += guesses
        accepted += max(0, min(count, left) - 1)
        left -= count
    new = ids[:num_new]
    if reason is None:
        request.append_output_token_ids(new)
    return Piece(request.request_id, new, its_logps[:num_new], reason, drafted, accepted)
