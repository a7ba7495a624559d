"""A Hugging Face folder of a random NF4 model, written as fast as memory takes it.

Neither memory nor speed depends on the values: one piece of random numbers is written again and
again, and a 70B model never exists in 16 bits. transformers and vLLM load the folder as any
checkpoint that bitsandbytes quantised with double quantisation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from benchmarks.random_model import byte_tokenizer
from rlkit.models.quantize import BLOCK, meta_model, quantisable

_SCALE = 0.05
"""Largest weight of every block; initialisations have about that."""
_NESTED_BLOCK = 256
_PIECE = 2**24 - 64
"""Numbers that are random; no power of two, so that rows of a matrix differ."""
_THREADS = 8
_DTYPES = {torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16"}


class _Entry(NamedTuple):
    """One tensor of a file: `piece`, repeated as often as `shape` takes."""

    name: str
    shape: tuple[int, ...]
    piece: Tensor

    @property
    def num_bytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.piece.element_size()


def write_nf4_folder(folder: Path, config: PreTrainedConfig) -> int:
    """Write config, byte tokenizer and weights to `folder`; the bytes of the weights.

    Linear layers but the head are NF4; the rest is bfloat16: norms of ones, normal numbers with
    standard deviation 0.02 for the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {**config.to_dict(), "dtype": "bfloat16", "quantization_config": _QUANTIZATION}
    values["architectures"] = [type(meta := meta_model(config)).__name__]
    (folder / "config.json").write_text(json.dumps(values))
    byte_tokenizer().save_pretrained(folder)
    files: dict[str, list[_Entry]] = {}
    for entry in _entries(meta, _pieces()):
        files.setdefault(_file_of(entry.name), []).append(entry)
    sizes = {e.name: e.num_bytes for entries in files.values() for e in entries}
    index = {e.name: name for name, entries in files.items() for e in entries}
    total = {"total_size": sum(sizes.values())}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": total, "weight_map": index})
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = [pool.submit(_write, folder / name, files[name]) for name in files]
        for job in jobs:
            job.result()
    return total["total_size"]


_QUANTIZATION = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": ["lm_head"],
}


def _pieces() -> dict[str, Tensor]:
    """Return what tensors are made of, by kind."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.empty(_PIECE, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
    return {
        "codes": torch.randint(0, 256, (_PIECE,), dtype=torch.uint8, generator=generator),
        "normal": normal,
        "ones": torch.ones(2**12, dtype=torch.bfloat16),
    }


def _entries(model: nn.Module, pieces: dict[str, Tensor]) -> Iterator[_Entry]:
    layers = quantisable(model)
    states: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():  # tied ones once
        shape = tuple(parameter.shape)
        if name.removesuffix(".weight") not in layers:
            kind = "ones" if name.endswith("norm.weight") else "normal"
            yield _Entry(name, shape, pieces[kind])
            continue
        if shape not in states:
            states[shape] = _packed_state(shape)
        yield _Entry(name, (parameter.numel() // 2, 1), pieces["codes"])
        for key, tensor in states[shape].items():
            yield _Entry(f"{name}.{key}", tuple(tensor.shape), tensor)


def _packed_state(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """bitsandbytes' own form of a state whose blocks all have the same largest weight."""
    from bitsandbytes import functional

    bnb: Any = functional  # has no types
    blocks = -(-torch.Size(shape).numel() // BLOCK)
    # Scales of 0 plus an offset.
    state = bnb.QuantState(
        absmax=torch.zeros(blocks, dtype=torch.uint8),
        shape=torch.Size(shape),
        code=bnb.get_4bit_type("nf4", device="cpu"),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.tensor(_SCALE),
        state2=bnb.QuantState(
            absmax=torch.zeros(-(-blocks // _NESTED_BLOCK)),
            code=bnb.create_dynamic_map(),
            blocksize=_NESTED_BLOCK,
            dtype=torch.float32,
        ),
    )
    packed: dict[str, Tensor] = state.as_dict(packed=True)
    return packed


def _file_of(name: str) -> str:
    """A file for each decoder layer, one for the rest."""
    parts = name.split(".")
    number = next((int(part) + 1 for part in parts if part.isdigit()), 0)
    return f"model-{number:05d}.safetensors"


def _write(path: Path, entries: Sequence[_Entry]) -> None:
    """A safetensors file: length of the header, header, tensors one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.num_bytes
        kind = _DTYPES[entry.piece.dtype]
        header[entry.name] = {"dtype": kind, "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            left = entry.num_bytes
            piece = entry.piece.flatten().view(torch.uint8).numpy().data
            while left:
                left -= os.write(file.fileno(), piece[:left])
