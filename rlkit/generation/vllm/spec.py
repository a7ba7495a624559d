"""The facts of a run that an engine is started for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from rlkit.generation.vllm.team import Team


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """This is what a run asks of its engine."""

    location: str
    """Folder or hub id of the base model."""
    revision: str | None
    hf_config: PreTrainedConfig
    dtype: torch.dtype
    device: torch.device
    max_prompt_length: int
    max_completion_length: int
    rows: int
    """Completions of one training step."""
    lora_rank: int
    """0 = an engine without adapters."""
    lora_modules: tuple[str, ...]
    """Last parts of the names of the adapted layers: q_proj, up_proj, ..."""
    allow_remote_code: bool = False
    in_fp8: frozenset[str] = frozenset()
    """Linear layers that the engine puts into 8 bits while loading, by the trainer's names."""
    spare_tokens: int = 0
    """Places behind a row's last token, to which wrong guesses write."""
    team: Team | None = None
    """The ranks that are this engine together; None = it is this process's alone."""

    @property
    def parts(self) -> int:
        """Return the processes that share the weights and the cache of this engine."""
        return 1 if self.team is None else self.team.size

    @property
    def four_bit(self) -> bool:
        """Tell whether the folder holds bitsandbytes NF4, the one quantisation that it may have."""
        return getattr(self.hf_config, "quantization_config", None) is not None
