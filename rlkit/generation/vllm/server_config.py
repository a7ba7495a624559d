"""This module holds the options of the generator that asks a vLLM server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from rlkit.generation.base import GeneratorConfig
from rlkit.generation.speculation import refuse_speculation
from rlkit.generation.vllm.sampling_options import VLLMSamplingOptions
from rlkit.runtime.redact import is_reference
from rlkit.schema import Between


@dataclass(kw_only=True, slots=True)
class VLLMServerConfig(GeneratorConfig):
    """A running `vllm serve` on another device or machine; the adapter goes there by a folder.

    The server must be started with `--enable-lora --max-lora-rank R --max-loras 2
    --logprobs-mode processed_logprobs` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
    """

    sampling: VLLMSamplingOptions = field(default_factory=VLLMSamplingOptions)
    url: str = "http://127.0.0.1:8000"
    """Address of the server, without `/v1`; `env:NAME` = the value of that variable, so that a
    password in it reaches no file."""
    model: str = ""
    """Name that the server gives to the base model; empty = the only one that it lists."""
    adapter_folder: str = ""
    """Folder for adapters, seen by both machines under this path; empty = a temporary folder, for
    a server on this machine."""
    timeout_s: Annotated[float, Between(0.0, 1e6)] = 600.0
    """Seconds without an answer after which a request counts as lost. > 0 and <= 1e6."""
    connections: Annotated[int, Between(1, 10_000)] = 64
    """Requests in flight at once, in [1, 10000]."""

    def check_full_weights(self) -> None:
        """Raise ValueError: only an adapter can travel to a server."""
        raise ValueError(
            "generator must be auto, vllm or hf with model.tuning=full, got vllm_server"
        )

    def check_fp8_base(self) -> None:
        """Raise ValueError: the server has a base of its own, in 16 bits."""
        raise ValueError(
            "generator must be auto, vllm or hf with memory.quant.kind=fp8, got vllm_server"
        )

    def __post_init__(self) -> None:
        refuse_speculation(self.speculation, where="generator=vllm_server")
        if not (is_reference(self.url) or self.url.startswith(("http://", "https://"))):
            raise ValueError(f"generator.url must start with http:// or https://, got {self.url}")
        if not self.timeout_s > 0:
            raise ValueError(f"generator.timeout_s must be > 0, got {self.timeout_s}")
        if self.connections < 1:
            raise ValueError(f"generator.connections must be >= 1, got {self.connections}")
