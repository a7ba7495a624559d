"""Generators: prompts in, sampled completions and their logps out (`rlkit.types.Generator`).

    base            configuration and sampling seeds, what every generator shares
    sampling        the sampling distribution and drawing from it, pure functions
    hf              any transformers causal LM, in the trainer's process, on the trainer's weights
    vllm            vLLM in the trainer's process or elsewhere; only this package imports it

Every engine takes the same seeds and reports sampling logps under the distribution defined in
`sampling`. Nothing outside this package imports vLLM.
"""

from rlkit.generation.base import SCHEMAS as _BASE
from rlkit.generation.base import (
    AutoGeneratorConfig,
    GeneratorConfig,
    HFGeneratorConfig,
    Progress,
    SamplingOptions,
    sample_seed,
    sampling_config,
)
from rlkit.generation.vllm.config import SCHEMAS as _VLLM
from rlkit.generation.vllm.config import VLLMGeneratorConfig, VLLMServerConfig

SCHEMAS = (*_BASE, *_VLLM)

__all__ = [
    "SCHEMAS",
    "AutoGeneratorConfig",
    "GeneratorConfig",
    "HFGeneratorConfig",
    "Progress",
    "SamplingOptions",
    "VLLMGeneratorConfig",
    "VLLMServerConfig",
    "sample_seed",
    "sampling_config",
]
