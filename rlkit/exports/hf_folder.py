"""Write a whole model in Hugging Face's format, shard by shard, in 16 bits or in NF4."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedConfig

from rlkit.exports.stream import WeightStream
from rlkit.exports.trained import TrainedPolicy
from rlkit.models.peft_config import CONFIG, TENSORS
from rlkit.models.quantize import BLOCK, quantisable, skip_modules

_SHARD = 2_000_000_000
"""Bytes of a shard, which is what the writer holds in memory."""


def write_merged16(folder: Path, trained: TrainedPolicy, *, dtype: torch.dtype) -> None:
    """Write the merged model in `dtype`, rounded once; `folder` must exist."""
    tensors = ((name, tensor.to(dtype)) for name, tensor in WeightStream(trained))
    write_shards(folder, tensors)
    write_config(folder, trained, dtype=dtype, quantization=None)
    write_beside(folder, trained)


def write_merged4(folder: Path, trained: TrainedPolicy, *, dtype: torch.dtype) -> None:
    """Write the merged model with its linear layers in NF4; `folder` must exist.

    The head, the embedding and the norms stay in `dtype`, as transformers and vLLM expect.
    """
    layers = quantisable(trained.skeleton)
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip_modules(()),
    )
    write_shards(folder, _in_nf4(WeightStream(trained), set(layers), dtype))
    write_config(folder, trained, dtype=dtype, quantization=config.to_dict())
    write_beside(folder, trained)


def _in_nf4(
    stream: Iterable[tuple[str, Tensor]], layers: set[str], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield what bitsandbytes' layers save: codes, scales and tables of each layer."""
    from bitsandbytes.functional import quantize_4bit

    for name, tensor in stream:
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or layer not in layers:
            yield name, tensor.to(dtype)
            continue
        codes, state = quantize_4bit(
            tensor.to(dtype), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        yield name, codes
        parts: dict[str, Tensor] = state.as_dict(packed=True)
        for part, value in parts.items():
            yield f"{name}.{part}", value


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors to safetensors files of about 2 GB, with an index where there are several.

    Raises OSError when the disk is full.
    """
    shards: list[dict[str, int]] = []
    waiting: dict[str, Tensor] = {}
    waiting_bytes = 0

    def write() -> None:
        try:
            save_file(waiting, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, by another name
            raise OSError(str(error)) from error
        shards.append({name: tensor.nbytes for name, tensor in waiting.items()})

    for name, tensor in tensors:
        if waiting and waiting_bytes + tensor.nbytes > _SHARD:
            write()
            waiting, waiting_bytes = {}, 0
        waiting[name] = tensor.contiguous()
        waiting_bytes += tensor.nbytes
    write()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        places |= dict.fromkeys(shard, file)
    total = sum(sum(shard.values()) for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_config(
    folder: Path, trained: TrainedPolicy, *, dtype: torch.dtype, quantization: dict[str, Any] | None
) -> None:
    """Write `config.json`, with the rotary factors that the run used.

    Args:
        folder: The folder of the model.
        trained: The trained policy.
        dtype: The dtype of the weights that are not quantised.
        quantization: The content of `quantization_config`; None = there is none.
    """
    config: PreTrainedConfig = copy.deepcopy(trained.hf_config)
    config.architectures = [type(trained.skeleton).__name__]
    config.dtype = dtype
    if quantization is not None:
        config.quantization_config = quantization
    config.save_pretrained(folder)


def write_beside(folder: Path, trained: TrainedPolicy) -> None:
    """Write the tokenizer with the run's template, and a generation config with all its stops."""
    trained.tokenizer.save_pretrained(folder)
    generation_of(trained).save_pretrained(folder)


def generation_of(trained: TrainedPolicy) -> GenerationConfig:
    """Return the generation config of the run: its sampling, its stop tokens and strings."""
    generation = copy.deepcopy(trained.generation) or GenerationConfig()  # type: ignore[no-untyped-call]
    sampling = trained.run.sampling
    generation.do_sample = True
    generation.temperature = sampling.temperature
    generation.top_p = sampling.top_p
    generation.top_k = sampling.top_k
    generation.min_p = sampling.min_p or None
    generation.eos_token_id = sorted(trained.stops.ids)
    generation.pad_token_id = trained.tokenizer.pad_token_id
    generation.stop_strings = list(trained.stops.strings) or None
    if trained.task is not None:
        generation.max_length = None
        generation.max_new_tokens = trained.task.max_completion_length
    return generation


def write_adapter(folder: Path, trained: TrainedPolicy) -> None:
    """Write the run's adapter in PEFT's format, with tokenizer and generation config beside it.

    Raises ValueError when the run trained all weights.
    """
    if trained.adapter is None:
        raise ValueError("--to adapter must have a run with an adapter, got one that trained all")
    for name in (CONFIG, TENSORS):
        shutil.copyfile(trained.adapter.folder / name, folder / name)
    write_beside(folder, trained)
