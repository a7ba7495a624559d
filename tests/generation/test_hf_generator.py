"""The HF generator against plain forward passes of one row, without cache or padding, in float64.

Tokens named 256 and above end a completion at random, so that rows leave the batch at all times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from generation_models import CONFIGS, VOCAB, tiny_model
from tiny_tokenizers import byte_tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlkit.generation import HFGeneratorConfig, Progress, sample_seed
from rlkit.generation.hf import HFGenerator
from rlkit.models.compat import cache_of
from rlkit.types import FinishReason, Prompt, Rollout, SamplingConfig

STOP_IDS = frozenset(range(256, VOCAB))
SHARED = tuple((7 * n) % 250 for n in range(1, 12))
LENGTHS = (3, 1, 6, 3, 14)
PROMPTS = [
    Prompt(
        index=10 + n, ids=SHARED + tuple((31 * n + 5 * k + n) % 256 for k in range(length)), text=""
    )
    for n, length in enumerate(LENGTHS)
]
SAMPLING = SamplingConfig(max_completion_length=12, temperature=1.5)


class Policy:
    """A model whose first value projection an adapter shifts, as the trainer's LoRA would."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.tokens_computed: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, _: object, __: object, kwargs: dict[str, Tensor]) -> None:
        if cache_of(kwargs) is not None:
            assert not torch.is_grad_enabled()
            rows, columns = kwargs["input_ids"].shape
            self.tokens_computed.append((rows, columns))

    @contextmanager
    def activate(self, adapter: Mapping[str, Tensor] | None) -> Iterator[None]:
        weight = self.model.get_parameter("model.layers.0.self_attn.v_proj.weight")
        base = weight.detach().clone()
        if adapter is not None:
            weight.data += adapter["v_proj"]
        try:
            yield
        finally:
            weight.data.copy_(base)

    def generator(self, **options: Any) -> HFGenerator:
        return HFGenerator(
            self.model,
            self.tokenizer,
            activate=self.activate,
            stop_token_ids=STOP_IDS,
            config=HFGeneratorConfig(**options),
        )

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(len(ids), V): a plain forward pass over one unpadded row, no cache."""
        with torch.no_grad():
            output = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        logits: Tensor = output.logits[0]
        return logits

    def logps(self, rollout: Rollout, temperature: float) -> list[float]:
        """Log-softmax of the plain forward pass at every completion token."""
        ids = rollout.prompt.ids + rollout.completion_ids
        logps = (self.logits(ids) / temperature).log_softmax(-1)
        start = len(rollout.prompt.ids)
        return [float(logps[n - 1, ids[n]]) for n in range(start, len(ids))]


@pytest.fixture
def make_policy() -> Callable[[str], Policy]:
    tokenizer = byte_tokenizer(eos_token="<end>")
    return lambda family: Policy(tiny_model(family), tokenizer)


@pytest.fixture
def policy(make_policy: Callable[[str], Policy]) -> Policy:
    return make_policy("llama")


def seeds_of(prompts: Sequence[Prompt], num_samples: int, run_seed: int = 0) -> list[list[int]]:
    return [[sample_seed(run_seed, 0, p.index, s) for s in range(num_samples)] for p in prompts]


def generate(
    generator: HFGenerator,
    prompts: Sequence[Prompt] = PROMPTS,
    *,
    num_samples: int = 4,
    sampling: SamplingConfig = SAMPLING,
    run_seed: int = 0,
) -> list[list[Rollout]]:
    return generator.generate(
        prompts,
        num_samples=num_samples,
        sampling=sampling,
        seeds=seeds_of(prompts, num_samples, run_seed),
    )


def tokens(rollouts: list[list[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.completion_ids for rollout in group] for group in rollouts]


@pytest.mark.parametrize("family", CONFIGS)
def test_sampling_logps_are_those_of_a_plain_forward_pass(
    family: str, make_policy: Callable[[str], Policy]
) -> None:
    policy = make_policy(family)
    rollouts = generate(policy.generator())
    # The test is about something: rows end at different times and leave the batch.
    sizes = [rows for rows, columns in policy.tokens_computed if columns == 1]
    assert len(set(sizes)) > 2
    for group in rollouts:
        for rollout in group:
            expected = policy.logps(rollout, SAMPLING.temperature)
            assert rollout.sampling_logps == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_follows_the_argmax_of_plain_forward_passes(
    family: str, make_policy: Callable[[str], Policy]
) -> None:
    policy = make_policy(family)
    rollouts = generate(policy.generator(), num_samples=1, sampling=SAMPLING._replace(top_k=1))
    for (rollout,) in rollouts:
        ids = list(rollout.prompt.ids)
        for token in rollout.completion_ids:
            assert token == policy.logits(ids)[-1].argmax().item()
            ids.append(token)
        assert rollout.sampling_logps == (0.0,) * len(rollout.completion_ids)


def test_truncated_sampling_reports_renormalised_logps(policy: Policy) -> None:
    sampling = SAMPLING._replace(top_k=8, top_p=0.9)
    for group in generate(policy.generator(), sampling=sampling):
        for rollout in group:
            ids = rollout.prompt.ids + rollout.completion_ids
            logits = policy.logits(ids) / sampling.temperature
            for n, logp in enumerate(rollout.sampling_logps, start=len(rollout.prompt.ids)):
                top = logits[n - 1].topk(8)
                probs = top.values.softmax(-1)
                nucleus = int((probs.cumsum(-1) - probs < 0.9).sum())
                place = top.indices[:nucleus].tolist().index(ids[n])
                assert logp == pytest.approx((probs / probs[:nucleus].sum()).log()[place].item())


def test_finish_reasons_and_stop_tokens(policy: Policy) -> None:
    rollouts = list(itertools.chain(*generate(policy.generator(), num_samples=8)))
    for rollout in rollouts:
        *inner, last = rollout.completion_ids
        assert not STOP_IDS & set(inner)
        if rollout.finish_reason is FinishReason.stop:
            assert last in STOP_IDS
        else:
            assert len(rollout.completion_ids) == SAMPLING.max_completion_length
            assert last not in STOP_IDS
        assert len(rollout.sampling_logps) == len(rollout.completion_ids)
    assert {rollout.finish_reason for rollout in rollouts} == set(FinishReason)


def test_stop_at_the_first_token_and_at_the_last(policy: Policy) -> None:
    free = HFGenerator(
        policy.model,
        policy.tokenizer,
        activate=policy.activate,
        stop_token_ids=frozenset(),
        config=HFGeneratorConfig(),
    )
    prompt = PROMPTS[:1]
    ((whole,),) = generate(free, prompt, num_samples=1)
    assert whole.finish_reason is FinishReason.length
    for position in (0, SAMPLING.max_completion_length - 1):
        token = whole.completion_ids[position]
        stopping = HFGenerator(
            policy.model,
            policy.tokenizer,
            activate=policy.activate,
            stop_token_ids=frozenset({token}),
            config=HFGeneratorConfig(),
        )
        ((cut,),) = generate(stopping, prompt, num_samples=1)
        length = whole.completion_ids.index(token) + 1
        assert cut.finish_reason is FinishReason.stop
        assert cut.completion_ids == whole.completion_ids[:length]
        assert cut.sampling_logps == whole.sampling_logps[:length]


@pytest.mark.parametrize("check_every", [1, 5])
def test_stop_strings_cut_where_the_text_first_contains_them(
    check_every: int, policy: Policy
) -> None:
    generator = policy.generator(check_every=check_every)
    free = list(itertools.chain(*generate(generator)))

    def decode(ids: Sequence[int]) -> str:
        return str(policy.tokenizer.decode(list(ids), skip_special_tokens=True))

    texts = [decode(rollout.completion_ids) for rollout in free]
    strings = (texts[0][2:4], texts[5][1:2], texts[9][:3])
    sampling = SAMPLING._replace(stop=strings)
    stopped = list(itertools.chain(*generate(generator, sampling=sampling)))
    num_cut = 0
    for whole, cut in zip(free, stopped, strict=True):
        prefixes = [whole.completion_ids[:n] for n in range(len(whole.completion_ids) + 1)]
        hits = [ids for ids in prefixes if any(s in decode(ids) for s in strings)]
        assert cut.completion_ids == (hits[0] if hits else whole.completion_ids)
        assert cut.finish_reason is (FinishReason.stop if hits else whole.finish_reason)
        num_cut += len(cut.completion_ids) < len(whole.completion_ids)
    assert num_cut >= 3


def test_tokens_depend_on_the_seed_alone(policy: Policy) -> None:
    generator = policy.generator()
    first = tokens(generate(generator))
    assert tokens(generate(generator)) == first
    reverse = PROMPTS[::-1]
    assert tokens(generate(generator, reverse)) == first[::-1]
    assert tokens(generate(generator, num_samples=2)) == [group[:2] for group in first]
    assert [tokens(generate(generator, [prompt]))[0] for prompt in PROMPTS] == first
    other = tokens(generate(generator, run_seed=1))
    assert all(a != b for a, b in zip(other, first, strict=True))
    assert all(len(set(group)) > 1 for group in first)


@pytest.mark.parametrize(
    "options",
    [{"max_rows": 1}, {"max_rows": 3}, {"max_tokens": 100}, {"max_tokens": 1}, {"check_every": 7}],
)
def test_limits_change_no_completion(options: dict[str, int], policy: Policy) -> None:
    whole = generate(policy.generator())
    policy.tokens_computed.clear()
    limited = generate(policy.generator(**options))
    assert tokens(limited) == tokens(whole)
    for a, b in zip(itertools.chain(*limited), itertools.chain(*whole), strict=True):
        assert a.sampling_logps == pytest.approx(b.sampling_logps, rel=0, abs=1e-11)
    most = max(rows for rows, _ in policy.tokens_computed)
    assert most <= options.get("max_rows", 100)
    if "max_tokens" in options:
        longest = len(SHARED) + max(LENGTHS) + SAMPLING.max_completion_length
        assert most <= max(1, options["max_tokens"] // longest)


def test_shared_prefix_and_duplicate_prompts_are_computed_once(policy: Policy) -> None:
    prompts = [*PROMPTS, Prompt(index=99, ids=PROMPTS[0].ids, text="")]
    generate(policy.generator(), prompts)
    remainder = max(LENGTHS)
    assert policy.tokens_computed[:2] == [(1, len(SHARED)), (len(PROMPTS), remainder)]
    assert {columns for _, columns in policy.tokens_computed[2:]} == {1}
    policy.tokens_computed.clear()
    generate(policy.generator(), PROMPTS[:1])
    assert policy.tokens_computed[0] == (1, len(PROMPTS[0].ids))


def test_prompts_without_a_common_prefix(policy: Policy) -> None:
    prompts = [Prompt(index=n, ids=tuple(range(n, 2 * n + 1)), text="") for n in (1, 2, 9, 5)]
    for group in generate(policy.generator(), prompts):
        for rollout in group:
            expected = policy.logps(rollout, SAMPLING.temperature)
            assert rollout.sampling_logps == pytest.approx(expected, rel=0, abs=1e-9)


def test_long_completions_outgrow_the_room_of_the_cache(policy: Policy) -> None:
    generator = HFGenerator(
        policy.model,
        policy.tokenizer,
        activate=policy.activate,
        stop_token_ids=frozenset(),
        config=HFGeneratorConfig(),
    )
    sampling = SAMPLING._replace(max_completion_length=100)
    for (rollout,) in generate(generator, num_samples=1, sampling=sampling):
        expected = policy.logps(rollout, sampling.temperature)
        assert len(expected) == 100
        assert rollout.sampling_logps == pytest.approx(expected, rel=0, abs=1e-9)


def test_everything_is_sampled_under_the_adapter_in_force(policy: Policy) -> None:
    generator = policy.generator()
    shape = policy.model.get_parameter("model.layers.0.self_attn.v_proj.weight").shape
    adapter = {"v_proj": torch.zeros(shape, dtype=torch.float64)}
    base = generate(generator)
    assert base[0][0].policy_version == 0
    generator.load_adapter(adapter, 3)
    unchanged = generate(generator)
    assert tokens(unchanged) == tokens(base)
    assert {rollout.policy_version for group in unchanged for rollout in group} == {3}
    # In place, as an optimiser updates it: the generator holds a reference.
    torch.manual_seed(1)
    adapter["v_proj"] += torch.randn(shape, dtype=torch.float64)
    generator.load_adapter(adapter, 4)
    moved = generate(generator)
    assert tokens(moved) != tokens(base)
    assert moved[0][0].policy_version == 4
    with policy.activate(adapter):
        for group in moved:
            for rollout in group:
                expected = policy.logps(rollout, SAMPLING.temperature)
                assert rollout.sampling_logps == pytest.approx(expected, rel=0, abs=1e-9)


def test_dropout_is_off_and_the_training_mode_comes_back(policy: Policy) -> None:
    quiet = generate(policy.generator())
    policy.model.config.attention_dropout = 0.5
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy.model.train()
    assert tokens(generate(policy.generator())) == tokens(quiet)
    assert policy.model.training
    policy.model.train(False)
    generate(policy.generator())
    assert not policy.model.training


def test_weights_can_be_trained_after_generating(policy: Policy) -> None:
    generate(policy.generator())
    policy.model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.model.parameters())


def test_progress_counts_rows_and_tokens(policy: Policy) -> None:
    seen: list[Progress] = []
    generator = HFGenerator(
        policy.model,
        policy.tokenizer,
        activate=policy.activate,
        stop_token_ids=STOP_IDS,
        config=HFGeneratorConfig(max_rows=7),
        progress=seen.append,
    )
    rollouts = list(itertools.chain(*generate(generator)))
    assert seen == sorted(seen)
    num_tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    assert seen[-1] == Progress(rows_done=20, rows=20, tokens=num_tokens)


@pytest.mark.parametrize("check_every", [1, 4])
def test_logits_that_are_not_finite_name_the_prompt(check_every: int, policy: Policy) -> None:
    poison = 255
    with torch.no_grad():
        policy.model.get_parameter("model.embed_tokens.weight")[poison] = torch.nan
    clean = [p for p in PROMPTS if poison not in p.ids][:2]
    bad = Prompt(index=77, ids=(*SHARED, poison, 3), text="a poisoned prompt")
    with pytest.raises(FloatingPointError, match=r"token 0 of sample 0 of prompt 77 .*poisoned"):
        generate(policy.generator(check_every=check_every), [*clean, bad])


def test_bad_requests_are_refused(policy: Policy) -> None:
    generator = policy.generator()
    with pytest.raises(ValueError, match="prompt 5 must have at least one token, got none"):
        generate(generator, [Prompt(index=5, ids=(), text="")])
    with pytest.raises(
        ValueError, match=r"seeds must hold 2 seeds for each of 1 prompts, got \[3\]"
    ):
        generator.generate(
            PROMPTS[:1], num_samples=2, sampling=SAMPLING, seeds=seeds_of(PROMPTS[:1], 3)
        )
    with pytest.raises(ValueError, match="num_samples must be >= 0, got -1"):
        generator.generate(PROMPTS[:1], num_samples=-1, sampling=SAMPLING, seeds=[[]])
    with pytest.raises(ValueError, match=r"sampling.temperature must be a finite number > 0"):
        generate(generator, sampling=SAMPLING._replace(temperature=0.0))
    long = Prompt(index=6, ids=(1,) * 120, text="")
    message = (
        r"sampling.max_completion_length must be <= 8 for prompt 6 "
        r"\(120 tokens; the model's context is 128\), got 12"
    )
    with pytest.raises(ValueError, match=message):
        generate(generator, [*PROMPTS, long])
    ((fits, *_),) = generate(generator, [long], sampling=SAMPLING._replace(max_completion_length=8))
    assert fits.prompt is long
    assert generate(generator, []) == []
    assert generate(generator, num_samples=0) == [[]] * len(PROMPTS)


def test_models_with_other_layers_are_refused(policy: Policy) -> None:
    policy.model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match=r"got \['linear_attention'\] in LlamaForCausalLM"):
        policy.generator()


def test_close_lets_go_of_the_model(policy: Policy) -> None:
    generator = policy.generator()
    generator.close()
    generator.close()
    with pytest.raises(RuntimeError, match="close"):
        generate(generator)
