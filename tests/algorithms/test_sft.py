"""Supervised fine-tuning against transformers: the same loss, the same gradient of every weight."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import grouped_batch, tiny_model
from torch import Tensor
from torch.nn import functional as F

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.base import GroupFilter
from rlkit.algorithms.sft import SFTConfig
from rlkit.models.families import head_of
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.policy import Policy
from rlkit.training.optim import OptimConfig
from rlkit.training.update import UpdateSettings, accumulate
from rlkit.types import Algorithm, KLDirection, PolicyOutput, RolloutBatch, Setting

SETTING = Setting(group_size=1, max_completion_length=6, updates_per_batch=1)
NO_KL = KLConfig(direction=KLDirection.none)


def algorithm(**options: object) -> Algorithm:
    config = SFTConfig(**options)  # type: ignore[arg-type]
    return build(Objective(config, NO_KL, RatioConfig(), CorrectionConfig()), SETTING)


def rows_of_transformers(batch: RolloutBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels as TRL lays them out: padded right, -100 on the prompt."""
    rows, labels = [], []
    for i in range(len(batch)):
        prompt = batch.prompt_ids[i][batch.prompt_mask[i]]
        completion = batch.completion_ids[i][batch.completion_mask[i]]
        rows.append(torch.cat([prompt, completion]))
        labels.append(torch.cat([torch.full_like(prompt, -100), completion]))
    pad = torch.nn.utils.rnn.pad_sequence
    attention = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return (
        pad(rows, batch_first=True),
        attention,
        pad(labels, batch_first=True, padding_value=-100),
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tokens", [10_000, 30], ids=["one micro-batch", "several"])
def test_loss_and_gradients_are_those_of_transformers(family: str, tokens: int) -> None:
    """Cross-entropy of plain logits in float64, and the loss that transformers itself returns."""
    batch = grouped_batch(
        prefix=12, rests=[3, 7, 5, 2], group_sizes=[1, 1, 1, 1], completions=[4, 6, 1, 3]
    )
    model = tiny_model(family)
    plain = copy.deepcopy(model)
    for parameter in plain.parameters():
        parameter.requires_grad_()
    ids, attention, labels = rows_of_transformers(batch)
    output = plain(input_ids=ids, attention_mask=attention, labels=labels)
    logits = output.logits[:, :-1].flatten(0, 1)
    truth = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)
    truth.backward()  # type: ignore[no-untyped-call]

    full = FullWeights(model, dtype=model.dtype, holds_reference=False)
    policy = Policy(model=model, tuning=full, head=head_of(model), adapter=full.masters)
    ours = algorithm()
    settings = UpdateSettings(OptimConfig(), 1, temperature=1.0, tokens_per_microbatch=tokens)
    metrics, _ = accumulate(policy, ours.prepare(batch), ours, settings)

    # Both sum in float32; the gradients below are float64 throughout.
    assert metrics["loss"] == pytest.approx(truth.item(), abs=2e-6)
    assert metrics["loss"] == pytest.approx(output.loss.item(), abs=1e-5)
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found = {name: leaf.grad for name, leaf in policy.adapter.items()}
    assert set(wanted) <= set(found) and len(wanted) > 10
    for name, gradient in wanted.items():
        mine = found[name]
        assert mine is not None
        torch.testing.assert_close(mine, gradient, rtol=1e-9, atol=1e-11)


def test_the_two_means_by_hand() -> None:
    """Rows of 2 and 1 tokens with logps -1, -2 and -6: (1 + 2 + 6) / 3 and (1.5 + 6) / 2."""
    batch = grouped_batch(prefix=2, rests=[1, 1], group_sizes=[1, 1], completions=[2, 1])
    logps = torch.tensor([[-1.0, -2.0], [-6.0, float("nan")]])
    for kind, value in ((Aggregation.token_mean, 3.0), (Aggregation.sequence_mean, 3.75)):
        ours = algorithm(aggregation=kind)
        loss = ours.loss(PolicyOutput(logps), ours.prepare(batch)).loss
        assert float(loss) == pytest.approx(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": Aggregation.sequence_sum}, "algorithm.aggregation must be token_mean or"),
        ({"group_filter": GroupFilter.mask}, "algorithm.group_filter must be none"),
        ({"overlong_fraction": 0.2}, "algorithm.overlong_fraction must be 0"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm(**options)
    with pytest.raises(ValueError, match=r"kl\.direction must be none with algorithm=sft"):
        build(Objective(SFTConfig(), KLConfig(), RatioConfig(), CorrectionConfig()), SETTING)
