"""All weights of a model are trained as float32 masters with 16-bit copies.

The model computes with copies in its own dtype. bfloat16 has 8 significant bits. Added to a weight
in bfloat16, an update smaller than 1/512 of the weight is lost. At the learning rates of full
fine-tuning (1e-6 to 1e-5) nearly all updates are so small. So masters, gradients and moments are
float32 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1). A float32 model is its own
master.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rlkit.models.recompute import NamesInside, Trained
from rlkit.runtime.torch_compat import copy_all, times_written


class FullWeights:
    """This object has the weights of one wholly trained model, and of its starting reference.

    The copies are the model's own parameters. Where these are views of an engine's weights, the
    engine computes with the policy as soon as the copies follow the masters.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype, holds_reference: bool) -> None:
        """Every parameter of `model` trains from here on; tied ones are one.

        `holds_reference`: keep the weights of now on the device, for `active(None)`.
        """
        self.dtype = dtype
        """Compute dtype."""
        self._parameters = dict(model.named_parameters())
        self._inside = NamesInside(self._parameters)
        # Aliases, which keep pointing at the policy's memory while a parameter does not.
        self._policy = [p.detach() for p in self._parameters.values()]
        self._reference = [p.clone() for p in self._policy] if holds_reference else None
        self._current: Sequence[Tensor] = self._policy
        self.masters: dict[str, Tensor] = {}
        """The leaves that an optimiser steps, by their names in the model."""
        for name, parameter in self._parameters.items():
            self.masters[name] = _master(parameter)
            if self.masters[name] is not parameter:
                hook = partial(_hand_over, self.masters, name)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self._behind = self._pairs(self.masters)
        self._versions = self._master_versions()

    def keep(self, own: Collection[str]) -> None:
        """Keep the masters that `own` names; others keep their 16-bit copies alone.

        A master that goes leaves a leaf of its shape without memory, for the gradients of backward
        passes. Masters that are the model's own parameters stay.
        """
        self._catch_up()
        for name, parameter in self._parameters.items():
            if self.masters[name] is not parameter and name not in own:
                self.masters[name] = _absent(parameter)
        self._behind = self._pairs(own)
        self._versions = self._master_versions()

    @contextmanager
    def active(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Forward passes inside use `weights`, the masters; None = the reference. Nests.

        The copies follow the masters here, if these have changed. Gradients of a backward pass add
        up in the masters' `.grad`; the reference has none.
        Raises ValueError for other tensors than the masters, and for a reference that is not held.
        """
        if weights is None:
            if self._reference is None:
                raise ValueError("the reference policy must be held, got a policy without it")
            with torch.no_grad(), self._using(self._reference):
                yield
            return
        self.check(weights)
        self._catch_up()
        with self._using(self._policy):
            yield

    def trained_in(self, layer: str) -> Trained:
        """Return the parameters of a layer, which stay what they are, where they point at now."""
        current = self._current
        inside = tuple(self._parameters[name] for name in self._inside(layer))
        return Trained(inside, lambda _: self._using(current))

    def join(self, _layers: Mapping[str, nn.Module], /) -> None:
        """Layers whose weights train are computed one by one."""
        return

    def copies(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the copies of `weights`, the masters, that the model computes with, by name."""
        self.check(weights)
        self._catch_up()
        return dict(zip(self._parameters, self._policy, strict=True))

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless `weights` are the masters themselves."""
        mine = self.masters
        same = weights.keys() == mine.keys() and all(
            map(operator.is_, (weights[name] for name in mine), mine.values())
        )
        if not same:
            raise ValueError("the weights of a policy that trains in full must be its own masters")

    def _pairs(self, names: Collection[str]) -> list[tuple[Tensor, Tensor]]:
        """Return the copies that follow a master of `names`, each with that master."""
        pairs = zip(self._parameters.items(), self._policy, strict=True)
        return [
            (copy, self.masters[name])
            for (name, parameter), copy in pairs
            if self.masters[name] is not parameter and name in names
        ]

    def _catch_up(self) -> None:
        versions = self._master_versions()
        if versions != self._versions and self._behind:
            copies, masters = zip(*self._behind, strict=True)
            with torch.no_grad():
                copy_all(copies, masters)
        self._versions = versions

    def _master_versions(self) -> list[int]:
        """Return how often each master was written in place, steps of the optimiser included."""
        return [times_written(master) for master in self.masters.values()]

    @contextmanager
    def _using(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        previous = self._current
        self._point_at(tensors)
        try:
            yield
        finally:
            self._point_at(previous)

    def _point_at(self, tensors: Sequence[Tensor]) -> None:
        if tensors is not self._current:
            for parameter, tensor in zip(self._parameters.values(), tensors, strict=True):
                parameter.data = tensor
            self._current = tensors


def _master(parameter: nn.Parameter) -> Tensor:
    """Return the float32 leaf to which the gradients of `parameter` go; itself if wide enough."""
    parameter.requires_grad_(True)
    if parameter.dtype.itemsize >= torch.float32.itemsize:
        return parameter
    return parameter.detach().float().requires_grad_()


def _absent(parameter: nn.Parameter) -> Tensor:
    """Return a leaf for the gradients of a master that is elsewhere; it takes no memory."""
    one = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return one.expand(parameter.shape).requires_grad_()


def _hand_over(masters: Mapping[str, Tensor], name: str, parameter: Tensor) -> None:
    """Add the gradient of one backward pass to the master's; only one is in memory at a time."""
    master = masters[name]
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    if master.grad is None:
        master.grad = gradient.float()
    else:
        master.grad.add_(gradient)
