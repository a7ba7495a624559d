"""The plan takes what is fastest: seconds and choices by hand, on devices that are not here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_works import step_work

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing
from rlkit.plan.candidates import token_budgets
from rlkit.plan.choose import make_plan
from rlkit.plan.cost import CARD, StepSplit, enough_tokens, split_of, step_seconds
from rlkit.plan.parts import GB, Choice, Request
from rlkit.plan.table import lines

AUTO = Request(tokens_per_microbatch=None, checkpointing=Checkpointing.auto, kv_cache_bytes=0)
W1 = step_work("qwen2.5-1.5b", 8, 8, 512)
W2 = step_work("llama3.1-8b", 8, 8, 512)
W3 = step_work("qwen2.5-1.5b", 4, 8, 4096)
W4 = step_work("smollm2-135m", 32, 8, 214)


@pytest.mark.parametrize(
    ("tokens", "split"),
    [
        # A group is 128 + 8 x 512 = 4,224 tokens.
        (40960, StepSplit(1, 64 * 512 + 8 * 128)),
        (4224, StepSplit(8, 64 * 512 + 8 * 128)),
        # A group and seven rows, 15 in all: four of five micro-batches begin inside a group.
        (8192, StepSplit(5, 64 * 512 + 12 * 128)),
        # Seven rows: ten micro-batches, of which the second to the eighth begin inside a group, the
        # ninth (56 rows in) at its start, the tenth inside again.
        (4096, StepSplit(10, 64 * 512 + (8 + 8) * 128)),
        (100, StepSplit(64, 64 * (512 + 128))),
    ],
)
def test_a_step_is_split_as_the_trainer_splits_it(tokens: int, split: StepSplit) -> None:
    assert split_of(W1, tokens) == split


def test_seconds_are_those_of_the_slower_of_host_and_card() -> None:
    choice = Choice(4224, Checkpointing.off, 2**28, 64, 8192, True)
    weights = 1_543_714_304
    decoding = 512 * (28 * CARD.decode_s + 2 * weights / CARD.bytes_s) + 28 * CARD.eager_s
    host = 8 * 28 * CARD.layer_s  # eight micro-batches, 87 ms each; the card needs 65
    assert step_seconds(W1, choice) == pytest.approx(decoding + 1.1 * host, rel=1e-6)
    card = 4 * weights / CARD.flops * (64 * 512 + 8 * 128)
    whole = decoding + card + 0.1 * 28 * CARD.layer_s
    assert step_seconds(W1, choice._replace(tokens_per_microbatch=40960)) == pytest.approx(whole)


def test_the_table_says_why() -> None:
    # Three micro-batches of three groups: 33,792 tokens at 15.4 us, 3 x 28 layers at 3.1 ms.
    plan = make_plan(W1, AUTO, budget=40 * GB)
    assert list(lines(plan, where="a card"))[-1] == (
        "estimated: an update of 33792 tokens in 3 micro-batches, 0.52 s by the device (host 0.26, "
        "device 0.52); sampling in 1 round, 1.2 s at full length; up to 33737 tokens a micro-batch "
        "would help, but do not fit"
    )


def test_what_is_enough_for_the_card() -> None:
    # Six times the host's 86.8 ms at 15.4 us a token; a group of W3; six times 93 ms at 3.4 us.
    assert enough_tokens(W1) == pytest.approx(6 * 28 * 3.1e-3 / (4 * 1_543_714_304 / 400e12), abs=1)
    assert enough_tokens(W3) == pytest.approx(enough_tokens(W1))
    assert enough_tokens(W4) == pytest.approx(6 * 30 * 3.1e-3 / 3.4e-6, abs=1)
    # One row of 20,480 tokens would keep a card busy, but two are taken.
    long = step_work("llama3.1-8b", 1, 8, 20352)
    assert enough_tokens(long) == 128 + 8 * 20352
    alone = replace(long, group_size=1, num_prompts=8)
    assert enough_tokens(alone) == 2 * 20480


@pytest.mark.parametrize(
    ("work", "gigabytes", "tokens", "mode", "at_once"),
    [
        (W1, 139, 33792, Checkpointing.off, 64),
        (W1, 80, 33792, Checkpointing.off, 64),
        (W1, 40, 12672, Checkpointing.off, 64),
        (W2, 139, 8448, Checkpointing.off, 64),
        (W3, 139, 32896, Checkpointing.off, 32),
        (W4, 139, 58880, Checkpointing.off, 256),
    ],
)
def test_choices_for_an_empty_card(
    work: object, gigabytes: int, tokens: int, mode: Checkpointing, at_once: int
) -> None:
    (found,) = (w for w in (W1, W2, W3, W4) if w is work)
    plan = make_plan(found, AUTO, budget=gigabytes * GB)
    assert plan.fits
    choice = plan.choice
    assert (choice.tokens_per_microbatch, choice.checkpointing) == (tokens, mode)
    assert choice.at_once == at_once


def test_512_completions_are_sampled_at_once_on_an_empty_card() -> None:
    work = step_work("smollm2-135m", 64, 8, 214)
    assert make_plan(work, AUTO, budget=139 * GB).choice.at_once == 512
    # Keys and values of 512 rows: 23,040 bytes a token, 22 blocks of 16 tokens a row.
    tight = make_plan(work, AUTO, budget=5 * GB).choice
    assert 4 * GB < 512 * 22 * 16 * 23040
    assert tight.at_once < 512


def test_groups_come_whole_and_rows_never_alone_if_two_fit() -> None:
    budgets = token_budgets(W1, AUTO)
    assert budgets == [33792, 16896, 12672, 8448, 4224, 2560, 1920, 1280, 640]
    for gigabytes in (6, 12, 24, 48, 96):
        plan = make_plan(W3, AUTO, budget=gigabytes * GB)
        two = plan.choice._replace(tokens_per_microbatch=2 * 4224, checkpointing=Checkpointing.on)
        if plan.choice.tokens_per_microbatch < 2 * 4224:
            assert make_plan(W3, AUTO, budget=gigabytes * GB, before=two).choice != two


def test_a_cpu_computes_a_step_of_usual_size_at_once() -> None:
    work = step_work("smollm2-135m", 6, 8, 32, on_cuda=False, sampler=Sampler.hf)
    work = replace(work, longest_prompt=86)
    assert enough_tokens(work) == 4096
    # All of it: 6 x 86 + 48 x 32 tokens.
    found = make_plan(work, AUTO, budget=16 * GB).choice
    assert found.tokens_per_microbatch >= 2052
    assert split_of(work, found.tokens_per_microbatch) == StepSplit(1, 2052)
    tight = make_plan(work, AUTO, budget=2 * GB).choice
    assert tight.checkpointing is Checkpointing.off
    assert tight.tokens_per_microbatch < 2052
