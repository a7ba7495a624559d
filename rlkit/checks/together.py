"""Ranks that sample or compute together: which options go with it, and how many ranks they are."""

from __future__ import annotations

from rlkit.checks.refusal import ConfigError, require
from rlkit.generation import GeneratorConfig, HFGeneratorConfig, VLLMGeneratorConfig

_TEAM = "generator.tensor_parallel"
_WHOLE = "memory.weights"


def ranks_together(generator: GeneratorConfig, *, gpus: int, is_sharded: bool) -> int:
    """Return the ranks that sample as one; 1 = each samples for itself.

    transformers samples by the trainer's own layers. Where each rank has a part of them, all ranks
    compute them together.
    """
    if is_sharded and isinstance(generator, HFGeneratorConfig):
        return gpus
    return generator.ranks_together


def check_together(
    generator: GeneratorConfig, gpus: int, quantised: str, tuning: str, *, is_sharded: bool
) -> None:
    """Raise ConfigError where ranks cannot share an engine, or the weights of the model.

    Args:
        generator: The options of the generator.
        gpus: The ranks of the run.
        quantised: The kind of quantisation, `none` without one.
        tuning: The kind of tuning.
        is_sharded: Whether each rank keeps a part of the model's layers.
    """
    if quantised == "fp8":
        try:
            generator.check_fp8_base()
        except ValueError as error:
            raise ConfigError(str(error)) from error
    team = generator.ranks_together
    require(gpus % team == 0, _TEAM, f"a divisor of gpus ({gpus})", team)
    having = f"{_WHOLE}=sharded" if is_sharded else f"{_TEAM} above 1"
    if is_sharded or team > 1:
        require(quantised == "none", "memory.quant.kind", f"none with {having}", quantised)
    if not is_sharded:
        return
    require(gpus > 1, _WHOLE, "whole with gpus=1", "sharded")
    require(tuning == "lora", "model.tuning", f"lora with {having}", tuning)
    if isinstance(generator, VLLMGeneratorConfig):
        # An engine of fewer ranks takes torch's default group, which sharding needs for all.
        require(team == gpus, _TEAM, f"{gpus}, all gpus, with {having}", team)
