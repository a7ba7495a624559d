"""Generators: prompts in, sampled completions and their logps out (`rlkit.types.Generator`).

    base      configuration and sampling seeds, what every generator shares
    sampling  the sampling distribution and drawing from it, pure functions
    hf        any transformers causal LM, in the trainer's process, on the trainer's own weights

An engine with weights of its own (vLLM: modules `vllm` and `lora`) stands beside `hf` behind the
same protocol: it derives a `GeneratorConfig`, takes the same seeds and reports sampling logps under
the distribution defined in `sampling`. Nothing outside this package imports an engine.
"""

from rlkit.generation.base import (
    SCHEMAS,
    GeneratorConfig,
    HFGeneratorConfig,
    Progress,
    SamplingOptions,
    sample_seed,
    sampling_config,
)

__all__ = [
    "SCHEMAS",
    "GeneratorConfig",
    "HFGeneratorConfig",
    "Progress",
    "SamplingOptions",
    "sample_seed",
    "sampling_config",
]
