"""One vLLM engine for all sides of `benchmarks.speculation`, with an adapter of rank 16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.generation_sides import random_adapter
from benchmarks.random_model import LINEAR_LAYERS
from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.speculation import SpeculationKind, SpeculationOptions
from rlkit.generation.vllm.accel.burst import Decoder
from rlkit.generation.vllm.accel.find import find_decoder
from rlkit.generation.vllm.compat.check import look_up
from rlkit.generation.vllm.config import Weights
from rlkit.generation.vllm.engine import start_engine
from rlkit.generation.vllm.generator import VLLMGenerator
from rlkit.generation.vllm.package import version
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.models.config import LoRAConfig
from rlkit.policy.lora import attach
from rlkit.types import Generator

_RANK = 16


class VLLMSides:
    """A decoder of its own for each side, on one engine."""

    def __init__(
        self,
        folder: Path,
        stops: frozenset[int],
        *,
        prompt: int,
        completion: int,
        rows: int,
        wanted: Sequence[SpeculationOptions],
    ) -> None:
        """Start the engine.

        Args:
            folder: The model.
            stops: Tokens that end a completion.
            prompt: Most tokens of a prompt.
            completion: Most tokens of a completion.
            rows: Completions at once.
            wanted: The options of all sides.
        """
        from rlkit.generation.vllm.lora import LoRAInjector
        from rlkit.generation.vllm.weights import weight_views
        from rlkit.models.views import model_on_views

        hf_config = AutoConfig.from_pretrained(folder)
        device, dtype = torch.device("cuda", torch.cuda.current_device()), torch.bfloat16
        most = max((side.tokens for side in wanted), default=1)
        guesses = SpeculationOptions(kind=SpeculationKind.ngram, tokens=most, rows=min(rows, 4096))
        self._config = VLLMGeneratorConfig(
            weights=Weights.shared, max_num_seqs=rows, speculation=guesses
        )
        spec = EngineSpec(
            location=str(folder),
            revision=None,
            hf_config=hf_config,
            dtype=dtype,
            device=device,
            max_prompt_length=prompt,
            max_completion_length=completion,
            rows=rows,
            lora_rank=_RANK,
            lora_modules=LINEAR_LAYERS,
        )
        self._engine, self._stops = start_engine(self._config, spec, say=print), stops
        # Graphs are captured while no adapter is there: vLLM puts one of its own into the slot.
        self._decoders = [(side, self._decoder(side)) for side in (SpeculationOptions(), *wanted)]
        views = weight_views(self._engine.llm)
        model = model_on_views(
            hf_config, views, str(folder), dtype=dtype, device=device, attention="sdpa"
        )
        lora = attach(model, LoRAConfig(rank=_RANK, alpha=2.0 * _RANK), dtype=dtype)
        self._injector: Any = LoRAInjector(
            self._engine.llm, tuple(lora.shapes), rank=_RANK, scale=lora.config.scale, key=lora.key
        )
        self._adapter = random_adapter(lora, device)
        self._version = 0

    def generator(self, speculation: SpeculationOptions) -> Generator:
        """Return a generator whose decoder guesses as `speculation` says."""
        self._engine.decoder = next(own for side, own in self._decoders if side == speculation)
        return VLLMGenerator(
            self._engine, self._injector, stop_token_ids=self._stops, config=self._config
        )

    def renew(self, generator: Generator) -> None:
        """Load the adapter as the next version of the policy: cached prompts are forgotten."""
        self._version += 1
        generator.load_adapter(self._adapter, self._version)

    def _decoder(self, speculation: SpeculationOptions) -> Decoder:
        found = find_decoder(self._engine.llm, look_up(version()), speculation)
        if isinstance(found, str):
            raise RuntimeError(f"bursts need {found}")
        return found
