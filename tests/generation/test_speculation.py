"""Guesses of the next tokens: the samples are those without them, whatever is guessed.

The models are float64, so a pass over several tokens cannot round a token away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from generation_models import VOCAB, tiny_model
from tiny_tokenizers import byte_tokenizer

from rlkit.generation import (
    HFGeneratorConfig,
    VLLMGeneratorConfig,
    VLLMServerConfig,
    sample_seed,
)
from rlkit.generation.hf import HFGenerator
from rlkit.generation.hf_run import Run
from rlkit.generation.sampling import uniforms
from rlkit.generation.speculation import (
    DraftHistory,
    DraftIndex,
    DraftSource,
    SpeculationKind,
    SpeculationOptions,
    accepted_drafts,
)
from rlkit.generation.vllm.config import Accelerate, Compilation, VLLMSamplingOptions
from rlkit.tabular.config import TabularGeneratorConfig
from rlkit.types import FinishReason, Prompt, Rollout, SamplingConfig

STOPS = frozenset(range(290, VOCAB))
PROMPTS = [
    Prompt(index=n, ids=tuple((31 * n + 5 * k) % 250 for k in range(length)), text="")
    for n, length in enumerate((3, 14, 6, 9))
]
ON = SpeculationKind.ngram


def options(**named: Any) -> SpeculationOptions:
    chosen: dict[str, Any] = {"kind": ON, "shortest": 1} | named
    return SpeculationOptions(**chosen)


def generator(
    speculation: SpeculationOptions | None = None, family: str = "llama", **named: Any
) -> HFGenerator:
    from contextlib import nullcontext

    if speculation is not None:
        named["speculation"] = speculation
    model = tiny_model(family)
    return HFGenerator(
        model,
        byte_tokenizer(eos_token="<end>"),
        activate=lambda _: nullcontext(),
        stop_token_ids=STOPS,
        config=HFGeneratorConfig(**named),
    )


def generate(
    of: HFGenerator, sampling: SamplingConfig, *, prompts: Sequence[Prompt] = PROMPTS, step: int = 0
) -> list[Rollout]:
    seeds = [[sample_seed(7, step, p.index, s) for s in range(4)] for p in prompts]
    groups = of.generate(prompts, num_samples=4, sampling=sampling, seeds=seeds)
    return [rollout for group in groups for rollout in group]


def same(found: Sequence[Rollout], truth: Sequence[Rollout]) -> None:
    for a, b in zip(found, truth, strict=True):
        assert a.completion_ids == b.completion_ids
        assert a.finish_reason == b.finish_reason
        assert a.sampling_logps == pytest.approx(b.sampling_logps, abs=1e-9)


SAMPLINGS = {
    "temperature 1": SamplingConfig(max_completion_length=40),
    "temperature .2": SamplingConfig(max_completion_length=40, temperature=0.2),
    "top_k 2": SamplingConfig(max_completion_length=40, top_k=2),
    "top_p .1": SamplingConfig(max_completion_length=40, top_p=0.1),
    "min_p .5": SamplingConfig(max_completion_length=40, min_p=0.5),
    "greedy": SamplingConfig(max_completion_length=40, top_k=1),
    "stop strings": SamplingConfig(max_completion_length=40, temperature=0.3, stop=("A", "z9")),
    "one token": SamplingConfig(max_completion_length=1),
}


@pytest.mark.parametrize("source", list(DraftSource))
@pytest.mark.parametrize("case", SAMPLINGS)
def test_guesses_change_no_token(case: str, source: DraftSource) -> None:
    """Rows of unequal prompts, with stop tokens, advance by different numbers of tokens."""
    sampling = SAMPLINGS[case]
    truth = generate(generator(), sampling)
    drafting = generator(options(tokens=3, source=source))
    found = generate(drafting, sampling)
    same(found, truth)
    assert all(0 <= row.accepted <= row.drafted for row in found)
    assert sum(row.drafted for row in truth) == 0
    if case in ("temperature 1", "min_p .5"):
        assert sum(row.drafted - row.accepted for row in found) > 30, "there are wrong guesses"


@pytest.mark.parametrize("case", ["top_k 2", "min_p .5", "stop strings"])
def test_rows_advance_unevenly_by_what_they_said_an_epoch_before(case: str) -> None:
    sampling = SAMPLINGS[case]
    drafting = generator(options(tokens=5, source=DraftSource.history))
    generate(drafting, sampling, step=0)
    found = generate(drafting, sampling, step=1)
    same(found, generate(generator(), sampling, step=1))
    accepted = [row.accepted for row in found]
    assert sum(accepted) > 20 and len(set(accepted)) > 3
    assert sum(row.drafted for row in found) > sum(accepted) + 20


@pytest.mark.parametrize("tokens, shortest, longest", [(1, 1, 1), (2, 2, 2), (7, 1, 5), (15, 3, 9)])
def test_any_number_of_guesses_gives_the_same_tokens(
    tokens: int, shortest: int, longest: int
) -> None:
    sampling = SAMPLINGS["top_k 2"]
    drafting = options(tokens=tokens, shortest=shortest, longest=longest)
    same(generate(generator(drafting), sampling), generate(generator(), sampling))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi"])
def test_other_families(family: str) -> None:
    sampling = SAMPLINGS["top_k 2"]
    found = generate(generator(options(tokens=4), family), sampling)
    same(found, generate(generator(family=family), sampling))
    assert sum(row.accepted for row in found) > 0


@pytest.mark.parametrize(
    "named", [{"rows": 12}, {"rows": 8}, {"max_rows": 32}, {"check_every": 4}, {"max_tokens": 200}]
)
def test_guesses_begin_when_few_rows_are_left(named: dict[str, Any]) -> None:
    sampling = SAMPLINGS["top_k 2"]
    named = dict(named)
    rows = named.pop("rows", 64)
    found = generate(generator(options(tokens=3, rows=rows), **named), sampling)
    same(found, generate(generator(), sampling))
    assert sum(row.drafted for row in found) > 0


def test_limits_of_single_prompts_hold() -> None:
    prompts = [
        Prompt(index=n, ids=p.ids, text="", limit=limit)
        for n, (p, limit) in enumerate(zip(PROMPTS, (1, 2, 9, 37), strict=True))
    ]
    sampling = SAMPLINGS["greedy"]
    found = generate(generator(options(tokens=7)), sampling, prompts=prompts)
    same(found, generate(generator(), sampling, prompts=prompts))
    for row in found:
        assert len(row.completion_ids) <= (row.prompt.limit or 0)


def test_the_history_of_a_prompt_guesses_all_of_the_same_completion() -> None:
    """A policy that has not changed, asked with the same seeds, says what it said before."""
    sampling = SamplingConfig(max_completion_length=33)
    drafting = generator(options(tokens=3, source=DraftSource.history, shortest=4, longest=4))
    first = generate(drafting, sampling)
    again = generate(drafting, sampling)
    same(again, first)
    assert sum(row.accepted for row in first) < 10
    for row in again:
        if row.finish_reason is FinishReason.length:
            # One token by the prompt's pass; 32 by passes of 4 while the last 4 tokens are known.
            assert row.accepted == row.drafted == 24
            assert len(row.completion_ids) - row.accepted == 9


def test_a_wrong_guess_costs_a_pass_nothing_but_columns() -> None:
    """The columns of wrong guesses are dropped: a cache has few more than its longest row."""
    widths: list[int] = []
    drafting = generator(options(tokens=15, shortest=1, longest=1))
    forward = Run._forward_pass

    def watched(self: Run, cache: Any, tokens: Any) -> Any:
        widths.append(tokens.mask.shape[1])
        return forward(self, cache, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_forward_pass", watched)
        sampling = SamplingConfig(max_completion_length=100, temperature=1.5)
        found = generate(drafting, sampling)
    same(found, generate(generator(), sampling))
    longest = max(len(row.prompt.ids) + len(row.completion_ids) for row in found)
    assert max(widths) <= 9 * longest / 8 + 64 + 16


def test_places_of_rows_may_differ() -> None:
    """Uniform numbers of rows at their own places are those of one place at a time."""
    seeds = torch.tensor([5, 2**62 + 11, 0, 123456789])
    places = torch.tensor([0, 3, 10**6, 17])
    each = [uniforms(seeds[n : n + 1], int(place)) for n, place in enumerate(places)]
    torch.testing.assert_close(uniforms(seeds, places), torch.cat(each), rtol=0, atol=0)


@pytest.mark.parametrize(
    "sampled, drafts, length, expected",
    [
        ([1, 2, 3, 4], [1, 2, 3], 3, 3),
        ([1, 2, 3, 4], [1, 2, 3], 2, 2),  # the third was not guessed, it is padding
        ([1, 2, 3, 4], [1, 9, 3], 3, 1),  # what is right behind a wrong one does not count
        ([1, 2, 3, 4], [9, 2, 3], 3, 0),
        ([1, 2, 3, 4], [1, 2, 3], 0, 0),
    ],
)
def test_guesses_before_the_first_wrong_one_are_kept(
    sampled: list[int], drafts: list[int], length: int, expected: int
) -> None:
    counts = accepted_drafts(
        torch.tensor([sampled]), torch.tensor([drafts]), torch.tensor([length])
    )
    assert counts.tolist() == [expected]


def brute_force(text: list[int], texts: list[list[int]], chosen: SpeculationOptions) -> list[int]:
    """What followed the latest of the longest matches; texts were written one after the other."""
    for size in range(min(chosen.longest, len(text)), chosen.shortest - 1, -1):
        for other in reversed(texts):
            for start in range(len(other) - 1, size - 1, -1):
                if other[start - size : start] == text[len(text) - size :]:
                    return other[start : start + chosen.tokens]
    return []


@pytest.mark.parametrize("shortest, longest", [(1, 1), (1, 3), (2, 4)])
def test_the_index_finds_what_a_search_finds(shortest: int, longest: int) -> None:
    chosen = options(tokens=4, shortest=shortest, longest=longest)
    torch.manual_seed(3)
    found_some = 0
    for _ in range(40):
        index, texts = DraftIndex(chosen), []
        for _ in range(3):
            text: list[int] = []
            texts.append(text)
            for _ in range(4):
                index.grow(text, torch.randint(0, 4, (5,)).tolist())
                expected = brute_force(text, texts, chosen)
                assert index.draft(text, 99) == expected
                assert index.draft(text, 2) == expected[:2]
                found_some += bool(expected)
    assert found_some > 100


def test_an_index_of_one_text_does_not_find_its_own_end() -> None:
    index, text = DraftIndex(options(shortest=2, longest=2)), list[int]()
    index.grow(text, [1, 2, 3])
    assert index.draft(text, 3) == []
    index.grow(text, [1, 2])
    assert index.draft(text, 3) == [3, 1, 2]


def test_the_history_forgets_the_prompts_seen_longest_ago() -> None:
    history = DraftHistory(most_tokens=10)
    history.put((1,), [(1, 2, 3)])
    history.put((2,), [(4, 5), (6, 7)])
    assert history.texts((1,)) == [(1, 2, 3)]
    history.put((1,), [(8, 9, 10, 11)])
    assert history.texts((1,)) == [(8, 9, 10, 11)]
    history.put((3,), [(0, 0, 0)])  # 4 + 4 + 3 tokens: prompt 2 goes
    assert [history.texts((n,)) for n in (1, 2, 3)] == [[(8, 9, 10, 11)], (), [(0, 0, 0)]]


def test_the_token_at_a_place_does_not_depend_on_the_guess() -> None:
    """A guess of token x is kept with probability p(x), and the sample has distribution p."""
    from rlkit.generation.sampling import sample

    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    number = 20_000
    logits = probs.log().expand(number, -1)
    drawn = sample(logits, torch.arange(number) * 977, 4, SamplingConfig(max_completion_length=1))
    for guess, p in enumerate(probs.tolist()):
        drafts = torch.full((number, 1), guess)
        pairs = torch.stack([drawn.ids, drawn.ids], 1)
        kept = accepted_drafts(pairs, drafts, torch.ones(number, dtype=torch.long))
        assert kept.double().mean() == pytest.approx(p, abs=4 * (p * (1 - p) / number) ** 0.5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: options(tokens=0), r"generator.speculation.tokens must be in \[1, 15\], got 0"),
        (
            lambda: options(shortest=5, longest=4),
            r"generator.speculation.longest must be >= generator.speculation.shortest \(5\), got 4",
        ),
        (lambda: options(rows=0), r"generator.speculation.rows must be in \[1, 4096\], got 0"),
        (
            lambda: VLLMServerConfig(speculation=options()),
            "generator.speculation.kind must be none with generator=vllm_server, got ngram",
        ),
        (
            lambda: TabularGeneratorConfig(speculation=options()),
            "generator.speculation.kind must be none with generator=tabular, got ngram",
        ),
        (
            lambda: VLLMGeneratorConfig(speculation=options(), accelerate=Accelerate.off),
            "generator.accelerate must be auto with generator.speculation.kind=ngram, got off",
        ),
        (
            lambda: VLLMGeneratorConfig(speculation=options(), compilation=Compilation.eager),
            "generator.compilation must be auto or graphs with generator.speculation.kind=ngram, "
            "got eager",
        ),
        (
            lambda: VLLMGeneratorConfig(
                speculation=options(), sampling=VLLMSamplingOptions(stop=["x"])
            ),
            r"generator.sampling.stop must be \[\] with generator.speculation.kind=ngram, got .*x",
        ),
        (
            lambda: VLLMGeneratorConfig(
                speculation=options(), sampling=VLLMSamplingOptions(extra={"min_tokens": 3})
            ),
            r"generator.sampling.extra must be \{\} with generator.speculation.kind=ngram, got .*3",
        ),
        (
            lambda: generator(options(), "mistral_window_6"),
            "generator.speculation.kind must be none with generator=hf and a model of "
            "sliding_attention layers, got MistralForCausalLM",
        ),
        (
            lambda: generator(options(), "gemma3_window_6"),
            "generator.speculation.kind must be none with generator=hf and a model of "
            "sliding_attention layers, got Gemma3ForCausalLM",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_memory_plan_hears_of_places_for_wrong_guesses() -> None:
    on = options(tokens=5)
    assert VLLMGeneratorConfig(speculation=on).demand(row_tokens=800).spare_tokens == 5
    assert HFGeneratorConfig(speculation=on).demand(row_tokens=800).spare_tokens == 100 + 64
    assert VLLMGeneratorConfig().demand(row_tokens=800).spare_tokens == 0
    assert HFGeneratorConfig().demand(row_tokens=800).spare_tokens == 0


def test_sources_and_kinds_are_what_the_docs_name() -> None:
    assert [kind.value for kind in SpeculationKind] == ["none", "ngram"]
    assert [source.value for source in DraftSource] == ["own", "group", "history"]
    assert not SpeculationOptions().is_on
