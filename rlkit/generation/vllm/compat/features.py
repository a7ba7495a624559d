"""These are the private names of vLLM that each feature of rlkit needs, for all supported lines.

What only some lines have is in the file of the line (`v0_24` and the others). The tables are read
by `source`, and tests/generation/test_vllm_names.py holds the package to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from rlkit.generation.vllm.compat import cpu, rendezvous
from rlkit.generation.vllm.compat.line import VLLMLine
from rlkit.generation.vllm.compat.lines import LINES
from rlkit.generation.vllm.compat.source import missing


class Feature(StrEnum):
    """Each member stands or falls with private names, and has a plain path without them."""

    in_place = "adapter in place"
    """The adapter is copied into vLLM's buffers. Else vLLM's own loader reads it, from memory or
    from a file."""
    views = "shared weights"
    """The trainer computes on vLLM's weights. Else both have their own."""
    core_loop = "core loop"
    """Requests go past vLLM's output processor. Else `LLMEngine.step` runs them."""
    dense = "dense products"
    """The adapter is multiplied by plain products. Else Punica's kernels do it."""
    bursts = "bursts"
    """Decoding steps go past the scheduler. Else vLLM takes them one by one."""
    kv_release = "cache release"
    """The key-value cache gives its memory back. Else `generator.release_kv_cache` is refused."""
    cpu = "weights kept on a CPU"
    """vLLM packs no weights on a CPU. Else `generator.weights` is `separate` there."""
    team = "tensor parallelism"
    """Several ranks are one engine. Else `generator.tensor_parallel` above 1 is refused."""


