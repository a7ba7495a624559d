"""Differences between rlkit and its peers: measured, asserted, and written down as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

TOLERANCE = 1e-9
"""Largest absolute difference in float64, of values and of gradients."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """The largest differences of one quantity against one peer."""

    value: float | None = None
    gradient: float | None = None
    batches: int = 0


@dataclass(slots=True)
class Ledger:
    """Collects the entries of a test session."""

    entries: dict[tuple[str, str, str], Entry] = field(default_factory=dict)

    def agree(
        self,
        peer: str,
        quantity: str,
        switches: str,
        ours: Callable[..., Tensor],
        theirs: Callable[..., Tensor],
        leaves: Sequence[Tensor],
    ) -> None:
        """Assert equal values and gradients of two scalar functions of the same leaves."""
        our_value, our_grads = derive(ours, leaves)
        with float64_by_default():
            value, grads = derive(theirs, leaves)
        assert any(bool(grad.abs().max() > 1e-6) for grad in grads), "the peer's gradient is zero"
        gaps = [gap(ours, theirs) for ours, theirs in zip(our_grads, grads, strict=True)]
        self._record(peer, quantity, switches, gap(our_value, value), max(gaps))

    def same_values(
        self, peer: str, quantity: str, switches: str, ours: Tensor, theirs: Callable[[], Tensor]
    ) -> None:
        """Assert equal tensors that have no gradient: advantages, returns, weights, penalties."""
        with float64_by_default():
            expected = theirs()
        assert bool(expected.abs().max() > 1e-6), "the peer's tensor is zero"
        self._record(peer, quantity, switches, gap(ours, expected), None)

    def same_gradients(
        self,
        peer: str,
        quantity: str,
        switches: str,
        ours: Callable[..., Tensor],
        theirs: Callable[..., Tensor],
        leaves: Sequence[Tensor],
    ) -> None:
        """Assert equal gradients where the values differ on purpose."""
        _, our_grads = derive(ours, leaves)
        with float64_by_default():
            _, grads = derive(theirs, leaves)
        assert any(bool(grad.abs().max() > 1e-6) for grad in grads), "the peer's gradient is zero"
        gaps = [gap(ours, theirs) for ours, theirs in zip(our_grads, grads, strict=True)]
        self._record(peer, quantity, switches, None, max(gaps))

    def _record(
        self, peer: str, quantity: str, switches: str, value: float | None, gradient: float | None
    ) -> None:
        entry = self.entries.setdefault((peer, quantity, switches), Entry())
        entry.value, entry.gradient = larger(entry.value, value), larger(entry.gradient, gradient)
        entry.batches += 1
        assert value is None or value <= TOLERANCE, f"{quantity}: values differ by {value:.2e}"
        assert gradient is None or gradient <= TOLERANCE, (
            f"{quantity}: gradients differ by {gradient:.2e}"
        )

    def table(self) -> str:
        """The entries as a Markdown table."""
        lines = [
            "| peer | quantity | rlkit | value | gradient | batches |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for (peer, quantity, switches), entry in self.entries.items():
            told = f"`{switches}`" if switches else "the defaults"
            cells = (peer, quantity, told, bound(entry.value), bound(entry.gradient))
            lines.append(f"| {' | '.join(cells)} | {entry.batches} |")
        return "\n".join(lines) + "\n"

    def write(self, page: Path) -> None:
        """Replace everything after the page's marker line by the table."""
        head, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
        page.write_text(f"{head}{marker}\n\n{self.table()}", encoding="utf-8")


MARKER = "<!-- written by make test-peers -->"


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Float64 where a peer divides integers or makes a tensor of a Python number.

    Around the peer's code only: rlkit has to keep float64 by itself.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def derive(
    function: Callable[..., Tensor], leaves: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of a scalar function, at copies of the leaves."""
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = function(*copies)
    value.backward()  # type: ignore[no-untyped-call]
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in copies]
    return value.detach(), grads


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; infinite where anything is not a number."""
    if ours.shape != theirs.shape:
        return math.inf
    worst = (ours.double() - theirs.double()).abs().max()
    return float(worst) if bool(worst.isfinite()) else math.inf


def larger(a: float | None, b: float | None) -> float | None:
    """The maximum, ignoring None."""
    return a if b is None else b if a is None else max(a, b)


def bound(difference: float | None) -> str:
    """The next power of ten above: stable from one machine to the next."""
    if difference is None:
        return "-"
    return "0" if difference == 0.0 else f"< 1e{math.floor(math.log10(difference)) + 1}"
