"""`VLLMGenerator` samples with a vLLM engine in this process, under the adapter of the trainer."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlkit.generation.base import Progress, ProgressCallback, check_request, check_sampling
from rlkit.generation.batching import SamplingRow, make_rows
from rlkit.generation.stream import StreamSource
from rlkit.generation.vllm.config import VLLMGeneratorConfig, takes_bursts
from rlkit.generation.vllm.engine import Engine
from rlkit.generation.vllm.joining import Joining, as_asked, in_waves
from rlkit.generation.vllm.life import reason
from rlkit.generation.vllm.loop import EngineRequest, through_core, through_engine
from rlkit.generation.vllm.piece import Piece
from rlkit.generation.vllm.weights import forget_prefixes, rest, wake
from rlkit.types import FinishReason, GeneratorDied, Prompt, PromptRequest, Rollout, SamplingConfig

if TYPE_CHECKING:
    from rlkit.generation.vllm.lora import Injector

_log = logging.getLogger(__name__)


class VLLMGenerator:
    """This generator implements `rlkit.types.Generator` with a vLLM engine in this process.

    Every sample is a request of its own with its own seed; samples of one prompt share its blocks
    of the prefix cache. Requests carry the version of the adapter in their LoRA's name. vLLM hashes
    that name into the blocks, so no key or value can come from another policy. The cache is emptied
    with each load all the same, so that samples do not depend on what was asked before it.

    Sampling logps are vLLM's `processed_logprobs`: those of the distribution defined in
    `rlkit.generation.sampling`, `extra` fields of the sampling options included.
    """

    def __init__(
        self,
        engine: Engine,
        injector: Injector,
        *,
        stop_token_ids: frozenset[int],
        config: VLLMGeneratorConfig,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Sample with `engine`, whose adapter `injector` edits; both end with `close`.

        `progress` is called after every engine step, or burst of steps; what it raises ends the
        call of `generate`.
        """
        _log.info("vLLM while starting:\n%s", engine.start_log)
        self._engine = engine
        self._injector = injector
        self._stop_token_ids = stop_token_ids
        self._config = config
        self._progress = progress
        self._version = 0

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Copy `tensors` into vLLM's buffers and tag the rollouts with `version`.

        What is sampled next depends on no request before: cached prefixes are forgotten. With them
        a prompt's rest is computed in another batch, which rounds otherwise in 16 bits.
        """
        wake(self._engine)
        self._injector.load(tensors, version)
        forget_prefixes(self._engine.llm)
        self._version = version

    def close(self) -> None:
        """End the engine; idempotent. `generate` then raises."""
        self._engine.close()

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample completions of each prompt under the policy that was loaded last.

        Args:
            prompts: The prompts.
            num_samples: Samples of each prompt, >= 1.
            sampling: The sampling options.
            seeds: The seed of each sample: [prompt][sample].

        Returns:
            The rollouts: [prompt][sample].

        Raises:
            ValueError: A prompt is empty or leaves no room for `max_completion_length`, or an
                option is out of range.
            FloatingPointError: A logp is not finite; the message names the prompt.
            GeneratorDied: vLLM raised.
            RuntimeError: The generator is closed.
        """
        self._check(sampling)
        check_request(prompts, num_samples, sampling, seeds, context=self._engine.max_model_len)
        rows = make_rows(prompts, num_samples=num_samples, seeds=seeds)
        rows = self._sample(in_waves(iter([rows]), most_live=1), sampling)
        return self._groups(rows, len(prompts))

    def prompts_at_once(self, num_samples: int) -> int:
        """Return the prompts of `num_samples` samples each that fill the engine's batch.

        It is 0 where the size of the batch was left to the engine: ranks might choose otherwise.
        """
        return -(-self._config.max_num_seqs // max(num_samples, 1))

    def generate_from(
        self, requests: Iterator[PromptRequest], *, num_samples: int, sampling: SamplingConfig
    ) -> list[list[Rollout]]:
        """Sample prompts that are taken on the way, as `generate` does with those it is given.

        The engine's batch is kept full: the next prompt is taken when fewer completions are under
        way than it holds. Those that are left wait where another rank can take them.

        Args:
            requests: The next one is taken when there is room, not before.
            num_samples: Samples of each prompt, >= 1.
            sampling: The sampling options.

        Returns:
            The rollouts: [taken][sample].

        Raises:
            ValueError: As `generate`.
            FloatingPointError: As `generate`.
            GeneratorDied: vLLM raised.
            RuntimeError: The generator is closed.
        """
        self._check(sampling)
        taken = 0

        def waves() -> Iterator[list[SamplingRow]]:
            nonlocal taken
            context = self._engine.max_model_len
            for prompt, seeds in requests:
                check_request([prompt], num_samples, sampling, [seeds], context=context)
                rows = make_rows([prompt], num_samples=num_samples, seeds=[seeds])
                for row in rows:
                    row.prompt_number = taken
                taken += 1
                yield rows

        joining = in_waves(waves(), most_live=self._config.max_num_seqs)
        return self._groups(self._sample(joining, sampling), taken)

    def stream(self, source: StreamSource, *, sampling: SamplingConfig) -> None:
        """Sample what `source` asks for; completions join while others are decoded.

        `source` is asked after every engine step, or burst of steps. Raises as `generate` does.
        """
        self._check(sampling)
        context = self._engine.max_model_len
        self._sample(as_asked(source, sampling, version=self._version, context=context), sampling)

    def _check(self, sampling: SamplingConfig) -> None:
        if self._engine.llm is None:
            raise RuntimeError("generate() after close()")
        check_sampling(sampling)

    def _groups(self, rows: Sequence[SamplingRow], count: int) -> list[list[Rollout]]:
        rollouts: list[list[Rollout]] = [[] for _ in range(count)]
        for row in rows:
            rollouts[row.prompt_number].append(row.rollout(self._version))
        return rollouts

    def _sample(self, joining: Joining, sampling: SamplingConfig) -> list[SamplingRow]:
        """Sample the rows that join to their ends; return them in the order of their joining."""
        wake(self._engine)
        # No id comes twice on an engine: vLLM schedules a step ahead. When a completion has met a
        # stop token, that step comes back in the next call. A request of its id would get it.
        call = next(self._engine.call_numbers)
        by_id: dict[str, SamplingRow] = {}
        queue: deque[EngineRequest] = deque()
        num_done = num_tokens = 0

        def fill(ended: Sequence[SamplingRow]) -> None:
            for row in joining(ended, live=len(by_id) - num_done):
                name = f"{call}-{len(by_id)}"
                by_id[name] = row
                params = self._sampling_params(sampling, row)
                queue.append(EngineRequest(name, list(row.prompt.ids), params))

        fill(())
        # Every row has a seed; on a CPU vLLM draws from the process's generator as well.
        # Closed whatever happens: the engine is idle afterwards and can take the next call.
        with (
            torch.random.fork_rng(devices=[]),
            closing(self._pieces(queue, sampling)) as steps,
        ):
            for pieces in _alive(steps):
                ended = []
                for piece in pieces:
                    row = by_id[piece.request_id]
                    _extend(row, piece)
                    num_tokens += len(piece.token_ids)
                    if piece.finish_reason is not None:
                        ended.append(row)
                num_done += len(ended)
                fill(ended)
                if self._progress is not None:
                    self._progress(Progress(num_done, len(by_id), num_tokens))
        rest(self._engine)
        return list(by_id.values())

    def _pieces(
        self, requests: deque[EngineRequest], sampling: SamplingConfig
    ) -> Generator[list[Piece], None, None]:
        llm, lora = self._engine.llm, self._injector.request
        if sampling.stop or not self._engine.past_output_processor:
            return through_engine(llm, requests, lora)
        decoder = self._engine.decoder if takes_bursts(self._config.sampling) else None
        return through_core(llm, requests, lora, decoder)

    def _sampling_params(self, sampling: SamplingConfig, row: SamplingRow) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        extra = dict(self._config.sampling.extra)
        stops = [] if extra.pop("ignore_eos", False) else sorted(self._stop_token_ids)
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=row.most_tokens(sampling.max_completion_length),
            seed=row.seed,
            # The one set of stop tokens is rlkit's; vLLM knows one end-of-sequence token only.
            ignore_eos=True,
            stop_token_ids=stops,
            stop=list(sampling.stop) or None,
            include_stop_str_in_output=True,
            detokenize=bool(sampling.stop),
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
            **extra,
        )


def _alive(steps: Iterator[list[Piece]]) -> Iterator[list[Piece]]:
    """Yield the steps of an engine; whatever it raises says that it died."""
    while True:
        try:
            pieces = next(steps)
        except StopIteration:
            return
        except Exception as error:
            said = f"{type(error).__name__}: {reason(error)}"
            raise GeneratorDied(f"vLLM died while sampling ({said})") from error
        yield pieces


def _extend(row: SamplingRow, piece: Piece) -> None:
    """Append new tokens to their row."""
    if not all(map(math.isfinite, piece.logps)):
        offset = next(n for n, logp in enumerate(piece.logps) if not math.isfinite(logp))
        raise FloatingPointError(
            f"logits must be finite, got NaN or inf for token {len(row.ids) + offset} of "
            f"sample {row.sample_index} of prompt {row.prompt.index} "
            f"({row.prompt.text[-60:]!r})"
        )
    row.ids += piece.token_ids
    row.logps += piece.logps
    row.drafted += piece.drafted
    row.accepted += piece.accepted
    if piece.finish_reason is not None:
        row.finish_reason = _FINISH[piece.finish_reason]


_FINISH = {"stop": FinishReason.stop, "length": FinishReason.length}
