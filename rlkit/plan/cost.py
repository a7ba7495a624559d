"""This module estimates the seconds of a step under a choice of the plan, to compare choices.

An update takes as long as the slower of two. The host issues each micro-batch's kernels layer by
layer, whatever their size, and the device computes its tokens. Decoding reads all
weights once a step, and issues its kernels. The numbers of a card are an H200's (docs/step.md).
On a slower card the host hides behind less work, so a choice made by them is never too small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing
from rlkit.plan.parts import ENGINES, Choice
from rlkit.plan.work import Work


class Machine(NamedTuple):
    """A host and its device, as far as a choice depends on their speed."""

    layer_s: float
    """The host issues forward and backward of one decoder layer in this, whatever its tokens."""
    flops: float
    """Operations a second of matrix products, with all that lies between them."""
    token_s: float
    """A token of an update takes this at least: small models are bound by memory."""
    bytes_s: float
    """Bytes that decoding reads in a second."""
    decode_s: float
    """Launches of one decoder layer in a decoding step by CUDA graphs."""
    eager_s: float
    """The same without graphs."""
    least_tokens: int
    """More tokens of a micro-batch help at least up to these."""


CARD = Machine(
    layer_s=3.1e-3, flops=400e12, token_s=3.4e-6, bytes_s=3.4e12, decode_s=5e-5, eager_s=4e-4,
    least_tokens=0,
)  # fmt: skip
CPU = Machine(
    layer_s=8e-3, flops=50e9, token_s=0.0, bytes_s=10e9, decode_s=1e-3, eager_s=1e-3,
    least_tokens=4096,
)  # fmt: skip
"""One core, SmolLM2-135M, 6 groups of 8 x 32 tokens: an update takes 14.6 s in one micro-batch,
15.8 in one a group, and 27.4 in halves of groups, whose prompts are computed twice."""
_AGAIN = {Checkpointing.off: 1.0, Checkpointing.on: 1.3, Checkpointing.offload: 1.31}
"""Layers that run twice take this many times as long (docs/memory/activations.md)."""
_AGAIN_HOST = {Checkpointing.off: 1.0, Checkpointing.on: 1.4, Checkpointing.offload: 1.45}
"""The same for the host, which issues them twice."""
_GAP = 0.1
"""The device waits for this part of the host's time at the start of each micro-batch."""
_HIDDEN = 6
"""A micro-batch whose device time is this many times its host's gains nothing by more tokens: from
3 to 6 times an update of the 1.5B shape still went from 535 to 509 ms (docs/speed.md)."""


def machine_of(work: Work) -> Machine:
    """Return the machine that `work` is planned for."""
    return CARD if work.on_cuda else CPU


def step_seconds(work: Work, choice: Choice) -> float:
    """Return estimated seconds of sampling and updating; scoring follows the update's split."""
    return _sampling(work, choice) + _update(work, choice)


