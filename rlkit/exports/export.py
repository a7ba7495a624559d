"""Export a run: check first, write each format aside, prove it, and only then give it its name."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from rlkit.assembly.device import resolve_device
from rlkit.assembly.saved_run import read_finished_run
from rlkit.exports.card import base_of, card
from rlkit.exports.compressed import check_groups, require_compressed_tensors, write_compressed
from rlkit.exports.disk import check_disk
from rlkit.exports.formats import CARD, Format, Kind
from rlkit.exports.gguf.ggml import require_xllamacpp
from rlkit.exports.gguf.lora import write_lora
from rlkit.exports.gguf.write import check_gguf, write_gguf
from rlkit.exports.hf_folder import write_adapter, write_merged4, write_merged16
from rlkit.exports.modelfile import modelfile
from rlkit.exports.proof import Proof, check, prove_gguf, prove_hf
from rlkit.exports.reference import Reference, ask_policy
from rlkit.exports.trained import TrainedPolicy, open_trained
from rlkit.models.config import DType
from rlkit.models.quantize import require_bitsandbytes
from rlkit.models.resolved import resolve_dtype
from rlkit.runtime.distribution import how_to_install
from rlkit.runtime.files import published, remove_leftovers
from rlkit.runtime.say import Say


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

    def folder_of(self, format: Format) -> Path:
        """Return the folder of one format."""
        return self.out if len(self.formats) == 1 else self.out / format.folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """This record holds one export that was proven and published."""

    folder: Path
    num_bytes: int
    seconds: float
    """To write it, without the proof."""
    proof: Proof


def export(request: ExportRequest, *, say: Say) -> list[Exported]:
    """Write, load again and compare each format; a format that is refused leaves nothing.

    Args:
        request: What to export.
        say: Takes a line before each slow step and after each export.

    Returns:
        The exports, in the order of the request.

    Raises:
        ValueError: Something does not fit, is missing, or is too far from the policy; one line.
    """
    _check_request(request)
    run = read_finished_run(request.run, key="--run")
    device = resolve_device(run.options.device)
    trained = open_trained(run, device=device, say=say)
    for format in request.formats:
        _check_format(format, trained)
    check_disk(request.out, request.formats, trained)
    reference = ask_policy(trained, num_prompts=request.num_prompts, device=device, say=say)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return [_one(request, format, trained, reference, device, say) for format in request.formats]


def _check_request(request: ExportRequest) -> None:
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


def _check_format(format: Format, trained: TrainedPolicy) -> None:
    """Refuse what cannot be written in a format, before a model is loaded."""
    if format.kind in (Kind.adapter, Kind.gguf_lora) and trained.adapter is None:
        raise ValueError(
            f"--to {format.name} must have a run that trained an adapter, got one that trained all "
            "weights"
        )
    if format.kind in (Kind.gguf, Kind.gguf_lora):
        check_gguf(trained)
    if format.name == "w4a16":
        check_groups(trained)


def _one(
    request: ExportRequest,
    format: Format,
    trained: TrainedPolicy,
    reference: Reference,
    device: torch.device,
    say: Say,
) -> Exported:
    if request.max_kl is not None:
        format = replace(format, max_kl=request.max_kl)
    folder = request.folder_of(format)
    say(f"{format.name}: writing ...")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with published(folder) as scratch:
            scratch.mkdir()
            start = time.perf_counter()
            _write(scratch, format, trained, request, device)
            seconds = time.perf_counter() - start
            size = sum(p.stat().st_size for p in scratch.iterdir())
            say(f"{format.name}: {size / 1e9:.3f} GB in {seconds:.1f} s; loading it again ...")
            proof = _prove(scratch, format, trained, reference, device)
            check(proof)
            use = _use(format, trained)
            (scratch / CARD).write_text(card(trained, format, proof, use=use))
    except OSError as error:
        raise ValueError(
            f"--out must be a folder that can be written, got {folder}: {error.strerror or error}"
        ) from error
    say(f"{format.name}: {proof.line} [{proof.loader}]")
    say(f"{format.name}: written to {folder}")
    return Exported(folder=folder, num_bytes=size, seconds=seconds, proof=proof)


def _write(
    folder: Path,
    format: Format,
    trained: TrainedPolicy,
    request: ExportRequest,
    device: torch.device,
) -> None:
    dtype, _ = resolve_dtype(request.dtype, device)
    name = trained.run.folder.resolve().name
    if format.kind is Kind.adapter:
        write_adapter(folder, trained)
    elif format.kind is Kind.gguf_lora:
        write_lora(folder / "adapter.gguf", trained, name=name)
    elif format.kind is Kind.gguf:
        write_gguf(folder / gguf_name(format), trained, wanted=format.gguf_type, name=name)
        (folder / "Modelfile").write_text(modelfile(trained, gguf=gguf_name(format)))
    elif format.name in ("fp8", "w4a16"):
        write_compressed(folder, trained, name=format.name, dtype=dtype)
    else:
        write = write_merged4 if format.name == "merged4" else write_merged16
        write(folder, trained, dtype=dtype)


def _prove(
    folder: Path, format: Format, trained: TrainedPolicy, reference: Reference, device: torch.device
) -> Proof:
    if format.kind is Kind.gguf:
        return prove_gguf(folder / gguf_name(format), format, trained, reference, lora=None)
    if format.kind is Kind.gguf_lora:
        # llama.cpp adds an adapter to a GGUF file of its base, which lies here for the proof alone.
        base = folder / "base.gguf"
        write_gguf(base, trained, wanted="f16", name="base", with_adapter=False)
        try:
            lora = folder / "adapter.gguf"
            return prove_gguf(base, format, trained, reference, lora=lora)
        finally:
            base.unlink()
    return prove_hf(folder, format, trained, reference, device=device)


def gguf_name(format: Format) -> str:
    """Return the name of the GGUF file of a format."""
    return f"model-{format.gguf_type}.gguf"


def _use(format: Format, trained: TrainedPolicy) -> str:
    """Return a command to be typed in the export's folder; it names no path of this machine."""
    name, base = trained.run.folder.resolve().name, base_of(trained)
    if format.kind is Kind.adapter:
        return f"vllm serve {base.name} --enable-lora --lora-modules {name}=."
    if format.kind is Kind.gguf_lora:
        return "llama-server -m BASE.gguf --lora adapter.gguf"
    if format.kind is Kind.gguf:
        return f"ollama create {name} -f Modelfile && ollama run {name}"
    return f"vllm serve . --served-model-name {name}"
