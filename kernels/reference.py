"""The definitions, in plain PyTorch with all logits in memory: the truth that tests compare with.

Everything is computed in the dtype of `hidden` or float32, whichever is wider, and autograd
differentiates it; call it in float64 for an oracle.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlkit.kernels.lm_head import LogitMap


def logits(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], logit_map: LogitMap
) -> Float[Tensor, "N V"]:
    """Return softcap(logit_scale (h W^T + bias)) / temperature."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    x = hidden.to(dtype) @ weight.to(dtype).T
    if logit_map.bias is not None:
        x = x + logit_map.bias.to(dtype)
    x = x * logit_map.logit_scale
    if logit_map.softcap is not None:
        x = logit_map.softcap * torch.tanh(x / logit_map.softcap)
    return x / logit_map.temperature


def selected_logps(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    logit_map: LogitMap,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return log p(target) and the entropy -sum_v p_v log p_v, both differentiable in every input.

    Args:
        hidden: Hidden states.
        weight: The head.
        targets: Words, each in [0, V).
        logit_map: The map from products to logits.

    Returns:
        Logps and entropies (N,), in nats.
    """
    logps = logits(hidden, weight, logit_map).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    return logps.gather(1, targets.long()[:, None]).squeeze(1), entropy


def kl(
    policy_logits: Float[Tensor, "N V"],
    ref_logits: Float[Tensor, "N V"],
    *,
    reverse: bool,
    top_k: int | None,
) -> Float[Tensor, " N"]:
    """Return KL(policy || ref) if `reverse`, else KL(ref || policy), per row, in nats.

    Args:
        policy_logits: Logits of the policy.
        ref_logits: Logits of the reference.
        reverse: Chooses the direction.
        top_k: Compares the reference's `top_k` likeliest words and one bucket that holds all other
            words, >= 1; None compares all words.

    Returns:
        The divergence of each row, >= 0.
    """
    policy, ref = policy_logits.log_softmax(-1), ref_logits.log_softmax(-1)
    if top_k is not None and top_k < ref.shape[-1]:
        order = ref.argsort(-1, descending=True)
        head, tail = order[:, :top_k], order[:, top_k:]
        policy, ref = (
            torch.cat([x.gather(1, head), x.gather(1, tail).logsumexp(-1, keepdim=True)], -1)
            for x in (policy, ref)
        )
    first, second = (policy, ref) if reverse else (ref, policy)
    return (first.exp() * (first - second)).sum(-1)
