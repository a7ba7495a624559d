"""Can an engine decode in bursts? Every condition is looked at before the first burst."""

from __future__ import annotations

from typing import Any

from rlkit.generation.speculation import SpeculationOptions
from rlkit.generation.vllm.accel import draft_graphs
from rlkit.generation.vllm.accel.burst import Decoder
from rlkit.generation.vllm.accel.draft_burst import DraftedDecoder
from rlkit.generation.vllm.compat import objects
from rlkit.generation.vllm.compat.check import Support
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.guard import output_captured

_RUNNER = (
    *("sampler", "block_tables", "req_states", "input_buffers", "attn_groups", "kv_cache_config"),
    *("cudagraph_manager", "lora_state", "lora_config", "model_state", "model", "prepare_attn"),
    *("postprocess_sampled", "execute_model", "execute_model_state", "speculator"),
)
"""vLLM's V2 model runner has these attributes, the V1 runner has not."""


def find_decoder(
    llm: Any, support: Support, speculation: SpeculationOptions | None = None
) -> Decoder | str:
    """Give a decoder for `llm`, or what a decoder needs that `llm` does not have.

    With `speculation` that is on it guesses tokens, and its graphs are captured here.
    """
    core = objects.engine_core(llm)
    if core is None:
        return "the engine in this process"
    if why_not := support.why_not(Feature.bursts):
        return why_not
    if support.line is None:
        return "a vLLM of a known line"
    runner, scheduler = objects.model_runner(core), core.scheduler
    if not all(hasattr(runner, n) for n in _RUNNER) or not hasattr(scheduler, "connector"):
        return "vLLM's V2 model runner"
    plain = type(runner.model_state).__name__ == "DefaultModelState"
    cache, parallel = runner.kv_cache_config, llm.llm_engine.vllm_config.parallel_config
    needs = {
        "vLLM's default model state": plain and runner.model_state.rope_state is None,
        "a model of text alone": not runner.supports_mm_inputs,
        "no speculative decoding": runner.speculator is None,
        "one kind of attention": len(cache.kv_cache_groups) == 1,
        "a cache without zeroing": not cache.needs_kv_cache_zeroing,
        "no KV connector": scheduler.connector is None,
        "one device": parallel.world_size_across_dp == 1,
    }
    missing = next((need for need, is_met in needs.items() if not is_met), None)
    if missing:
        return missing
    if speculation is None or not speculation.is_on:
        return Decoder(core, runner, support.line)
    with output_captured():
        graphs = draft_graphs.capture(runner, speculation.tokens + 1, speculation.rows)
    return DraftedDecoder(core, runner, support.line, speculation, graphs)
