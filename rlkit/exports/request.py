"""A request to export, and what is refused before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from rlkit.exports.calibrated import CALIBRATED, require_llmcompressor
from rlkit.exports.compressed import check_groups, require_compressed_tensors
from rlkit.exports.formats import Format, Kind, WithVLLM
from rlkit.exports.gguf.ggml import require_xllamacpp
from rlkit.exports.gguf.write import check_gguf
from rlkit.exports.trained import TrainedPolicy
from rlkit.exports.vllm_loader import why_not
from rlkit.models.config import DType
from rlkit.models.quantize import require_bitsandbytes
from rlkit.runtime.distribution import how_to_install


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """This record holds what is to be exported, to where and how."""

    run: Path
    formats: Sequence[Format]
    out: Path
    """The folder of one format, or the parent of the folders of several."""
    dtype: DType
    """The type of weights in 16 bits."""
    num_prompts: int
    """Held-out prompts that the proof answers, >= 1."""
    max_kl: float | None
    """A bound instead of the formats' own; None = theirs."""
    with_vllm: WithVLLM
    """Whether vLLM loads whole models as well."""
    calibrator: Path
    """The Python that has llmcompressor."""

    def folder_of(self, format: Format) -> Path:
        """Return the folder of one format."""
        return self.out if len(self.formats) == 1 else self.out / format.folder


def check_request(request: ExportRequest) -> None:
    """Raise ValueError for a folder that exists and for a library that is missing."""
    for format in request.formats:
        folder = request.folder_of(format)
        if folder.exists():
            raise ValueError(f"--out must be a new folder, got {folder}")
        if format.kind in (Kind.gguf, Kind.gguf_lora):
            require_xllamacpp(f"--to {format.name}")
        if format.kind is Kind.adapter and find_spec("peft") is None:
            raise ValueError(
                f"--to adapter must have peft, which loads it again ({how_to_install('peft')}), "
                "got no peft"
            )
        if format.name == "merged4":
            require_bitsandbytes()
        if format.name in ("fp8", "w4a16"):
            require_compressed_tensors(f"--to {format.name}")
        if format.name in CALIBRATED:
            require_compressed_tensors(f"--to {format.name}")
            require_llmcompressor(f"--to {format.name}", request.calibrator)


def check_vllm(request: ExportRequest, format: Format, device: torch.device) -> None:
    """Raise ValueError when vLLM must load a format that it cannot."""
    if request.with_vllm is not WithVLLM.always or format.kind is not Kind.folder:
        return
    if reason := why_not(format.name, device):
        raise ValueError(
            f"--vllm must be auto or never for --to {format.name}, got always, but vLLM cannot "
            f"load it: {reason}"
        )


def check_format(format: Format, trained: TrainedPolicy, device: torch.device) -> None:
    """Refuse what cannot be written in a format, before a model is loaded."""
    if format.kind in (Kind.adapter, Kind.gguf_lora) and trained.adapter is None:
        raise ValueError(
            f"--to {format.name} must have a run that trained an adapter, got one that trained all "
            "weights"
        )
    if format.kind in (Kind.gguf, Kind.gguf_lora):
        check_gguf(trained)
    if format.name in ("w4a16", *CALIBRATED):
        check_groups(trained, format.name)
    if format.name == "awq" and device.type == "cpu":
        raise ValueError(
            "--to awq must be made on a GPU (device=cuda in the run), which llmcompressor's AWQ "
            "needs, got a CPU (--to gptq works there)"
        )
    if format.name in CALIBRATED and trained.task is None:
        raise ValueError(
            f"--to {format.name} must have a run whose folder names its task, which gives the "
            "prompts to calibrate with, got none"
        )
