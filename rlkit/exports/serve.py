"""Serve a run with vLLM's own OpenAI-compatible server, asked as in training.

The server gets a folder of links to the base's weights. New in it are the config with the run's
rotary factors, its tokenizer with the template, and a generation config. That has all stop tokens
and the sampling of the run. The adapter is served over the weights, unmerged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from rlkit.assembly.device import resolve_device
from rlkit.assembly.saved_run import read_finished_run
from rlkit.exports.hf_folder import write_beside, write_config
from rlkit.exports.trained import TrainedPolicy, open_trained
from rlkit.generation.vllm.sampling_options import require_vllm
from rlkit.models.config import QuantConfig, QuantKind
from rlkit.models.nf4_folder import in_nf4
from rlkit.models.quantize import require_bitsandbytes
from rlkit.models.resolved import resolve_model, with_merged_adapter
from rlkit.runtime.files import published, remove_leftovers
from rlkit.runtime.say import Say

SERVE_FOLDER = "serve"
"""The name of the folder in a run's folder."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM sets room aside for."""
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """This record holds which run is served, and where."""

    run: Path
    host: str
    port: int
    name: str
    """The name of the model for clients; empty = that of the run's folder."""
    further: Sequence[str]
    """Arguments for vLLM itself."""


class Served(NamedTuple):
    """A prepared server is a command, and what its clients must know."""

    command: list[str]
    name: str
    stop: tuple[str, ...]
    """Strings that a client must send as `stop`."""


def prepare_server(request: ServeRequest, *, say: Say) -> Served:
    """Write the folder of links and return the command of the server.

    Raises ValueError, with one line, when vLLM is missing or cannot serve the run.
    """
    require_vllm()
    run = read_finished_run(request.run, key="--run")
    device = resolve_device(run.options.device)
    trained = open_trained(run, device=device, say=say)
    quant = run.options.memory.quant if run.has_adapter else QuantConfig()
    if quant.kind is QuantKind.fp8:
        raise ValueError(
            "memory.quant.kind must be none or nf4 for rlkit serve (rlkit export writes a merged "
            "model that any server takes), got fp8"
        )
    if quant.kind is QuantKind.nf4 and trained.saved_quantization is None:
        require_bitsandbytes()
        # The base in 4 bits, as the run's layers computed with it; the adapter names the other.
        resolved = resolve_model(run.model, device=device, say=say)
        found = in_nf4(with_merged_adapter(resolved, say=say), quant, say=say)
        saved = found.hf_config.quantization_config
        trained = replace(trained, base=Path(found.location), saved_quantization=saved)
    name = request.name or request.run.resolve().name
    folder = request.run.resolve() / SERVE_FOLDER
    write_links(folder, trained)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", request.host, "--port", str(request.port)]
    command += ["--dtype", _DTYPES[trained.dtype], "--generation-config", "auto"]
    if trained.adapter is None:
        command += ["--served-model-name", name]
    else:
        command += ["--served-model-name", f"{name}-base", "--enable-lora", "--max-lora-rank"]
        command += [str(_room(trained.adapter.rank)), "--lora-modules"]
        command += [f"{name}={trained.adapter.folder.resolve()}"]
    if run.model.allow_remote_code:
        command.append("--trust-remote-code")
    return Served([*command, *request.further], name, trained.stops.strings)


def write_links(folder: Path, trained: TrainedPolicy) -> None:
    """Write a model's folder whose weights are links to those of the base."""
    remove_leftovers(folder)
    with published(folder) as scratch:
        scratch.mkdir()
        for pattern in _WEIGHTS:
            for file in trained.base.glob(pattern):
                (scratch / file.name).symlink_to(file.resolve())
        quantization = trained.saved_quantization
        write_config(
            scratch,
            trained,
            dtype=trained.dtype,
            quantization=None if quantization is None else dict(quantization),
        )
        write_beside(scratch, trained)


def _room(rank: int) -> int:
    """Return the smallest rank of vLLM's that has room for `rank`."""
    found = next((room for room in _RANKS if room >= rank), None)
    if found is None:
        raise ValueError(f"--run must have an adapter of rank <= {_RANKS[-1]} for vLLM, got {rank}")
    return found
