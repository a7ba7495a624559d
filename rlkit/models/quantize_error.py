"""Find the layers to keep in 16 bits when the rest becomes NF4, by their effect on the output.

Every unit (layers that vLLM fuses) is quantised alone and the calibration prompts are run through
the model. The first measure is KL(16 bits || unit in NF4) of the next-token distributions, a mean
over tokens. The second is the relative error of the unit's own outputs, |y_q - y|^2 / |y|^2. Units
are kept by KL saved per byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkit.models.quantize import BLOCK, nf4_bytes, quantisable, units_of

Ids = Sequence[int]


class UnitError(NamedTuple):
    """The error that NF4 makes in one unit alone."""

    unit: str
    layers: tuple[str, ...]
    extra_bytes: int
    """Bytes more in 16 bits than in NF4."""
    output_error: float
    """|y_q - y|^2 / |y|^2 over the unit's layers and the calibration tokens."""
    kl: float
    """Nats a token."""


@torch.no_grad()
def measure_units(
    model: nn.Module,
    prompts: Sequence[Ids],
    *,
    double_quant: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[UnitError]:
    """Quantise each unit alone and measure what that does to the model's output.

    Args:
        model: A model with ordinary linear layers; it is left as it was.
        prompts: The token ids that it is measured on.
        double_quant: Whether the scales of the blocks are in 8 bits, too.
        progress: Takes the number of units done and their total, after each.

    Returns:
        One `UnitError` a unit, in the order of the model.
    """
    layers = quantisable(model)
    reference = [next_token_logps(model, ids) for ids in prompts]
    found = []
    units = units_of(layers)
    for number, (unit, names) in enumerate(units.items()):
        members = [layers[name] for name in names]
        with _quantised(members, double_quant=double_quant) as errors:
            kl = mean_kl(reference, (next_token_logps(model, ids) for ids in prompts))
        weights = [layer.weight.numel() for layer in members]
        extra = sum(2 * n - nf4_bytes(n, double_quant=double_quant) for n in weights)
        found.append(UnitError(unit, names, extra, errors.ratio(), kl))
        progress(number + 1, len(units))
    return found


def keep_worst(errors: Iterable[UnitError], *, budget_bytes: int) -> list[UnitError]:
    """Return the units to keep in 16 bits: most KL saved per byte first, within the budget."""
    kept, left = [], budget_bytes
    for error in sorted(errors, key=lambda e: e.kl / e.extra_bytes, reverse=True):
        if error.kl > 0 and error.extra_bytes <= left:
            kept.append(error)
            left -= error.extra_bytes
    return kept


def next_token_logps(model: Any, ids: Ids) -> Tensor:
    """Return the (T, V) float32 log-probs after each token."""
    device = next(model.parameters()).device
    inputs = torch.tensor([list(ids)], device=device)
    logits: Tensor = model(input_ids=inputs, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def mean_kl(reference: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Return KL(reference || other), nats, a mean over all tokens."""
    total, tokens = 0.0, 0
    for p, q in zip(reference, other, strict=True):
        total += float(F.kl_div(q, p, log_target=True, reduction="sum"))
        tokens += len(p)
    return total / max(tokens, 1)


class _Errors:
    """This record holds sums of squares of outputs and of their errors."""

    def __init__(self) -> None:
        self.error = self.output = 0.0

    def ratio(self) -> float:
        return self.error / self.output if self.output else 0.0

    def hook(self, exact: Tensor) -> Callable[[nn.Linear, tuple[Tensor, ...], Tensor], None]:
        """Compare the output of a layer with that of its `exact` weight."""

        def compare(layer: nn.Linear, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            wanted = F.linear(inputs[0], exact, layer.bias).float()
            self.error += float((out.float() - wanted).square().sum())
            self.output += float(wanted.square().sum())

        return compare


@contextmanager
def _quantised(layers: Sequence[nn.Linear], *, double_quant: bool) -> Iterator[_Errors]:
    """Inside, `layers` compute with what NF4 makes of their weights."""
    errors = _Errors()
    exact: Mapping[nn.Linear, Tensor] = {layer: layer.weight.data for layer in layers}
    handles = []
    try:
        for layer, weight in exact.items():
            layer.weight.data = through_nf4(weight, double_quant=double_quant)
            handles.append(layer.register_forward_hook(errors.hook(weight)))
        yield errors
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in exact.items():
            layer.weight.data = weight


def through_nf4(weight: Tensor, *, double_quant: bool) -> Tensor:
    """Return `weight` quantised and dequantised."""
    import bitsandbytes.functional as bnb

    codes, state = bnb.quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=double_quant, quant_type="nf4"
    )
    values: Tensor = bnb.dequantize_4bit(codes, state)
    return values.to(weight.dtype)
