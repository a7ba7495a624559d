"""Write a GGUF file tensor by tensor, without the model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFWriter
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor

from rlkit.exports.gguf.families import Names, add_numbers, rope_tensors
from rlkit.exports.gguf.ggml import num_bytes, quantised
from rlkit.exports.gguf.mixture import FILE_TYPES, TensorPlace, type_of
from rlkit.exports.gguf.vocabulary import add_vocabulary
from rlkit.exports.stream import WeightStream
from rlkit.exports.trained import TrainedPolicy

_QUANTIZATION_VERSION = 2


def write_gguf(
    path: Path, trained: TrainedPolicy, *, wanted: str, name: str, with_adapter: bool = True
) -> None:
    """Write the merged model as one GGUF file.

    Args:
        path: The new file.
        trained: The trained policy.
        wanted: The type of the file, such as `q4_k_m`.
        name: The name of the model inside the file.
        with_adapter: False writes the base alone, for the proof of an adapter.

    Raises:
        ValueError: The family or the tokenizer has no form in GGUF.
        OSError: The disk is full.
    """
    stream = WeightStream(trained, with_adapter=with_adapter)
    names = Names(trained.hf_config)
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[names.family.arch])
    _add_header(writer, trained, wanted, name)
    kinds = types_of(stream.shapes, names, trained.hf_config, wanted)
    extra = rope_tensors(trained.hf_config)
    for key, tensor in extra.items():
        writer.add_tensor_info(key, tuple(tensor.shape), np.dtype(np.float32), tensor.nbytes)
    for key, kind in kinds.items():
        size = num_bytes(stream.shapes[key], kind)
        # The shape of the numbers: gguf takes another for the bytes of a quantised tensor.
        dtype = np.dtype(np.float16 if kind is Type.F16 else np.float32)
        writer.add_tensor_info(names(key), stream.shapes[key], dtype, size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in extra.values():
            writer.write_tensor_data(tensor.numpy())
        for data in _data(stream, names, kinds):
            writer.write_tensor_data(data)
    finally:
        writer.close()


def check_gguf(trained: TrainedPolicy) -> None:
    """Raise ValueError when a policy has no form in GGUF, before anything is written."""
    names = Names(trained.hf_config)
    for name, _ in trained.skeleton.named_parameters():
        names(name)
    _add_header(GGUFWriter(None, MODEL_ARCH_NAMES[names.family.arch]), trained, "f16", "")


def types_of(
    shapes: dict[str, tuple[int, ...]], names: Names, config: Any, wanted: str
) -> dict[str, Type]:
    """Return the type of each parameter in a file of the type `wanted`, by the model's name.

    Args:
        shapes: The shape of each parameter, tied ones once.
        names: The GGUF names of the model.
        config: The model's config.
        wanted: The type of the file, such as `q4_k_m`.
    """
    tied = not any(name.startswith("lm_head.") for name in shapes)
    layers = int(config.num_hidden_layers)
    return {
        name: type_of(TensorPlace(names(name), shape, layers, tied), wanted)
        for name, shape in shapes.items()
    }


def _data(stream: WeightStream, names: Names, kinds: dict[str, Type]) -> Iterator[NDArray[Any]]:
    # One tensor is read and merged, on few cores, while all others quantise the one before.
    with ThreadPoolExecutor(1) as reader:
        order = iter(stream.shapes)
        following = reader.submit(stream.read, first) if (first := next(order, None)) else None
        for name in stream.shapes:
            assert following is not None
            tensor, after = following.result(), next(order, None)
            following = None if after is None else reader.submit(stream.read, after)
            yield packed(names.arrange(name, tensor), kinds[name])


def packed(tensor: Tensor, kind: Type) -> NDArray[Any]:
    """Return the bytes of a float32 tensor in the type `kind`."""
    rows: NDArray[np.float32] = tensor.contiguous().numpy()
    if kind is Type.F32:
        return rows
    if kind is Type.F16:
        limit = np.finfo(np.float16).max
        return np.clip(rows, -limit, limit).astype(np.float16)
    return quantised(rows.reshape(-1, rows.shape[-1]), kind)


def _add_header(writer: GGUFWriter, trained: TrainedPolicy, wanted: str, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[wanted])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    add_numbers(writer, trained.hf_config)
    config: Any = trained.hf_config
    add_vocabulary(writer, trained.tokenizer, trained.stops, num_rows=int(config.vocab_size))
    sampling = trained.run.sampling
    writer.add_sampling_temp(sampling.temperature)
    writer.add_sampling_top_k(sampling.top_k)
    writer.add_sampling_top_p(sampling.top_p)
    writer.add_sampling_min_p(sampling.min_p)
