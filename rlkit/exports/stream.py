"""Read the trained weights one tensor at a time: there is never a whole model in memory.

A tensor comes from the base model's files. The adapter of its layer is added in float32: W + s B A.
A base that the run quantised counts as what its layers computed with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlkit.exports.trained import Adapter, TrainedPolicy
from rlkit.models.config import QuantKind
from rlkit.models.fp8 import dequantise, quantise
from rlkit.models.quantize import kept_layers, quantisable
from rlkit.models.quantize_error import through_nf4


class WeightStream:
    """This object reads the merged weights of a trained policy, by parameter name."""

    def __init__(self, trained: TrainedPolicy, *, with_adapter: bool = True) -> None:
        """Look for every parameter in the base model's files.

        `with_adapter=False` reads the base alone, as the run computed with it.
        Raises ValueError when a parameter is missing.
        """
        self.shapes = {n: tuple(p.shape) for n, p in trained.skeleton.named_parameters()}
        """The shape of each parameter, tied ones once, in the order of the model."""
        self._files = _files(trained.base)
        missing = [name for name in self.shapes if name not in self._files]
        if missing:
            raise ValueError(
                f"model.source must hold every weight of its config, got {trained.base} without "
                f"{', '.join(missing[:3])} ({len(missing)} in all)"
            )
        self._dtype = trained.dtype
        self._adapter: Adapter | None = trained.adapter if with_adapter else None
        self._saved = trained.saved_quantization is not None
        quant = trained.run.options.memory.quant
        layers: Mapping[str, object] = {}
        if quant.kind is not QuantKind.none and not self._saved and trained.run.has_adapter:
            layers = quantisable(trained.skeleton)
        self._quantised = set(layers) - set(kept_layers(layers, quant.skip))
        self._kind = quant.kind
        self._double_quant = quant.double_quant

    @property
    def num_weights(self) -> int:
        """Return the number of weights, tied ones once."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor in float32 on the CPU); memory holds one tensor at a time."""
        for name in self.shapes:
            yield name, self.read(name)

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """Return one parameter, merged, in float32 on the CPU."""
        layer, _, leaf = name.rpartition(".")
        weight: Tensor = self._base(name)
        if leaf != "weight":
            return weight
        if layer in self._quantised:
            weight = self._through(weight.to(self._dtype)).float()
        factors = None if self._adapter is None else self._adapter.factors.get(layer)
        if factors is not None and self._adapter is not None:
            a, b = factors
            weight.addmm_(b.float(), a.float(), alpha=self._adapter.scale)
        return weight

    def _through(self, weight: Tensor) -> Tensor:
        """Return what a layer of the run computed with in place of `weight`."""
        if self._kind is QuantKind.fp8:
            return dequantise(*quantise(weight), weight.dtype)
        return through_nf4(weight, double_quant=self._double_quant)

    def _base(self, name: str) -> Tensor:
        """Return a parameter of the base, rounded to the dtype that the run computed in."""
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        if self._saved and f"{name}.absmax" in self._files:
            return self._dequantised(name, tensor)
        return tensor.to(self._dtype).to(torch.float32, copy=True)

    def _dequantised(self, name: str, codes: Tensor) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts: dict[str, Any] = {}
        with ExitStack() as stack:
            for key in (key for key in self._files if key.startswith(f"{name}.")):
                file = stack.enter_context(safe_open(self._files[key], framework="pt"))
                parts[key.removeprefix(f"{name}.")] = file.get_tensor(key)
        state: Any = QuantState.from_dict(parts, device=torch.device("cpu"))
        state.dtype = self._dtype
        values: Tensor = dequantize_4bit(codes, state)
        return values.float()


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor of a folder in Hugging Face's format."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in names.items()}
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found
