"""Compare what a loaded export says with what the trained policy says.

The log-probs along the policy's own answers are compared. There are the largest and the mean
difference of the answer's tokens. KL(policy || export) of the next-token distributions is a mean
over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.exports.formats import Format
from rlkit.exports.reference import Reference, ScoredRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """This record holds how far an export is from the trained policy."""

    format: str
    loader: str
    """The library and its version."""
    num_tokens: int
    max_difference: float
    """Nats, of a token of the policy's answers."""
    mean_difference: float
    kl: float
    """Nats a token."""
    max_kl: float
    """The bound."""
    success: float | None
    policy_success: float | None

    @property
    def line(self) -> str:
        """Return the figures in one line."""
        text = (
            f"KL(policy || export) {self.kl:.1e} nats a token (bound {self.max_kl:g}), log-probs "
            f"differ by {self.mean_difference:.1e} on average and {self.max_difference:.1e} at most"
        )
        if self.success is not None and self.policy_success is not None:
            text += f", success {self.success:.2f} (policy {self.policy_success:.2f})"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """This record holds what the libraries said that loaded an export again."""

    proofs: tuple[Proof, ...]
    """One for each library, at least one."""
    note: str
    """A sentence about a library that did not load it; empty = there is none."""


def check(proof: Proof) -> None:
    """Raise ValueError when an export is further from the policy than its bound."""
    if not proof.kl <= proof.max_kl:
        raise ValueError(
            f"{proof.format} must be the run's policy within {proof.max_kl:g} nats a token "
            f"(--max-kl), got KL {proof.kl:.3g} [{proof.loader}]"
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """This record holds the comparison along one row."""

    kl: Tensor
    """(T,) nats."""
    differences: Tensor
    """(T - 1,) of the answer's tokens that follow, nats, >= 0."""


def compare_whole(row: ScoredRow, other: Tensor) -> Compared:
    """Compare with the (T, V) log-probs of the export."""
    kl = F.kl_div(other, row.logps, log_target=True, reduction="none").sum(-1)
    tokens = torch.tensor(row.ids[row.first + 1 :])[:, None]
    ours, theirs = (x[: len(tokens)].gather(1, tokens) for x in (row.logps, other))
    return Compared(kl, (ours - theirs).abs().flatten())


def compare_likeliest(
    row: ScoredRow, found: Sequence[tuple[Sequence[int], Sequence[float]]]
) -> Compared:
    """Compare where only the likeliest tokens of the export are known; the others count as one.

    Joining tokens can only make KL smaller, by less than their mass says.
    """
    kl, differences = [], []
    next_tokens = (*row.ids[row.first + 1 :], None)
    for logps, (ids, values), token in zip(row.logps, found, next_tokens, strict=True):
        p = logps[torch.tensor(ids)].double()
        q = torch.tensor(values, dtype=torch.float64)
        rest_p = max(1.0 - float(p.exp().sum()), 1e-12)
        rest_q = max(1.0 - float(q.exp().sum()), 1e-12)
        value = float((p.exp() * (p - q)).sum())
        if len(ids) < len(logps):
            value += rest_p * math.log(rest_p / rest_q)
        kl.append(max(value, 0.0))
        if token is not None and token in ids:
            differences.append(abs(float(logps[token]) - values[list(ids).index(token)]))
    return Compared(torch.tensor(kl), torch.tensor(differences))


def proof_of(
    format: Format,
    loader: str,
    rows: Sequence[Compared],
    success: float | None,
    reference: Reference,
) -> Proof:
    """Return the figures of a loaded export.

    Args:
        format: The format, with its bound.
        loader: The library and its version.
        rows: The comparison along each row.
        success: Share of the prompts that the export's own answers solve; None = unknown.
        reference: What the policy said.
    """
    kl = torch.cat([row.kl.double() for row in rows])
    differences = torch.cat([row.differences.double() for row in rows])
    return Proof(
        format=format.name,
        loader=loader,
        num_tokens=len(kl),
        max_difference=float(differences.max()) if len(differences) else 0.0,
        mean_difference=float(differences.mean()) if len(differences) else 0.0,
        kl=float(kl.mean()),
        max_kl=format.max_kl,
        success=success,
        policy_success=reference.success,
    )