_CORE = """
v1/engine/llm_engine.py LLMEngine: engine_core vllm_config
v1/engine/core_client.py InprocClient: engine_core add_request get_output abort_requests
v1/engine/core.py EngineCore: model_executor scheduler abort_requests
v1/executor/uniproc_executor.py UniProcExecutor: driver_worker
v1/worker/worker_base.py WorkerWrapperBase: worker
"""
_IN_PLACE = """
v1/worker/lora_model_runner_mixin.py LoRAModelRunnerMixin: lora_manager
lora/worker_manager.py WorkerLoRAManager: _adapter_manager
lora/worker_manager.py WorkerLoRAManager.add_dummy_lora(lora_request, rank)
lora/model_manager.py LoRAModelManager: modules packed_modules_mapping lora_index_to_id
lora/model_manager.py LoRAModelManager.activate_adapter(lora_id)
lora/model_manager.py LoRAModelManager: add_adapter remove_adapter list_adapters
lora/model_manager.py LRUCacheLoRAModelManager.pin_adapter(lora_id)
lora/layers/base_linear.py BaseLinearLayerWithLoRA: lora_a_stacked lora_b_stacked base_layer
"""
_VIEWS = """
model_executor/layers/linear.py MergedColumnParallelLinear: output_sizes
model_executor/layers/linear.py QKVParallelLinear: output_sizes
model_executor/layers/vocab_parallel_embedding.py VocabParallelEmbedding: org_vocab_size
entrypoints/llm.py LLM: llm_engine collective_rpc reset_prefix_cache
"""
_CORE_LOOP = """
v1/engine/llm_engine.py LLMEngine: engine_core input_processor get_supported_tasks
v1/engine/input_processor.py InputProcessor: process_inputs
v1/engine/core_client.py InprocClient: add_request get_output abort_requests
v1/engine/__init__.py EngineCoreOutput: request_id new_token_ids new_logprobs finish_reason
"""
_DENSE = """
lora/model_manager.py LoRAModelManager: punica_wrapper_mapping lora_slots _last_mapping model
lora/punica_wrapper/punica_base.py PunicaWrapperBase: _token_lora_indices
lora/punica_wrapper/punica_base.py PunicaWrapperBase.update_metadata(mapping, lora_index_to_id,
    max_loras, vocab_size)
lora/layers/base_linear.py BaseLinearLayerWithLoRA: tp_size output_slices apply
lora/layers/base_linear.py BaseLinearLayerWithLoRA._get_quant_method()
model_executor/layers/linear.py UnquantizedLinearMethod.apply(layer, x, bias)
model_executor/layers/activation.py: SiluAndMul
model_executor/custom_op.py CustomOp: forward
model_executor/layers/layernorm.py RMSNorm: variance_size_override has_weight variance_epsilon
v1/worker/gpu_worker.py Worker: load_model model_runner
"""
_BURSTS = """
v1/worker/gpu/model_runner.py GPUModelRunner: sampler block_tables req_states input_buffers
v1/worker/gpu/model_runner.py GPUModelRunner: kv_cache_config cudagraph_manager lora_config
v1/worker/gpu/model_runner.py GPUModelRunner: model_state model speculator execute_model_state
v1/worker/gpu/model_runner.py GPUModelRunner: supports_mm_inputs lora_state attn_groups
v1/worker/gpu/model_runner.py GPUModelRunner: execute_model
v1/worker/gpu/model_runner.py GPUModelRunner.prepare_attn(input_batch)
v1/worker/gpu/model_runner.py ExecuteModelState: input_batch hidden_states
v1/worker/gpu/input_batch.py prepare_pos_seq_lens(idx_mapping, query_start_loc,
    num_computed_tokens, pos, seq_lens)
v1/worker/gpu/input_batch.py InputBatch: idx_mapping idx_mapping_np query_start_loc seq_lens
v1/worker/gpu/input_batch.py InputBatch: seq_lens_cpu_upper_bound positions input_ids
v1/worker/gpu/input_batch.py InputBatch: cu_num_logits num_reqs expanded_idx_mapping
v1/worker/gpu/input_batch.py InputBatch: expanded_local_pos
v1/worker/gpu/model_states/default.py DefaultModelState: rope_state
v1/worker/gpu/model_states/default.py DefaultModelState: prepare_attn
v1/worker/gpu/cudagraph_utils.py ModelCudaGraphManager.run_fullgraph(desc)
v1/worker/gpu/cudagraph_utils.py CudaGraphManager: dispatch needs_capture cudagraph_mode
v1/worker/gpu/model_runner.py GPUModelRunner: decode_query_len lora_capture_cases max_num_reqs
v1/worker/gpu/model_runner.py GPUModelRunner: capture_model compilation_config max_model_len
v1/worker/gpu/model_runner.py GPUModelRunner: device vllm_config
v1/worker/gpu/lora_utils.py LoraState.get_activate_loras(req_ids)
v1/worker/gpu/states.py RequestState: num_computed_tokens last_sampled_tokens prefill_len
v1/worker/gpu/states.py RequestState: draft_tokens req_id_to_index all_token_ids total_len
v1/worker/gpu/sample/sampler.py Sampler: sampling_states use_fp64_gumbel
v1/worker/gpu/sample/states.py SamplingStates: temperature min_p seeds vocab_size
v1/core/kv_cache_manager.py KVCacheManager: allocate_slots block_pool
v1/core/block_pool.py BlockPool.get_num_free_blocks()
v1/core/sched/output.py CachedRequestData.make_empty()
v1/core/sched/output.py SchedulerOutput.make_empty()
v1/core/sched/output.py SchedulerOutput: scheduled_spec_decode_tokens
v1/core/sched/scheduler.py Scheduler: running waiting connector max_num_running_reqs
v1/core/sched/scheduler.py Scheduler: kv_cache_manager
v1/core/sched/scheduler.py Scheduler.update_from_output(scheduler_output, model_runner_output)
v1/engine/core.py EngineCore: batch_queue
v1/engine/core.py EngineCore.abort_requests(request_ids)
v1/request.py Request: num_computed_tokens num_output_placeholders num_tokens num_output_tokens
v1/request.py Request: request_id num_prompt_tokens max_tokens sampling_params is_finished
v1/request.py Request: prompt_token_ids lora_request
v1/request.py Request.append_output_token_ids(token_ids)
"""
_KV_RELEASE = """
device_allocator/cumem.py: unmap_and_release
device_allocator/cumem.py CuMemAllocator: get_instance pointer_to_data allocator_and_pools wake_up
v1/worker/gpu/model_runner.py GPUModelRunner: kv_caches
"""
TABLES: Mapping[Feature, str] = MappingProxyType(
    {
        Feature.in_place: _IN_PLACE,
        Feature.views: _VIEWS,
        Feature.core_loop: _CORE_LOOP,
        Feature.dense: _IN_PLACE + _DENSE,
        Feature.bursts: _CORE + _BURSTS,
        Feature.kv_release: _KV_RELEASE,
        Feature.cpu: cpu.NAMES,
        Feature.team: rendezvous.NAMES,
    }
)
"""The names that every line must have; `VLLMLine.names` adds those of one line."""


def line_of(root: Path) -> VLLMLine | None:
    """Find the newest line whose own names are all in vLLM's source at `root`; None without one."""
    return next((line for line in LINES if not missing(root, line.names)), None)


def gaps(root: Path, feature: Feature) -> list[str]:
    """List the names that `feature` needs and the vLLM at `root` lacks; empty when it can be on.

    Args:
        root: The folder `vllm` of an installed or an unpacked vLLM.
        feature: What is asked for.

    Returns:
        Names as `module.Class.attribute`; for bursts also the line's, where no line fits.
    """
    lacking = missing(root, TABLES[feature])
    if feature is Feature.bursts and line_of(root) is None:
        lacking += missing(root, LINES[0].names)
    return lacking
