"""Write a whole model with layers in the formats of compressed-tensors, which vLLM computes in.

`fp8` has 8-bit floats with a scale for each output; activations are quantised while it runs.
`w4a16` has 4-bit integers with a scale for each group of inputs, the layout of GPTQ and AWQ. Both
round to the nearest number: no calibration data is read, one layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.exports.hf_folder import write_beside, write_config, write_shards
from rlkit.exports.stream import WeightStream
from rlkit.exports.trained import TrainedPolicy
from rlkit.models.quantize import quantisable
from rlkit.runtime.distribution import how_to_install

_PRESETS = {"fp8": ("FP8_DYNAMIC", "float-quantized"), "w4a16": ("W4A16", "pack-quantized")}
"""The name of the scheme, and of the layout on disk."""
_GROUPS = (128, 64, 32)


def require_compressed_tensors(asked_by: str) -> None:
    """Raise ValueError, with the command that helps, unless the package is installed."""
    if find_spec("compressed_tensors") is None:
        raise ValueError(
            f"{asked_by} must have compressed-tensors ({how_to_install('compressed_tensors')}), "
            "got no compressed-tensors"
        )


def check_groups(trained: TrainedPolicy, name: str) -> int:
    """Return the size of a group of inputs; raises ValueError when no size fits every layer.

    The format is called `name` after `--to`.
    """
    widths = {layer.in_features for layer in quantisable(trained.skeleton).values()}
    found = next((size for size in _GROUPS if all(width % size == 0 for width in widths)), None)
    if found is None:
        raise ValueError(
            f"--to {name} must have layers whose inputs are a multiple of {_GROUPS[-1]}, got "
            f"{', '.join(map(str, sorted(widths)))}"
        )
    return found


def write_compressed(
    folder: Path, trained: TrainedPolicy, *, name: str, dtype: torch.dtype
) -> None:
    """Write the merged model in the format `fp8` or `w4a16`; `folder` must exist.

    Args:
        folder: The folder of the model.
        trained: The trained policy.
        name: The format.
        dtype: The dtype of the head, the embedding and the norms.

    Raises:
        ValueError: The layers have no form in this format.
    """
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        preset_name_to_scheme,
    )

    preset, layout = _PRESETS[name]
    scheme: QuantizationScheme = preset_name_to_scheme(preset, ["Linear"])
    assert scheme.weights is not None
    if name == "w4a16":
        scheme.weights.group_size = check_groups(trained, name)
    layers = set(quantisable(trained.skeleton))
    write_shards(folder, _compressed(WeightStream(trained), layers, scheme, layout, dtype))
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        quant_method="compressed-tensors",
        format=layout,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=["lm_head"],
    )
    values: dict[str, Any] = config.model_dump(mode="json")
    write_config(folder, trained, dtype=dtype, quantization=values)
    write_beside(folder, trained)


def _compressed(
    stream: Iterable[tuple[str, Tensor]],
    layers: set[str],
    scheme: Any,
    layout: str,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    from compressed_tensors.compressors import BaseCompressor

    compressor: Any = BaseCompressor.get_value_from_registry(layout)
    for name, tensor in stream:
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or layer not in layers:
            yield name, tensor.to(dtype)
            continue
        weight = tensor.to(dtype)
        state = {"weight": weight, "weight_scale": _scale(weight, scheme.weights)}
        for part, value in compressor.compress(state, scheme).items():
            yield f"{layer}.{part}", value


def _scale(weight: Tensor, arguments: Any) -> Tensor:
    """Return (out, groups) scales, so that the largest number of each group is kept."""
    from compressed_tensors.quantization.utils import calculate_qparams

    groups = weight.reshape(len(weight), -1, arguments.group_size or weight.shape[-1])
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    found: Tensor = scale.to(weight.dtype)
    return found
