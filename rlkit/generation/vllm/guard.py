"""Put back what starting vLLM changes for the whole process: the trainer lives there as well."""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SETTINGS = {
    # Read when vLLM is imported or an engine is built. In process: the engine shares the trainer's
    # memory. Loggers without handlers of their own: records go where rlkit's go.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # For 8-bit weights only, and slow to import.
    "VLLM_USE_DEEP_GEMM": "0",
    # It asks for NVLink's multicast, which can put a host's cards out of service.
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
}
_NOISY = (
    # It warns in every run with adapters that theirs could be another tokenizer.
    "vllm.v1.engine.input_processor",
    # It warns of every Triton kernel that anybody compiles, the trainer's included.
    "vllm.triton_utils.jit_monitor",
    "vllm.utils.jit_monitor",
)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Undo what the body does to random states, switches, functions and environment of the process.

    vLLM 0.24 to 0.33 seed every generator, set the precision of float32 products, and turn off
    cuDNN's attention. On a CPU they replace torch.set_num_threads by a function that does nothing.
    """
    random_state, numpy_state = random.getstate(), np.random.get_state()
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    synchronize = torch.accelerator.synchronize
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    environment = dict(os.environ)
    try:
        yield
    finally:
        random.setstate(random_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu_state)
        for number, state in enumerate(cuda_states):
            torch.cuda.set_rng_state(state, number)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.set_num_threads = set_threads
        if torch.accelerator.is_available():
            # Without one it would raise, and vLLM on a CPU calls it.
            torch.accelerator.synchronize = synchronize
        torch.set_num_threads(threads)
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
        _restore_environment(environment)


def configure_environment() -> None:
    """Make the settings of vLLM that have no argument, for as long as the process lives.

    FlashInfer's sampler is turned off where FlashInfer is missing: vLLM 0.24 would import it.
    """
    os.environ.update(_SETTINGS)
    if torch.cuda.is_available():
        # The V2 runner draws seeded samples in one kernel; the older one draws row by row.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import flashinfer  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"


@contextmanager
def output_captured() -> Iterator[list[str]]:
    """Collect what the body writes to standard output and error, C++ libraries included.

    The list holds the text after the body, also when it raised.
    """
    captured: list[str] = []
    with tempfile.TemporaryFile() as file:
        _flush()
        # C++ libraries write to the descriptors themselves, so these are pointed at the file.
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            _flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            file.seek(0)
            captured.append(file.read().decode(errors="replace"))


@contextmanager
def log_written() -> Iterator[None]:
    """Send vLLM's log from INFO on to standard error during the body, each line with its time."""
    logger, handler = logging.getLogger("vllm"), logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%T")
    )
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _restore_environment(before: dict[str, str]) -> None:
    """Put the environment back but for vLLM's own variables: it reads some of them later."""
    for name in set(os.environ) | set(before):
        if name.startswith("VLLM_"):
            continue
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]