def explained(work: Work, choice: Choice) -> str:
    """Return one line with the estimates that speak for `choice`."""
    split = split_of(work, choice.tokens_per_microbatch)
    host, device = _host_and_device(work, choice)
    slower = "the host" if host > device else "the device"
    parts = f"{split.num_microbatches} micro-batch{'es' if split.num_microbatches > 1 else ''}"
    text = f"estimated: an update of {split.tokens} tokens in {parts}, {max(host, device):.2g} s"
    text += f" by {slower} (host {host:.2g}, device {device:.2g})"
    if work.sampler is not Sampler.elsewhere:
        rounds = -(-work.rows_together // choice.at_once)
        text += f"; sampling in {rounds} round{'s' if rounds > 1 else ''},"
        text += f" {_sampling(work, choice):.2g} s at full length"
    enough = enough_tokens(work)
    if split.num_microbatches == 1 or choice.tokens_per_microbatch + group_tokens(work) > enough:
        return text
    return f"{text}; up to {enough} tokens a micro-batch would help, but do not fit"


def enough_tokens(work: Work) -> int:
    """Return tokens of a micro-batch beyond which more gain nothing.

    They are those of a group at least, whose prompt is then computed once, and of two units. One
    row alone leaves a card half empty.
    """
    machine = machine_of(work)
    hidden = _HIDDEN * machine.layer_s * work.num_layers / _token_seconds(work, machine)
    tokens = max(math.ceil(hidden), machine.least_tokens, group_tokens(work))
    return max(_graphs(work) * tokens, 2 * work.unit_tokens)


def group_tokens(work: Work) -> int:
    """Return tokens of one group of completions of full length, its prompt once where shared."""
    prompts = 1 if work.shares_prompts else work.group_size
    return prompts * work.prompt_tokens + work.group_size * work.max_completion


class StepSplit(NamedTuple):
    """These are the micro-batches of a step whose completions are of full length."""

    num_microbatches: int
    """How many there are."""
    tokens: int
    """Tokens of all of them, prompts that are computed twice included."""


def split_of(work: Work, tokens_per_microbatch: int) -> StepSplit:
    """Return how a bound splits a step, as `rlkit.training.microbatch` does it."""
    most = tokens_per_microbatch // _graphs(work)
    whole, rest = divmod(most, group_tokens(work))
    if work.shares_prompts:
        beside = max(0, rest - work.prompt_tokens) // work.max_completion
    else:
        beside = rest // (work.prompt_tokens + work.max_completion)
    rows = max(1, whole * work.group_size + min(beside, work.group_size))
    rows = min(work.num_rows, max(1, rows // work.rows_per_unit) * work.rows_per_unit)
    count = -(-work.num_rows // rows)
    if work.shares_prompts:  # once a group, and again in each micro-batch that begins inside one
        aligned = work.group_size // math.gcd(rows, work.group_size)
        prompts = work.num_prompts + (count - 1) - (count - 1) // aligned
    else:
        prompts = work.num_rows
    return StepSplit(count, work.num_rows * work.max_completion + prompts * work.prompt_tokens)


def _update(work: Work, choice: Choice) -> float:
    host, device = _host_and_device(work, choice)
    return max(host, device) + _GAP * host


def _host_and_device(work: Work, choice: Choice) -> tuple[float, float]:
    """Return the seconds of an update that the host takes to issue, and the device to compute."""
    machine = machine_of(work)
    split = split_of(work, choice.tokens_per_microbatch)
    host = machine.layer_s * work.num_layers * _AGAIN_HOST[choice.checkpointing]
    device = split.tokens * _token_seconds(work, machine) * _AGAIN[choice.checkpointing]
    return _graphs(work) * split.num_microbatches * host, _graphs(work) * device


def _token_seconds(work: Work, machine: Machine) -> float:
    # Forward and the gradient of the inputs; of the weights as well where all of them train.
    products = 6 if work.trains_all else 4
    return max(products * work.num_weights / machine.flops, machine.token_s)


def _sampling(work: Work, choice: Choice) -> float:
    if work.sampler is Sampler.elsewhere:
        return 0.0
    machine = machine_of(work)
    by_graphs = choice.graphs and work.sampler in ENGINES
    launches = work.num_layers * (machine.decode_s if by_graphs else machine.eager_s)
    weights = work.engine_weight_bytes if work.sampler in ENGINES else work.weight_bytes
    rounds = -(-work.rows_together // choice.at_once)
    # Keys and values are read once a row, however many rows there are at once.
    step = rounds * (launches + weights / machine.bytes_s)
    seconds = work.max_completion * step
    if choice.engine_tokens:
        prefills = -(-work.num_prompts * work.prompt_tokens // choice.engine_tokens)
        seconds += max(rounds, prefills) * work.num_layers * machine.eager_s
    return seconds


def _graphs(work: Work) -> int:
    """Return how many passes a micro-batch makes: a critic's beside the policy's."""
    return 2 if work.critic else 1
