"""Convert GGUF files, once each, to a folder in Hugging Face format.

The values are the dequantised ones, in float32, so that nothing is rounded a second time and CPUs
map the file instead of converting it. Conversion holds a lock, works in a scratch folder and
renames it at the end: a folder that exists under its final name is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlkit.models.quiet import slow_step
from rlkit.runtime.files import published, remove_leftovers
from rlkit.runtime.say import Say


def first_line(error: BaseException) -> str:
    """Return the first line of `error`, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def convert_gguf(gguf: Path, cache: Path, *, say: Say) -> Path:
    """Return the converted folder of `gguf`, made now unless the same file was converted before.

    Files are told apart by path, size and modification time. Raises ValueError when transformers
    cannot read the file.
    """
    stat = gguf.stat()
    identity = f"{gguf}:{stat.st_size}:{stat.st_mtime_ns}"
    key = f"{gguf.stem[:60]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def build(folder: Path) -> None:
        with slow_step(f"Converting {gguf.name} to Hugging Face format (once)", say=say):
            write_converted(gguf, folder)

    return build_once(cache / "models" / key, build)


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, built by `build(scratch)` unless it exists; crashes and rivals are safe.

    Raises ValueError when the cache folder cannot be written, or is full.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if folder.is_dir():
                return folder
            remove_leftovers(folder)
            with published(folder) as scratch:
                scratch.mkdir()
                build(scratch)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ValueError(
            f"model.cache_dir must be a folder that can be written, got {folder.parent}: {reason}"
        ) from error
    return folder


def write_converted(gguf: Path, folder: Path) -> None:
    """Write weights, configs, tokenizer and chat template of `gguf` to `folder`, inside a step."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(gguf.parent), gguf.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    # The GGUF readers raise whatever the first nonsensical byte leads to.
    except Exception as error:
        raise ValueError(
            f"model.source must be a GGUF file that transformers can read, got {gguf}: "
            f"{first_line(error)}"
        ) from error
    end = _eos_token_id(gguf)
    if end is not None and tokenizer.eos_token_id != end:
        # transformers 5.17 gives tokenizers of llama's kind the first token as their last.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    # The weights are no longer quantised; transformers refuses to save them while it thinks so.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # a full disk, by another name
        raise OSError(first_line(error)) from error


def _eos_token_id(path: Path) -> int | None:
    """Return the token that ends a text, as the GGUF file itself says, or None."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.eos_token_id")
    return None if field is None else int(field.contents())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; the system drops it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
