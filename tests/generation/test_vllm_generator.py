"""generator=vllm on the CPU with the starter model, against transformers and generator=hf."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlkit.generation import (
    HFGeneratorConfig,
    Progress,
    VLLMGeneratorConfig,
    sample_seed,
)
from rlkit.generation.hf import HFGenerator
from rlkit.generation.sampling import sampling_probs
from rlkit.generation.vllm.config import VLLMSamplingOptions, is_installed
from rlkit.training.stopping import Interrupted
from rlkit.types import FinishReason, Prompt, PromptRequest, Rollout, SamplingConfig

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")

TEXTS = ("The capital of France is the city of", "Count: one two three four five six seven")
STOP_IDS = frozenset({0, 2})


class NoAdapter:
    """The base model: what an injector is before it has loaded anything."""

    request = None


@pytest.fixture(scope="module")
def tokenizer(starter: str) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(starter)
    return loaded


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return [
        Prompt(index=n, ids=tuple(tokenizer(text)["input_ids"]), text=text)
        for n, text in enumerate(TEXTS)
    ]


def vllm_generator(engine: Any, **options: Any) -> Any:
    from rlkit.generation.vllm.generator import VLLMGenerator

    config = options.pop("config", VLLMGeneratorConfig())
    return VLLMGenerator(engine, NoAdapter(), stop_token_ids=STOP_IDS, config=config, **options)  # type: ignore[arg-type]


def flat(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]


def seeds_of(run_seed: int, prompts: Sequence[Prompt], num_samples: int) -> list[list[int]]:
    return [[sample_seed(run_seed, 0, p.index, i) for i in range(num_samples)] for p in prompts]


def logp_errors(model: PreTrainedModel, rollouts: Sequence[Rollout], s: SamplingConfig) -> Any:
    """|sampling logp - log p(token)| under the distribution that `s` defines, of every token."""
    errors = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt.ids + rollout.completion_ids])
        first, count = len(rollout.prompt.ids) - 1, len(rollout.completion_ids)
        with torch.no_grad():
            logits = model(ids).logits[0, first : first + count].float()
        logps = sampling_probs(logits, s).log()
        picked = logps.gather(1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(1)
        errors.append((picked - torch.tensor(rollout.sampling_logps)).abs())
    return torch.cat(errors)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(max_completion_length=24),
        SamplingConfig(max_completion_length=12, temperature=0.7, top_p=0.9, top_k=20),
        SamplingConfig(max_completion_length=12, temperature=1.3, min_p=0.1),
    ],
    ids=["plain", "top_p_top_k", "min_p"],
)
def test_sampling_logps_are_those_of_the_stated_distribution(
    engine: Any, starter_hf: PreTrainedModel, prompts: list[Prompt], sampling: SamplingConfig
) -> None:
    groups = vllm_generator(engine).generate(
        prompts, num_samples=3, sampling=sampling, seeds=seeds_of(0, prompts, 3)
    )
    rollouts = [rollout for group in groups for rollout in group]
    errors = logp_errors(starter_hf, rollouts, sampling)
    assert len(errors) > 50
    assert errors.mean() <= 1e-4


@pytest.mark.parametrize("stop", [(), (".",), ("Paris",), ("\n",), ("t i", "is")], ids=repr)
def test_greedy_completions_end_as_with_generator_hf(
    engine: Any,
    starter_hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    stop: tuple[str, ...],
) -> None:
    """Stop tokens, stop strings inside tokens and across them, and the length limit."""
    hf = HFGenerator(
        starter_hf,
        tokenizer,
        activate=lambda _: contextlib.nullcontext(),
        stop_token_ids=STOP_IDS,
        config=HFGeneratorConfig(),
    )
    sampling = SamplingConfig(max_completion_length=24, top_k=1, stop=stop)
    arguments: dict[str, Any] = {
        "num_samples": 1,
        "sampling": sampling,
        "seeds": seeds_of(0, prompts, 1),
    }
    ours = vllm_generator(engine).generate(prompts, **arguments)
    truth = hf.generate(prompts, **arguments)
    for (mine,), (other,) in zip(ours, truth, strict=True):
        assert mine.completion_ids == other.completion_ids
        assert mine.finish_reason is other.finish_reason


def test_seeds_decide_the_samples_and_nothing_else_does(engine: Any, prompts: list[Prompt]) -> None:
    generator = vllm_generator(engine)
    sampling = SamplingConfig(max_completion_length=8)

    def ids(run_seed: int, chosen: list[Prompt]) -> list[tuple[int, ...]]:
        groups = generator.generate(
            chosen, num_samples=3, sampling=sampling, seeds=seeds_of(run_seed, chosen, 3)
        )
        return [rollout.completion_ids for group in groups for rollout in group]

    first = ids(0, prompts)
    random.random(), torch.rand(1)
    assert ids(0, prompts) == first
    assert ids(0, prompts[1:]) == first[3:], "the rest of the batch must not matter"
    assert len(set(first)) == len(first), "samples of one prompt must differ"
    assert set(ids(1, prompts)).isdisjoint(first)


def test_samples_come_in_order_with_reasons_version_and_progress(
    engine: Any, prompts: list[Prompt]
) -> None:
    seen: list[Progress] = []
    generator = vllm_generator(engine, progress=seen.append)
    longer = replace(prompts[0], ids=prompts[0].ids * 3, index=9)
    groups = generator.generate(
        [longer, *prompts],
        num_samples=2,
        sampling=SamplingConfig(max_completion_length=5),
        seeds=[[1, 2], [3, 4], [5, 6]],
    )
    assert [[(r.prompt.index, r.sample_index) for r in group] for group in groups] == [
        [(9, 0), (9, 1)],
        [(0, 0), (0, 1)],
        [(1, 0), (1, 1)],
    ]
    rollouts = [r for group in groups for r in group]
    for rollout in rollouts:
        ended = rollout.completion_ids[-1] in STOP_IDS
        assert rollout.finish_reason is (FinishReason.stop if ended else FinishReason.length)
        assert len(rollout.sampling_logps) == len(rollout.completion_ids) <= 5
    assert seen[-1] == Progress(6, 6, sum(len(r.completion_ids) for r in rollouts))


@pytest.mark.parametrize("stop", [(), ("@@",)], ids=["core", "engine"])
def test_prompts_are_taken_as_completions_end_and_change_no_sample(
    engine: Any, prompts: list[Prompt], stop: tuple[str, ...]
) -> None:
    """Six prompts of two samples in an engine that is full with three completions."""
    seen: list[Progress] = []
    generator = vllm_generator(
        engine, config=VLLMGeneratorConfig(max_num_seqs=3), progress=seen.append
    )
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    wanted = [replace(prompts[n % 2], index=n, limit=2 + 3 * n) for n in range(6)]
    seeds = seeds_of(7, wanted, 2)
    arguments: dict[str, Any] = {
        "num_samples": 2,
        "sampling": SamplingConfig(max_completion_length=20, stop=stop),
    }
    expected = generator.generate(wanted, seeds=seeds, **arguments)
    under_way: list[int] = []  # completions that vLLM had at each request

    def requests() -> Iterator[PromptRequest]:
        for request in zip(wanted, seeds, strict=True):
            under_way.append(len(scheduler.requests))
            yield PromptRequest(*request)

    found = generator.generate_from(requests(), **arguments)
    for mine, other in zip(flat(found), flat(expected), strict=True):
        # Other rows beside it round otherwise, and no more than that.
        assert mine.sampling_logps == pytest.approx(other.sampling_logps, abs=1e-4)
        assert replace(mine, sampling_logps=()) == replace(other, sampling_logps=())
    assert generator.prompts_at_once(2) == 2  # of two samples: the first two fill it
    assert under_way[:2] == [0, 0]
    assert all(0 < count < 3 for count in under_way[2:])
    assert (seen[-1].rows_done, seen[-1].rows) == (12, 12)


def test_no_request_gives_no_rollout(engine: Any) -> None:
    generator = vllm_generator(engine, config=VLLMGeneratorConfig(max_num_seqs=3))
    sampling = SamplingConfig(max_completion_length=4)
    assert generator.generate_from(iter([]), num_samples=2, sampling=sampling) == []
    # An engine that chose its own batch may have chosen another than those of the other ranks.
    assert vllm_generator(engine).prompts_at_once(2) == 0


def test_a_stop_leaves_the_engine_ready_for_the_next_call(
    engine: Any, prompts: list[Prompt]
) -> None:
    looks = 0

    def interrupt(_: Progress) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Interrupted("SIGINT")

    arguments: dict[str, Any] = {
        "num_samples": 2,
        "sampling": SamplingConfig(max_completion_length=12),
        "seeds": seeds_of(0, prompts, 2),
    }
    expected = vllm_generator(engine).generate(prompts, **arguments)
    with pytest.raises(Interrupted):
        vllm_generator(engine, progress=interrupt).generate(prompts, **arguments)
    assert looks == 3
    assert not engine.llm.llm_engine.has_unfinished_requests()
    again = vllm_generator(engine).generate(prompts, **arguments)
    for a, b in zip(expected, again, strict=True):
        assert [r.completion_ids for r in a] == [r.completion_ids for r in b]


def test_further_fields_reach_vllm(engine: Any, prompts: list[Prompt]) -> None:
    sampling = VLLMSamplingOptions(extra={"bad_words": [" Paris"], "ignore_eos": True})
    generator = vllm_generator(engine, config=VLLMGeneratorConfig(sampling=sampling))
    arguments: dict[str, Any] = {
        "num_samples": 1,
        "sampling": SamplingConfig(max_completion_length=2, top_k=1),
        "seeds": [[0]],
    }
    ((plain,),) = vllm_generator(engine).generate(prompts[:1], **arguments)
    ((without,),) = generator.generate(prompts[:1], **arguments)
    assert without.completion_ids[0] != plain.completion_ids[0]


def test_prompts_that_leave_no_room_are_refused(engine: Any, prompts: list[Prompt]) -> None:
    room = 512 - len(prompts[0].ids)
    sampling = SamplingConfig(max_completion_length=room + 1)
    with pytest.raises(ValueError, match=f"must be <= {room} for prompt 0 .*context is 512"):
        vllm_generator(engine).generate(prompts[:1], num_samples=1, sampling=sampling, seeds=[[0]])


def test_the_start_left_the_process_as_it_was(engine: Any) -> None:
    """What vLLM seeds, switches and replaces: put back by `process_state_kept`."""
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.set_num_threads.__module__ == "torch"
    assert torch.get_default_dtype() is torch.float32


def test_an_architecture_that_vllm_lacks_says_what_to_set(starter: str) -> None:
    from rlkit.generation.vllm.engine import start_engine
    from rlkit.generation.vllm.spec import EngineSpec

    hf_config = AutoConfig.from_pretrained(starter)
    hf_config.architectures = ["NoSuchForCausalLM"]
    spec = EngineSpec(
        location=starter,
        revision=None,
        hf_config=hf_config,
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_prompt_length=32,
        max_completion_length=8,
        rows=1,
        lora_rank=16,
        lora_modules=("q_proj",),
    )
    with pytest.raises(ValueError, match="has no NoSuchForCausalLM: set generator=hf"):
        start_engine(VLLMGeneratorConfig(), spec, say=lambda _: None)
    longer = replace(spec, max_prompt_length=10**6)
    with pytest.raises(ValueError, match=r"max_completion_length must be <= \d+, the model's"):
        start_engine(VLLMGeneratorConfig(), longer, say=lambda _: None)
