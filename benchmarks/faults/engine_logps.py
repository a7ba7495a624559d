"""F17 and F18: vLLM's logps against the trainer's, with right adapters and with wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.row import Row
from rlkit import compose
from rlkit.assembly.assemble import assemble
from rlkit.assembly.generators import policy_score
from rlkit.assembly.model_run import ModelRun
from rlkit.generation.sampling import sampling_probs
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.probe import mean_difference, mismatch_limit, random_factors, sample
from rlkit.generation.vllm.weights import forget_prefixes
from rlkit.policy.lora import LoRA
from rlkit.tracking.quiet import QuietTracker
from rlkit.training.stopping import StopRequest
from rlkit.types import Rollout, SamplingConfig

_STRENGTH = 0.8
"""Size of the random adapter's update in units of its input."""
_TEMPERATURES, _TOP_PS = (0.6, 1.0, 1.3), (1.0, 0.8)
_MOST_BIAS = 0.01
_MOST_APART = 0.01
"""Share of the tokens that only one side may sample, at the edge of top_p."""
_EDGE, _HEAVY = 0.03, 0.1
"""How far the two sides may be apart at the edge of top_p, and from how many nats of the mass kept
a word there is heavy. Many light words make 0.08 of them."""
_MOST_EDGE = 0.5
_SAMPLES = 256
"""Completions of each of four prompts in a setting. With 32 of them the mean ratio of some 500
tokens has a standard error of about 0.003, too much for a bound of 0.01."""
_ROWS = 32
"""Completions that the trainer scores at once; their logits take some hundred MB."""
_LAYER = 7
_BEFORE = "the adapter of the version before"
_Slot = Mapping[str, Tensor]
_Adapter = dict[str, Tensor]


@contextmanager
def assembled(model: str, *more: str) -> Iterator[ModelRun]:
    """Load a run with vLLM in the process; its engine ends with the block."""
    words = (
        *("run_dir=unused", f"model.source={model}", "generator=vllm", "task=max_of_n"),
        *("prompts_per_step=4", "algorithm.group_size=8", "task.max_completion_length=64"),
        *("evaluation.num_prompts=4", "model.lora.rank=16", "generator.max_num_seqs=128"),
    )
    run = assemble(compose(*words, *more), say=print)
    try:
        yield run
    finally:
        run.close()


def _drop_a_module(slot: _Slot) -> None:
    slot[_named(slot, f"layers.{_LAYER}.mlp.down_proj.B")].zero_()


def _gate_twice(slot: _Slot) -> None:
    for name in slot:
        if ".gate_proj." in name:
            slot[name.replace(".gate_proj.", ".up_proj.")].copy_(slot[name])


def _swap_gate_and_up(slot: _Slot) -> None:
    for name in slot:
        if ".gate_proj." in name:
            other = slot[name.replace(".gate_proj.", ".up_proj.")]
            kept = other.clone()
            other.copy_(slot[name])
            slot[name].copy_(kept)


def _scale_again(slot: _Slot) -> None:
    for name, stack in slot.items():
        if name.endswith(".B"):
            stack.mul_(2.0)


def _named(slot: _Slot, end: str) -> str:
    (name,) = [name for name in slot if name.endswith(end)]
    return name


WRONG: Mapping[str, Callable[[_Slot], None]] = {
    "one module dropped": _drop_a_module,
    "gate loaded twice, up never": _gate_twice,
    "gate and up swapped": _swap_gate_and_up,
    "scale applied twice": _scale_again,
}
"""Faults inside vLLM's own buffers, by name."""


@torch.no_grad()
def wrong_adapters(run: ModelRun) -> Row:
    """F17: put six wrong adapters into vLLM.

    Survived is one that a run would notice, after the right adapter was found to be right. The
    logps of the probe prompts are off the trainer's by more than the tolerance, or vLLM's buffers
    are not the trainer's adapter bit for bit. Both are compared while a run trains.
    """
    assert isinstance(run.policy.tuning, LoRA) and run.engine is not None
    lora, llm = run.policy.tuning, run.engine.llm
    injector = LoRAInjector(
        llm, tuple(lora.shapes), rank=lora.config.rank, scale=lora.config.scale, key=lora.key
    )
    score, limit = policy_score(run.policy), mismatch_limit(run.base.dtype)
    first, second = (_adapter(run, seed=seed) for seed in (17, 18))

    def error(request: Any, tensors: _Adapter) -> float:
        rows, logps = sample(llm, request)
        return mean_difference(logps, score(tensors, rows))

    errors, right, other_bits = dict[str, float](), 0.0, set[str]()
    for name, damage in WRONG.items():
        injector.load(first, 1)
        right = max(right, error(injector.request, first))
        damage(injector.slot())
        forget_prefixes(llm)
        errors[name] = error(injector.request, first)
        other_bits |= {name} if injector.differences(first) else set()
    injector.load(first, 1)
    old = injector.request
    right = max(right, error(old, first))
    errors[_BEFORE] = error(old, second)
    other_bits |= {_BEFORE} if injector.differences(second) else set()
    injector.load(second, 2)
    # The old name finds the new adapter, but with it the prompt's keys and values of the old one.
    errors["a stale prefix cache"] = error(old, second)
    injector.unload()
    by_logps = {name for name, value in errors.items() if value > limit and right <= limit}
    caught = len(by_logps | other_bits)
    found = ", ".join(f"{name} {value:.2g}" for name, value in errors.items())
    note = (
        f"{len(by_logps)} seen by the logps of probe prompts, {len(other_bits)} by the bits; off "
        f"by (nats): {found}; a right one {right:.2g} of {limit:.2g} allowed"
    )
    kind = str(run.base.dtype).removeprefix("torch.")
    return Row(
        f"F17 wrong adapters in vLLM, {kind}", len(errors), caught, len(errors) - caught, note
    )


