"""On a CUDA device, with CUDA graphs: what the CPU tests prove, sleeping caches, 8-bit keys."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm_cuda import Cuda, limit_of, started, token_ids
from vllm_models import logps_of

from rlkit.generation import Progress, VLLMGeneratorConfig
from rlkit.generation.base import ProgressCallback
from rlkit.generation.vllm.config import KVCacheDType, Products, is_installed
from rlkit.generation.vllm.generator import VLLMGenerator
from rlkit.generation.vllm.lora import LoRAInjector, Mode
from rlkit.generation.vllm.probe import ProbeRow, mean_difference, sample, self_test
from rlkit.generation.vllm.weights import forget_prefixes, rest, wake
from rlkit.models.views import shared_bytes
from rlkit.types import Prompt, SamplingConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]


@pytest.fixture(
    scope="module",
    params=[(KVCacheDType.auto, Products.dense), (KVCacheDType.fp8, Products.punica)],
    ids=lambda options: "-".join(options),
)
def cuda(request: pytest.FixtureRequest, starter: str) -> Iterator[Cuda]:
    with started(starter, *request.param) as running:
        yield running


def test_shared_weights(cuda: Cuda) -> None:
    assert shared_bytes(cuda.hf, cuda.views) == 269_030_016
    assert cuda.added_bytes < 2**20
    ids = token_ids(cuda.own.device)
    with torch.no_grad():
        assert torch.equal(cuda.hf(ids).logits, cuda.own(ids).logits)


def test_self_test_and_versions(cuda: Cuda, record_property: Any) -> None:
    injector = cuda.injector()
    found = self_test(injector, cuda.score, tensors=cuda.adapter(0), tolerance=limit_of(cuda))
    record_property("self_test", str(found))
    assert found.mode is Mode.in_place
    assert [verdict.problem for verdict in found.verdicts] == ["", "", ""]
    for version in range(3):
        tensors = cuda.adapter(version)
        assert injector.load(tensors, version).bound_modules == 210
        assert injector.differences(tensors) == []
        error = cuda.error(injector.request, tensors)
        record_property(f"error_{version}", error)
        assert error < limit_of(cuda)
    old, last = injector.request, cuda.adapter(3)
    assert cuda.error(old, None) > 0.6
    injector.load(last, 2)
    rows, logps = sample(cuda.llm, old)  # the old name: stale keys and values
    assert mean_difference(logps, cuda.score(last, rows)) > 0.6
    assert cuda.error(injector.request, last) < limit_of(cuda)


def test_a_batch_may_mix_rows_with_and_without_the_adapter(
    cuda: Cuda, record_property: Any
) -> None:
    """In CUDA graphs, and with a prefill that has more rows than are decoded at once."""
    from vllm import SamplingParams

    dense = cuda.products is Products.dense
    assert ("adapter by dense products" in cuda.summary) is dense
    injector = cuda.injector()
    # Twice the update: to be told from the base by more than 8-bit keys and values are off.
    tensors = {k: t * (2.0 if "lora_B" in k else 1.0) for k, t in cuda.adapter(7).items()}
    request = _loaded(injector, tensors, 0)
    for num_active in (8, 5, 0):
        used = [n < num_active for n in range(8)]
        prompts = [[(31 * n + 7 * i + i * i) % 49152 for i in range(60)] for n in range(8)]
        outputs = cuda.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            SamplingParams(max_tokens=24, ignore_eos=True, seed=1, logprobs=0, detokenize=False),
            lora_request=[request if is_used else None for is_used in used],
            use_tqdm=False,
        )
        forget_prefixes(cuda.llm)
        for adapter in (tensors, None):
            rows = [
                (prompt, output.outputs[0])
                for prompt, output, is_used in zip(prompts, outputs, used, strict=True)
                if is_used is (adapter is not None)
            ]
            if not rows:
                continue
            logps = [
                [step[token].logprob for step, token in zip(s.logprobs, s.token_ids, strict=True)]
                for _, s in rows
            ]
            right = cuda.score(adapter, [(prompt, tuple(s.token_ids)) for prompt, s in rows])
            other = cuda.score(
                None if adapter else tensors, [(p, tuple(s.token_ids)) for p, s in rows]
            )
            error = mean_difference(logps, right)
            record_property(f"error_{num_active}_{adapter is not None}", error)
            assert error < limit_of(cuda)
            assert mean_difference(logps, other) > 0.6


@pytest.mark.parametrize(
    "stops, sampling",
    [
        ((), SamplingConfig(max_completion_length=100)),
        (range(0, 49152, 64), SamplingConfig(max_completion_length=100, temperature=0.8)),
        ((), SamplingConfig(max_completion_length=40, temperature=0.7, top_k=50, top_p=0.9)),
    ],
    ids=["length", "stops", "top_p"],
)
def test_bursts_sample_what_the_scheduler_samples(
    cuda: Cuda, stops: Sequence[int], sampling: SamplingConfig, record_property: Any
) -> None:
    """12 completions in an engine for 8: rows end, others join, batches shrink.

    Token for token with plain products; Punica adds its parts up in any order, so that not even
    the same loop draws the same twice.
    """
    injector = cuda.injector()
    injector.load(cuda.adapter(6), 0)
    prompts = [
        Prompt(
            index=n, ids=tuple(token_ids(torch.device("cpu"))[0, : 20 + 9 * n].tolist()), text=""
        )
        for n in range(6)
    ]
    seeds = [[2 * n, 2 * n + 1] for n in range(6)]
    assert cuda.engine.decoder is not None and "bursts need" not in cuda.summary

    def completions(*, bursts: bool) -> list[Any]:
        looks: list[Progress] = []
        engine = cuda.engine if bursts else replace(cuda.engine, decoder=None)
        generator = VLLMGenerator(
            replace(engine, release_kv_cache=False),
            injector,
            stop_token_ids=frozenset(stops),
            config=VLLMGeneratorConfig(),
            progress=looks.append,
        )
        forget_prefixes(cuda.llm)  # both start with an empty cache
        groups = generator.generate(prompts, num_samples=2, sampling=sampling, seeds=seeds)
        record_property(f"looks_{bursts}", len(looks))
        num_tokens = sum(len(r.completion_ids) for group in groups for r in group)
        assert looks[-1] == Progress(12, 12, num_tokens)
        return [rollout for group in groups for rollout in group]

    slow, fast = completions(bursts=False), completions(bursts=True)
    if cuda.products is Products.dense:
        for a, b in zip(slow, fast, strict=True):
            assert a.finish_reason is b.finish_reason
            assert a.completion_ids == b.completion_ids
            pairs = zip(a.sampling_logps, b.sampling_logps, strict=True)
            assert max(abs(x - y) for x, y in pairs) < 1e-4
    if sampling.temperature == 1.0:
        tensors = cuda.adapter(6)
        for drawn in (slow, fast):
            rows = [ProbeRow(r.prompt.ids, r.completion_ids) for r in drawn]
            scores = [cuda.score(tensors, [row])[0] for row in rows]  # prompts differ in length
            assert mean_difference([r.sampling_logps for r in drawn], scores) < limit_of(cuda)


def test_an_interrupted_burst_leaves_the_engine_ready(cuda: Cuda) -> None:
    prompt = Prompt(index=0, ids=tuple(range(40)), text="")
    arguments: dict[str, Any] = {
        "num_samples": 4,
        "sampling": SamplingConfig(max_completion_length=100),
        "seeds": [[1, 2, 3, 4]],
    }

    def interrupt(progress: Progress) -> None:
        if progress.tokens > 100:
            raise KeyboardInterrupt

    def generator(progress: ProgressCallback | None) -> VLLMGenerator:
        return VLLMGenerator(
            replace(cuda.engine, release_kv_cache=False),
            cuda.injector(),
            stop_token_ids=frozenset(),
            config=VLLMGeneratorConfig(),
            progress=progress,
        )

    forget_prefixes(cuda.llm)
    expected = generator(None).generate([prompt], **arguments)
    with pytest.raises(KeyboardInterrupt):
        generator(interrupt).generate([prompt], **arguments)
    forget_prefixes(cuda.llm)
    again = generator(None).generate([prompt], **arguments)
    for a, b in zip(expected[0], again[0], strict=True):
        assert a.completion_ids == b.completion_ids


def test_200_injections_take_no_memory(cuda: Cuda, record_property: Any) -> None:
    injector = cuda.injector()
    adapters = [cuda.adapter(seed) for seed in (1, 2)]
    for version, tensors in enumerate(adapters):  # each has a table of addresses
        assert cuda.error(_loaded(injector, tensors, version), tensors) < limit_of(cuda)
    gc.collect()  # what earlier tests left behind
    before = torch.cuda.memory_allocated()
    seconds, taken = [], []
    for version in range(200):
        seconds.append(injector.load(adapters[version % 2], version).seconds)
        taken.append(torch.cuda.memory_allocated() - before)
        if version % 50 == 0:
            assert cuda.error(injector.request, adapters[version % 2]) < limit_of(cuda)
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert max(taken) == 0
    record_property("sync_ms", 1e3 * statistics.median(seconds))


def test_a_sleeping_cache_leaves_the_trainer_its_weights(cuda: Cuda, record_property: Any) -> None:
    injector = cuda.injector()
    tensors = cuda.adapter(5)
    request = _loaded(injector, tensors, 0)
    # Nothing cached, here and after the sleep: with other batches bfloat16 rounds otherwise.
    forget_prefixes(cuda.llm)
    before = sample(cuda.llm, request)
    ids = token_ids(cuda.own.device)
    with torch.no_grad():
        logits = cuda.hf(ids).logits
    free = torch.cuda.mem_get_info()[0]
    rest(cuda.engine)
    rest(cuda.engine)
    gained = torch.cuda.mem_get_info()[0] - free
    record_property("freed_bytes", gained)
    assert gained >= 2**30
    # Somebody else uses the memory in between, and leaves NaN in it.
    held = torch.cuda.memory_reserved()
    ballast = torch.full((2**29,), float("nan"), dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        assert torch.equal(cuda.hf(ids).logits, logits)
    del ballast
    assert torch.cuda.memory_reserved() >= held + 2**30  # PyTorch keeps it: in vLLM's way
    wake(cuda.engine)
    assert torch.cuda.memory_reserved() < held + 2**28
    after = sample(cuda.llm, request)
    if cuda.products is Products.dense:
        assert after == before
    # Punica adds in any order: other roundings, other tokens. Of those that it drew, the trainer's
    # logps must be as near as 8-bit keys allow; NaN or a wrong weight would be far off.
    assert mean_difference(after[1], cuda.score(tensors, after[0])) < limit_of(cuda)
    assert injector.differences(tensors) == []
    assert not injector.load(tensors, 1).rebound


def test_a_step_on_the_views_is_a_step_of_vllm(cuda: Cuda) -> None:
    name = "model.norm.weight"  # halving it doubles the temperature: large, and no more rounding
    kept = cuda.views[name].clone()
    rows, logps = sample(cuda.llm, None)
    assert mean_difference(logps, logps_of(cuda.own, rows)) < limit_of(cuda)
    with torch.no_grad():
        for model in (cuda.hf, cuda.own):
            model.get_parameter(name).mul_(0.5)
    forget_prefixes(cuda.llm)
    assert mean_difference(logps, logps_of(cuda.own, rows)) > 0.6
    assert cuda.error(None, None) < limit_of(cuda)  # in CUDA graphs that were captured before
    with torch.no_grad():
        for model in (cuda.hf, cuda.own):
            model.get_parameter(name).copy_(kept)
    forget_prefixes(cuda.llm)


def _loaded(injector: LoRAInjector, tensors: dict[str, Tensor], version: int) -> Any:
    injector.load(tensors, version)
    return injector.request
