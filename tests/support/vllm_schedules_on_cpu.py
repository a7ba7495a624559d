"""vLLM's scheduler and rlkit's bursts over a made-up model: `python vllm_schedules_on_cpu.py FOLDER
CALLS`, for test_vllm_burst.py.

Steps are scheduled ahead, as on CUDA. In place of the model stands `Model`, which samples what a
row's seed and position say, and fails where attention would read another row's keys. So a call
costs milliseconds, and every completion is known: hundreds of calls with random prompts, stop
tokens, lengths, rows, caches too small for them, and interrupts.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig
from vllm_v2_on_cpu import accept_triton, schedule_ahead

from rlkit.generation import Progress, VLLMGeneratorConfig
from rlkit.generation.stream import StreamRequest
from rlkit.generation.vllm.engine import Engine, start_engine
from rlkit.generation.vllm.generator import VLLMGenerator
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.types import FinishReason, Prompt, Rollout, SamplingConfig

_LONGEST_PROMPT, _LONGEST_COMPLETION, _ROWS = 80, 100, 8
_WORDS = 250


def sampled(seed: int, number: int) -> int:
    """Token `number` of the completion of a row with `seed`."""
    return random.Random(1_000_003 * seed + number).randrange(1, _WORDS)


def completion(seed: int, length: int, stops: frozenset[int]) -> list[int]:
    """All of them, as `generate` is to return them."""
    ids: list[int] = []
    while len(ids) < length and not stops.intersection(ids[-1:]):
        ids.append(sampled(seed, len(ids)))
    return ids


@dataclass
class _Row:
    ids: list[int]
    num_prompt: int
    seed: int
    blocks: list[int]
    num_computed: int
    prefixes: list[int] = field(default_factory=lambda: [0])
    """Hash of the first n ids: what the keys of token n - 1 depend on."""

    def prefix(self, count: int) -> int:
        while len(self.prefixes) <= count:
            self.prefixes.append(hash((self.prefixes[-1], self.ids[len(self.prefixes) - 1])))
        return self.prefixes[count]


class Model:
    """The state that vLLM's V2 runner keeps of its requests, and a cache that holds hashes for
    keys."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._rows: dict[str, _Row] = {}
        self._cache: dict[tuple[int, int], int] = {}
        self._output: Any = None

    def execute_model(self, scheduled: Any, non_block: bool = False) -> Future[Any]:
        """Do as vLLM's executor does: the output comes from `sample_tokens`."""
        from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

        self._take(scheduled)
        drawn = self._step(scheduled.num_scheduled_tokens)
        ids = list(drawn)
        column = np.array([[drawn[i] or 0] for i in ids])
        self._output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: n for n, name in enumerate(ids)},
            sampled_token_ids=[[token] if token else [] for token in drawn.values()],
            logprobs=LogprobsLists(column, -column.astype(np.float32), column) if ids else None,
        )
        return _done(None if ids else self._output)

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Future[Any]:
        return _done(self._output)

    def burst(self, scheduled: Any, num_steps: int, graph: Any) -> tuple[Tensor, Tensor]:
        """Do as `Decoder._steps` does."""
        self._take(scheduled)
        counts = scheduled.num_scheduled_tokens
        steps = [list(self._step(counts).values()) for _ in range(num_steps)]
        token_ids = torch.tensor(steps).T.contiguous()
        return token_ids, -token_ids.float()

    def _take(self, scheduled: Any) -> None:
        for name in scheduled.finished_req_ids | (scheduled.preempted_req_ids or set()):
            self._rows.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            assert new.req_id not in self._rows
            self._rows[new.req_id] = _Row(
                ids=list(new.prefill_token_ids),
                num_prompt=len(new.prompt_token_ids),
                seed=new.sampling_params.seed,
                blocks=list(new.block_ids[0]),
                num_computed=new.num_computed_tokens,
            )
        assert len(self._rows) <= _ROWS, "the runner has no more places"
        cached = scheduled.scheduled_cached_reqs
        columns = zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True)
        for name, num_computed, blocks in columns:
            assert self._rows[name].num_computed == num_computed
            self._rows[name].blocks += blocks[0] if blocks else []

    def _step(self, counts: Mapping[str, int]) -> dict[str, int | None]:
        """Compute so many tokens of each row; what was sampled, None before the prompt's end."""
        rows = {name: self._rows[name] for name in counts}
        for name, row in rows.items():
            for at in range(row.num_computed, row.num_computed + counts[name]):
                self._cache[self._slot(row, at)] = row.prefix(at + 1)
            row.num_computed += counts[name]
        drawn: dict[str, int | None] = {}
        for name, row in rows.items():
            for at in range(row.num_computed):
                assert self._cache[self._slot(row, at)] == row.prefix(at + 1), "a key of others"
            drawn[name] = None
            if row.num_computed == len(row.ids):
                drawn[name] = sampled(row.seed, len(row.ids) - row.num_prompt)
                row.ids.append(drawn[name] or 0)
        return drawn

    def _slot(self, row: _Row, at: int) -> tuple[int, int]:
        return row.blocks[at // self._block_size], at % self._block_size


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class Turns:
    """Streams episodes: each has some turns, and a turn is told that it may begin a bit late."""

    def __init__(
        self, prompts: Sequence[Prompt], turns: int, num_samples: int, length: int
    ) -> None:
        self._prompts, self._turns, self._length = prompts, turns, length
        self._ready = [n for n in range(len(prompts)) for _ in range(num_samples)]
        self._late: list[int] = []
        self._keys: list[int] = []
        self.joins = 0
        self.done: list[tuple[int, Rollout]] = []

    def more(self, ended: Sequence[tuple[int, Rollout]], *, idle: bool) -> Sequence[StreamRequest]:
        """Return turns that waited for a call or two; all of them when the engine is idle."""
        self.done += ended
        # The key tells prompt and turn: every fifth completion is the last of its episode.
        again = [key for key, _ in ended if key % 5 < self._turns]
        ready, self._ready = self._ready, self._late
        self._late = [(key // 5 + 1) * 5 + key % 5 + 1 for key in again]
        if idle:
            ready, self._ready, self._late = ready + self._ready + self._late, [], []
        self.joins += bool(ready and not idle)
        requests = []
        for key in ready:
            prompt = self._prompts[key % len(self._prompts)]
            self._keys.append(key)
            requests.append(StreamRequest(key, prompt, key % 39 + 1))
        return requests

    def check(self, stops: frozenset[int]) -> None:
        """Every completion is what its seed says, and each of them came once."""
        assert sorted(key for key, _ in self.done) == sorted(self._keys)
        for key, rollout in self.done:
            expected = completion(key % 39 + 1, self._length, stops)
            assert list(rollout.completion_ids) == expected
            assert list(rollout.sampling_logps) == [-float(token) for token in expected]


def call(engine: Engine, scheduler: Any, rng: random.Random) -> int:
    """One random call of `generate`, checked; how often the cache was too small for its rows."""
    decoder, preemptions = engine.decoder, 0

    def count(*arguments: Any, **options: Any) -> None:
        nonlocal preemptions
        preemptions += 1
        type(scheduler)._preempt_request(scheduler, *arguments, **options)

    scheduler._preempt_request = count
    scheduler.max_num_running_reqs = rng.choice([1, 3, 4, _ROWS])
    scheduler.max_num_scheduled_tokens = rng.choice([8, 24, 2048])
    share_without_graph = rng.choice([0.0, 0.0, 0.2])
    vars(decoder)["_graph"] = lambda _: None if rng.random() < share_without_graph else "graph"
    stops = frozenset(rng.sample(range(1, _WORDS), rng.choice([0, 1, 4, 20, 60])))
    length = rng.choice([1, 2, 15, 16, 17, 32, 33, 37, 64, _LONGEST_COMPLETION])
    num_prompts, num_samples = rng.randrange(1, 6), rng.randrange(1, 5)
    prompts = [
        Prompt(
            index=n,
            ids=tuple(7 * rng.randrange(2) + i for i in range(rng.choice([1, 5, 31, 32, 64, 79]))),
            text="",
        )
        for n in range(num_prompts)
    ]
    seeds = [[rng.randrange(1, 40) for _ in range(num_samples)] for _ in prompts]
    stop_at = rng.choice([10**6] * 4 + [rng.randrange(1, 200)])

    def interrupt(progress: Progress) -> None:
        if progress.tokens > stop_at:
            raise KeyboardInterrupt

    if rng.random() < 0.2:
        engine.decoder = None
    generator = VLLMGenerator(
        engine,
        SimpleNamespace(request=None),
        stop_token_ids=stops,
        config=VLLMGeneratorConfig(),
        progress=interrupt,
    )
    pool = scheduler.kv_cache_manager.block_pool
    groups: Sequence[Sequence[Rollout]] = []
    most_blocks = rng.choice([10**6, 10**6, rng.randrange(6, 12)])
    sampling = SamplingConfig(max_completion_length=length)
    streamed = None
    with _fewer_blocks(pool, most_blocks), suppress(KeyboardInterrupt):
        if rng.random() < 0.4:
            streamed = Turns(prompts, rng.randrange(1, 5), num_samples, length)
            generator.stream(streamed, sampling=sampling)
            streamed.check(stops)
        else:
            groups = generator.generate(
                prompts, num_samples=num_samples, sampling=sampling, seeds=seeds
            )
    engine.decoder = decoder
    for group, row_seeds in zip(groups, seeds, strict=bool(groups)):
        for rollout, seed in zip(group, row_seeds, strict=True):
            expected = completion(seed, length, stops)
            ended = FinishReason.stop if expected[-1] in stops else FinishReason.length
            assert list(rollout.completion_ids) == expected and rollout.finish_reason is ended
            assert list(rollout.sampling_logps) == [-float(token) for token in expected]
    assert not scheduler.requests and pool.get_usage() == 0.0
    if rng.random() < 0.5:
        assert engine.llm.reset_prefix_cache()
    return preemptions


@contextmanager
def _fewer_blocks(pool: Any, most: int) -> Iterator[None]:
    held = pool.get_new_blocks(max(0, pool.get_num_free_blocks() - most))
    yield
    pool.free_blocks(held)


def main(folder: str, num_calls: int) -> None:
    accept_triton()
    schedule_ahead()
    spec = EngineSpec(
        location=folder,
        revision=None,
        hf_config=AutoConfig.from_pretrained(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_prompt_length=_LONGEST_PROMPT,
        max_completion_length=_LONGEST_COMPLETION,
        rows=_ROWS,
        lora_rank=0,
        lora_modules=(),
    )
    engine = start_engine(VLLMGeneratorConfig(max_num_seqs=_ROWS), spec, say=print)
    core = engine.llm.llm_engine.engine_core.engine_core
    assert core.batch_queue_size == 2 and engine.decoder is not None
    model = Model(core.scheduler.block_size)
    vars(core.model_executor).update(
        execute_model=model.execute_model, sample_tokens=model.sample_tokens
    )
    bursts: list[int] = []

    def burst(scheduled: Any, num_steps: int, graph: Any) -> tuple[Tensor, Tensor]:
        bursts.append(num_steps)
        return model.burst(scheduled, num_steps, graph)

    vars(engine.decoder)["_steps"] = burst
    preemptions = 0
    for seed in range(num_calls):
        try:
            preemptions += call(engine, core.scheduler, random.Random(seed))
        except BaseException:
            print(f"call {seed}", file=sys.stderr)
            raise
    assert preemptions > num_calls // 20 and len(bursts) > 2 * num_calls
    print(f"{num_calls} calls, {preemptions} preemptions, {len(bursts)} bursts")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
