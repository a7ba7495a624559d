"""A base in codes is given to vLLM here, whatever the codes are; `nf4.py` and `fp8.py` say that.

A layer keeps its codes as one uint8 tensor, whose rows are those of the weight. Layers that vLLM
fuses are rows one behind the other. Tensor parallelism is 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from rlkit.runtime.distribution import lacks

try:
    from vllm.model_executor.layers.linear import (
        LinearBase,
        LinearMethodBase,
        UnquantizedLinearMethod,
    )
    from vllm.model_executor.layers.linear import (
        register_weight_loader_v2_supported_method as register_weight_loader_v2_supported_method,
    )
    from vllm.model_executor.layers.quantization import (
        register_quantization_config as register_quantization_config,
    )
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
    from vllm.model_executor.model_loader import register_model_loader as register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.model_executor.parameter import ModelWeightParameter
except ModuleNotFoundError as error:
    raise lacks("vllm", __name__) from error

# Their types differ between versions, and vLLM may be missing where types are checked.
_Config: Any = QuantizationConfig
_Method: Any = LinearMethodBase
_Loader: Any = DefaultModelLoader


class CodedConfig(_Config):  # type: ignore[misc]
    """It says which layers are in codes, and how these are multiplied."""

    name: ClassVar[str]
    """The name of the configuration, of `quantization` and of `load_format`."""
    method: ClassVar[type[CodedLinearMethod]]

    def is_coded(self, layer: str) -> bool:
        """Return whether the layer, by the trainer's name, is in codes; overridden by all."""
        raise NotImplementedError

    def told(self) -> str:
        """Return what a refusal adds to the name of a layer; empty unless overridden."""
        return ""

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """Give codes to the linear layers that have them.

        Raises ValueError when only some parts of a fused layer have.
        """
        if not isinstance(layer, LinearBase):
            return None
        coded = {self.is_coded(part) for part in parts_of(prefix, self.packed_modules_mapping)}
        if len(coded) > 1:
            raise ValueError(
                f"layers that vLLM fuses must be quantised or kept together, got {prefix}"
                f"{self.told()}"
            )
        return self.method() if coded == {True} else UnquantizedLinearMethod()

    def get_name(self) -> str:
        """Give the name that vLLM knows this configuration by."""
        return self.name

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Give the dtypes that layers may compute in."""
        return [torch.float32, torch.float16, torch.bfloat16]

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Name no file: the configuration is in config.json or an argument."""
        return []


class CodedLinearMethod(_Method):  # type: ignore[misc]
    """It makes room for a layer's codes. How they are multiplied is the subclass's."""

    inputs_per_byte: ClassVar[int]

    def create_weights(
        self,
        layer: Any,
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
            layer: The layer that gets the parameter `weight`, `coded_dtype` and `coded_sizes`.
            input_size_per_partition: Inputs of the layer.
            output_partition_sizes: Outputs of each fused part.
            input_size: Unused.
            output_size: Unused.
            params_dtype: The dtype that the layer computes in; codes are uint8.
            extra_weight_attrs: `weight_loader` fills the parameter; the rest is unused.
        """
        width = input_size_per_partition // self.inputs_per_byte
        codes = torch.empty(sum(output_partition_sizes), width, dtype=torch.uint8)
        weight = ModelWeightParameter(
            data=codes, input_dim=1, output_dim=0, weight_loader=extra_weight_attrs["weight_loader"]
        )
        layer.register_parameter("weight", weight)
        layer.coded_dtype, layer.coded_sizes = params_dtype, list(output_partition_sizes)


class CodedLoader(_Loader):  # type: ignore[misc]
    """It reads safetensors by vLLM's own reader; subclasses load the weights."""

    def __init__(self, load_config: Any) -> None:
        # vLLM knows no format of our name; its own reader of safetensors does the work.
        load_config = copy.copy(load_config)
        load_config.load_format = "safetensors"
        super().__init__(load_config)


def coded_layers(model: nn.Module, method: type[CodedLinearMethod]) -> dict[str, Any]:
    """Return the layers of vLLM's `model` that multiply by `method`, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "quant_method", None), method)
    }


def absent_weights(model: nn.Module, loaded: Iterable[str]) -> list[str]:
    """Return the names of the weights of `model` that are not among those `loaded`, sorted."""
    return sorted({name for name, _ in model.named_parameters()} - set(loaded))


def parts_of(layer: str, mapping: Mapping[str, list[str]]) -> list[str]:
    """Name in the trainer's way what vLLM has as one `layer`."""
    parent, _, leaf = layer.rpartition(".")
    return [f"{parent}.{part}" for part in mapping.get(leaf, [leaf])]