def mismatches(run: ModelRun, kind: str) -> Row:
    """F18: compare vLLM's logps with the trainer's at three temperatures and two values of top_p.

    Both are of one distribution. Survived is a setting within the tolerance and without bias: the
    mean of pi_train / pi_sample is 1 within 0.01, or within four standard errors. Words at the edge
    of top_p are left out, since there the two sides may have different words.
    """
    limit, adapter = mismatch_limit(run.base.dtype), _adapter(run, seed=5, strength=0.05)
    generator = run.generator(QuietTracker(), StopRequest())
    generator.load_adapter(adapter, 1)
    survived, said = 0, list[str]()
    settings = [(t, p) for t in _TEMPERATURES for p in _TOP_PS]
    for temperature, top_p in settings:
        sampling = run.sampling._replace(temperature=temperature, top_p=top_p)
        prompts = run.eval_prompts[:4]
        seeds = [[1000 * n + i for i in range(_SAMPLES)] for n in range(len(prompts))]
        groups = generator.generate(prompts, num_samples=_SAMPLES, sampling=sampling, seeds=seeds)
        batches = (
            group[start : start + _ROWS] for group in groups for start in range(0, _SAMPLES, _ROWS)
        )
        every = torch.cat([_differences(run, adapter, batch, sampling) for batch in batches])
        certain = every[~every.isnan()]
        d = certain[certain.isfinite()]
        edge, apart = 1 - len(certain) / len(every), 1 - len(d) / len(certain)
        ratio = d.exp()
        bias, noise = float(ratio.mean() - 1), float(ratio.std() / len(ratio) ** 0.5)
        mean, most = float(d.abs().mean()), float(d.abs().max())
        right = mean <= limit and abs(bias) <= max(_MOST_BIAS, 4 * noise)
        survived += right and apart <= _MOST_APART and edge <= _MOST_EDGE
        said.append(
            f"T {temperature} top_p {top_p}: {mean:.1e}, {most:.1e}, {1 + bias:.4f}, {apart:.2%}, "
            f"{edge:.0%}"
        )
    heads = "mean and largest |difference| (nats), mean ratio, words of one side alone"
    note = f"{heads}, words at the edge of top_p: {'; '.join(said)}"
    name = f"F18 logps of vLLM and trainer, {kind}"
    return Row(name, len(settings), survived, len(settings) - survived, note)


def _adapter(run: ModelRun, *, seed: int, strength: float = _STRENGTH) -> _Adapter:
    assert isinstance(run.policy.tuning, LoRA)
    scale = run.policy.tuning.config.scale
    return dict(random_factors(run.policy.adapter, scale, seed=seed, strength=strength))


@torch.no_grad()
def _differences(
    run: ModelRun, adapter: _Adapter, rollouts: Sequence[Rollout], sampling: SamplingConfig
) -> Tensor:
    """Return log pi_train - log pi_sample of each token.

    It is -inf for a word that the trainer cuts off, and nan for one at the edge of top_p. All
    rollouts must be of one prompt. What pads a row on its right has no effect on its logps.
    """
    prompt = rollouts[0].prompt.ids
    rows = [torch.tensor([*prompt, *one.completion_ids]) for one in rollouts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(run.device)
    lengths = torch.tensor([len(one.completion_ids) for one in rollouts], device=run.device)
    is_sampled = torch.arange(ids.shape[1] - len(prompt), device=run.device) < lengths[:, None]
    with run.policy.tuning.active(adapter):
        logits = run.policy.model(ids, use_cache=False).logits[:, len(prompt) - 1 : -1]
    logits = logits[is_sampled].float()
    chosen = ids[:, len(prompt) :][is_sampled]
    probs = sampling_probs(logits, sampling).gather(1, chosen[:, None])[:, 0]
    logps = probs.log().masked_fill(at_the_edge(logits, sampling), torch.nan).double().cpu()
    sampled = [logp for one in rollouts for logp in one.sampling_logps]
    return logps - torch.tensor(sampled, dtype=torch.float64)


def at_the_edge(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return for each row of logits (N, V) whether a heavy word is near the edge of top_p.

    Rounding then decides whether such a word is kept. Where only the trainer keeps it, all others'
    ratios are too small, and no sampled word shows it.
    """
    if sampling.top_p >= 1.0:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    every = sampling_probs(logits, sampling._replace(top_p=1.0))
    less, more = (
        (every * (sampling_probs(logits, sampling._replace(top_p=sampling.top_p + off)) > 0)).sum(1)
        for off in (-_EDGE, _EDGE)
    )
    return (more / less).log() > _HEAVY


def rows(model: str, *, quantised: bool) -> Iterator[Row]:
    """Yield F17 and F18 with a plain base, or F18 with a base in 4 bits if `quantised`."""
    if quantised:
        with assembled(model, "memory=qlora") as run:
            yield mismatches(run, "QLoRA")
        return
    with assembled(model) as run:
        yield wrong_adapters(run)
        yield mismatches(run, "LoRA")
