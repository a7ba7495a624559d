"""Adapted layers with one input, as q, k and v, are grouped and computed as one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""A and s B of each group, by its first layer, in the compute dtype; see `lora_linear`."""
_MAX_INNER = 256
"""Most columns of a group's A x: the zero blocks of s B are multiplied as well."""
_MAX_WEIGHTS = 2**26
"""Most weights of a group. The product of more takes longer than the launches that a group saves.
Its zero blocks would only take memory (.2 GB for 70B).
"""


class LayerShape(NamedTuple):
    """This record has the size of an adapted layer."""

    num_inputs: int
    num_outputs: int


class Groups:
    """Every adapted layer belongs to one group: at first one of its own."""

    def __init__(self, shapes: Mapping[str, LayerShape], rank: int) -> None:
        self._shapes, self._rank = shapes, rank
        self.layers: dict[str, tuple[str, ...]] = {layer: (layer,) for layer in shapes}
        """The layers of each group, by its first layer."""
        self._places = {layer: _Place(layer, slice(None), slice(None)) for layer in shapes}

    def may_join(self, layers: Sequence[str]) -> bool:
        """Return whether all are groups of their own that gain by being one group."""
        if any(self.layers.get(layer) != (layer,) for layer in layers):
            return False
        weights = sum(math.prod(self._shapes[layer]) for layer in layers)
        return len(layers) * self._rank <= _MAX_INNER and weights <= _MAX_WEIGHTS

    def join(self, layers: Sequence[str]) -> str:
        """Make `layers` one group, in this order; returns its name."""
        start = 0
        for i, layer in enumerate(layers):
            outputs = slice(start, start := start + self._shapes[layer].num_outputs)
            ranks = slice(i * self._rank, (i + 1) * self._rank)
            self._places[layer] = _Place(layers[0], outputs, ranks)
            del self.layers[layer]
        self.layers[layers[0]] = tuple(layers)
        return layers[0]

    def factors_of(self, layer: str, factors: Factors) -> tuple[Tensor, Tensor]:
        """Return A and s B of one layer."""
        place = self._places[layer]
        a, scaled_b = factors[place.group]
        if len(self.layers[place.group]) == 1:
            return a, scaled_b
        return a[place.ranks], scaled_b[place.outputs, place.ranks]

    def portions(self, max_numbers: int) -> Iterator[list[str]]:
        """Yield all groups, at least one and at most `max_numbers` numbers of A and B at once."""
        names: list[str] = []
        total = 0
        for name, layers in self.layers.items():
            numbers = self._rank * sum(sum(self._shapes[layer]) for layer in layers)
            if names and total + numbers > max_numbers:
                yield names
                names, total = [], 0
            names.append(name)
            total += numbers
        if names:
            yield names


class _Place(NamedTuple):
    """This record is the place of a layer in its group."""

    group: str
    outputs: slice
    """Its rows of s B."""
    ranks: slice
    """Its rows of A, and its columns of s B."""
