"""Export a run: check first, write each format aside, prove it, and only then give it its name."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlkit.assembly.device import resolve_device
from rlkit.assembly.saved_run import read_finished_run
from rlkit.exports.calibrated import (
    CALIBRATED,
    NUM_ROWS,
    write_calibrated,
)
from rlkit.exports.card import base_of, card
from rlkit.exports.compare import Loaded, Proof, check
from rlkit.exports.compressed import write_compressed
from rlkit.exports.disk import check_disk
from rlkit.exports.formats import CARD, Format, Kind, WithVLLM
from rlkit.exports.gguf.lora import write_lora
from rlkit.exports.gguf.write import write_gguf
from rlkit.exports.hf_folder import write_adapter, write_merged4, write_merged16
from rlkit.exports.modelfile import modelfile
from rlkit.exports.proof import prove_gguf, prove_hf, prove_vllm
from rlkit.exports.reference import Reference, ask_policy
from rlkit.exports.request import ExportRequest, check_format, check_request, check_vllm
from rlkit.exports.trained import TrainedPolicy, open_trained
from rlkit.exports.vllm_loader import vllm_version, why_not
from rlkit.models.resolved import resolve_dtype
from rlkit.runtime.files import published, remove_leftovers
from rlkit.runtime.say import Say


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """This record holds one export that was proven and published."""

    folder: Path
    num_bytes: int
    seconds: float
    """To write it, without the proof."""
    loaded: Loaded


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
    check_request(request)
    run = read_finished_run(request.run, key="--run")
    device = resolve_device(run.options.device)
    trained = open_trained(run, device=device, say=say)
    for format in request.formats:
        check_format(format, trained, device)
        check_vllm(request, format, device)
    check_disk(request.out, request.formats, trained)
    calibrates = any(format.name in CALIBRATED for format in request.formats)
    reference = ask_policy(
        trained,
        num_prompts=request.num_prompts,
        num_training_rows=NUM_ROWS if calibrates else 0,
        device=device,
        say=say,
    )
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return [_one(request, format, trained, reference, device, say) for format in request.formats]


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
            _write(scratch, format, trained, reference, request, device)
            seconds = time.perf_counter() - start
            size = sum(p.stat().st_size for p in scratch.iterdir())
            say(f"{format.name}: {size / 1e9:.3f} GB in {seconds:.1f} s; loading it again ...")
            loaded = _load_again(scratch, format, trained, reference, request, device)
            use = _use(format, trained)
            (scratch / CARD).write_text(card(trained, format, loaded, use=use))
    except OSError as error:
        raise ValueError(
            f"--out must be a folder that can be written, got {folder}: {error.strerror or error}"
        ) from error
    for proof in loaded.proofs:
        say(f"{format.name}: {proof.line} [{proof.loader}]")
    if loaded.note:
        say(f"{format.name}: {loaded.note}")
    say(f"{format.name}: written to {folder}")
    return Exported(folder=folder, num_bytes=size, seconds=seconds, loaded=loaded)


def _write(
    folder: Path,
    format: Format,
    trained: TrainedPolicy,
    reference: Reference,
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
    elif format.name in CALIBRATED:
        write_calibrated(
            folder,
            trained,
            reference.training_rows,
            name=format.name,
            dtype=dtype,
            device=device,
            python=request.calibrator,
        )
    else:
        write = write_merged4 if format.name == "merged4" else write_merged16
        write(folder, trained, dtype=dtype)


def _load_again(
    folder: Path,
    format: Format,
    trained: TrainedPolicy,
    reference: Reference,
    request: ExportRequest,
    device: torch.device,
) -> Loaded:
    """Load an export with each library that will use it; refuse one that is too far away."""
    first = _prove(folder, format, trained, reference, device)
    check(first)
    always = request.with_vllm is WithVLLM.always
    asked = always or (request.with_vllm is WithVLLM.auto and device.type == "cuda")
    if format.kind is not Kind.folder or not asked:
        return Loaded(proofs=(first,), note="")
    if reason := why_not(format.name, device):
        return Loaded(proofs=(first,), note=f"vLLM did not load it: {reason}.")
    gc.collect()
    try:
        second = prove_vllm(folder, format, trained, reference, device=device)
    except ValueError as error:
        if always:
            raise
        return Loaded(proofs=(first,), note=f"{vllm_version()} did not load it: {error}.")
    check(second)
    return Loaded(proofs=(first, second), note="")


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
