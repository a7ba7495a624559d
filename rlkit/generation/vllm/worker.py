"""The methods that rlkit adds to vLLM's worker.

`vllm.LLM(worker_extension_cls="rlkit.generation.vllm.worker.WorkerExtension")` mixes them into the
worker, and `llm.collective_rpc(name, args=...)` calls them; in process, tensors go by reference.
With tensor parallelism each rank has its own part. The private names used here are in `compat`.

An adapter lives in one slot s of vLLM's stacked buffers, per wrapped layer and fused part:
lora_a_stacked[part] (slots, 1, R, in) and lora_b_stacked[part] (slots, 1, out, R), the scale folded
into B. CUDA graphs and Triton kernels hold the addresses, so buffers are written, never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.generation.vllm.compat import objects, pools
from rlkit.generation.vllm.compat.repacked import repacked_layers
from rlkit.generation.vllm.shards import own_shards
from rlkit.generation.vllm.slot import AdapterBuffers, AdapterSlot, find_slot
from rlkit.models.fp8 import fp8_weight


class WriteReport(NamedTuple):
    """Layers written, and whether vLLM had dropped or moved the adapter before."""

    bound: int
    rebound: bool


@dataclass(slots=True)
class _State:
    """The extension keeps this for one engine."""

    slots: dict[int, AdapterSlot] = field(default_factory=dict)
    """By the adapter's id."""
    users: int = 0
    punica_because: str | None = "generator.compilation other than inductor"
    """Why Punica's kernels apply the adapters; None = they do not (`dense`)."""


class WorkerExtension:
    """Mixed into vLLM's `Worker`, which has the attribute `model_runner`."""

    model_runner: Any
    parallel_config: Any

    def rlkit_new_user(self) -> int:
        """Give a number that no other caller of this engine has."""
        self._rlkit_state().users += 1
        return self._rlkit_state().users

    def rlkit_punica_because(self) -> str | None:
        """Say why Punica's kernels apply the adapters; None = plain products do."""
        return self._rlkit_state().punica_because

    def rlkit_bind(self, int_id: int, layers: tuple[str, ...], rank: int) -> AdapterSlot:
        """Register adapter `int_id`, all zero, and look up where the factors of `layers` go.

        Raises ValueError when a layer has no LoRA buffers or `rank` does not fit them.
        """
        manager = self._rlkit_manager()
        if int_id not in manager.list_adapters():
            from vllm.lora.request import LoRARequest

            # The dummy brings no values: rank 1 keeps its copy in host memory small.
            request = LoRARequest(f"rlkit-{int_id}", int_id, "/rlkit/in-memory")
            objects.register_adapter(self.model_runner, request, 1)
        # The adapter gets a slot, and vLLM never gives that to another one while it is pinned.
        manager.activate_adapter(int_id)
        manager.pin_adapter(int_id)
        index = manager.lora_index_to_id.index(int_id)
        slot = find_slot(self.rlkit_parts(), index, layers, rank)
        # The dummy's values, and ranks beyond the adapter's, must add nothing.
        torch._foreach_zero_([buffer[slot.index] for buffer in slot.buffers])
        self._rlkit_state().slots[int_id] = slot
        return slot

    @torch.no_grad()
    def rlkit_write(
        self, int_id: int, layers: tuple[str, ...], factors: Sequence[Tensor], scale: float
    ) -> WriteReport:
        """Write A and scale B of each layer into the slot of an adapter, which is bound if need be.

        Args:
            int_id: The adapter's id in vLLM.
            layers: The adapted layers.
            factors: A and B of each layer in turn.
            scale: Multiplies B.
        """
        rank = factors[0].shape[0]
        slot = self._rlkit_state().slots.get(int_id)
        rebound = False
        if slot is None or not slot.valid(self._rlkit_manager(), int_id, layers, rank):
            rebound = slot is not None
            slot = self.rlkit_bind(int_id, layers, rank)
        slot.write(self.rlkit_shards(layers, factors), scale)
        return WriteReport(bound=len(factors) // 2, rebound=rebound)

    def rlkit_shards(self, layers: Sequence[str], factors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Give the parts of an adapter's factors that this rank holds; without a team, all."""
        if self.parallel_config.tensor_parallel_size == 1:
            return factors
        return own_shards(self.rlkit_parts(), layers, factors)

    def rlkit_load(self, int_id: int, tensors: Mapping[str, Tensor], rank: int) -> None:
        """Hand `tensors` (PEFT's keys, scale folded in) to vLLM's own loader, which keeps them."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        # vLLM's manager keeps what it has under an id, and ignores a second adapter.
        self.rlkit_drop(int_id)
        # The scale is folded in, so alpha = r makes vLLM's own factor 1.
        leaves = sorted({key.split(".lora_")[0].rsplit(".", 1)[-1] for key in tensors})
        helper = PEFTHelper.from_dict({"r": rank, "lora_alpha": rank, "target_modules": leaves})
        manager = self._rlkit_manager()
        model = LoRAModel.from_lora_tensors(
            int_id,
            dict(tensors),
            helper,
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
        )
        manager.add_adapter(model)
        manager.activate_adapter(int_id)
        manager.pin_adapter(int_id)

    def rlkit_drop(self, int_id: int) -> None:
        """Forget adapter `int_id`; harmless when there is none."""
        self._rlkit_state().slots.pop(int_id, None)
        self._rlkit_manager().remove_adapter(int_id)

    def rlkit_parts(self) -> dict[str, AdapterBuffers]:
        """Give the LoRA buffers by the trainer's layer names."""
        manager = self._rlkit_manager()
        parts: dict[str, AdapterBuffers] = {}
        for name, module in manager.modules.items():
            if not isinstance(module.lora_a_stacked, tuple):
                continue  # the embedding and the head are stored otherwise; rlkit adapts neither
            parent, _, leaf = name.rpartition(".")
            leaves = manager.packed_modules_mapping.get(leaf, [leaf])
            stacks = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
            for part, (a, b) in zip(leaves, stacks, strict=True):
                parts[f"{parent}.{part}" if parent else part] = AdapterBuffers(name, module, a, b)
        return parts

    def rlkit_slot(self, int_id: int) -> dict[str, Tensor]:
        """Give views of the slot of `int_id`, unused ranks too, by layer, part and factor.

        Raises ValueError when vLLM holds no such adapter.
        """
        manager = self._rlkit_manager()
        index = manager.lora_index_to_id.index(int_id)
        return {
            f"{layer}.{factor}": stack[index, 0]
            for layer, part in self.rlkit_parts().items()
            for factor, stack in (("A", part.a), ("B", part.b))
        }

    def rlkit_forget_buffers(self) -> None:
        """Take LoRA buffers out of Punica's tables, which the process keeps, before the end."""
        if not self.model_runner.lora_config:
            return
        parts = self.rlkit_parts().values()
        objects.forget_addresses(stack.data_ptr() for part in parts for stack in part[2:])

    def rlkit_repacked(self) -> list[str]:
        """Name the layers that compute on a packed copy of their weight."""
        return repacked_layers(self.model_runner.get_model())

    def rlkit_parameters(self) -> dict[str, Tensor]:
        """Give views of vLLM's weights under the names of the Hugging Face model.

        Fused layers are cut into their parts, padding of the vocabulary is left out, and quantised
        layers are bitsandbytes' `Params4bit` or `rlkit.models.fp8`'s. Nothing is copied.
        """
        model = self.model_runner.get_model()
        views: dict[str, Tensor] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            for kind, parameter in module.named_parameters(recurse=False):
                # A layer wrapped for LoRA keeps its weight in `.base_layer`.
                layer = name.removesuffix(".base_layer")
                views.update(_hf_views(layer, kind, module, parameter, model))
        return views

    @torch.no_grad()
    def rlkit_load_part(self, tensors: Mapping[str, Tensor]) -> int:
        """Write this rank's part of whole weights, by Hugging Face names; return its bytes.

        Raises ValueError when `tensors` leave a weight as it was.
        """
        model = self.model_runner.get_model()
        loaded = model.load_weights((name, t.detach()) for name, t in tensors.items())
        parameters = dict(model.named_parameters())
        if left := sorted(parameters.keys() - loaded):
            raise ValueError(f"vLLM must get all of its weights, got none for {left[0]}")
        return sum(parameter.nbytes for parameter in parameters.values())

    def rlkit_part_bits(self) -> dict[str, Tensor]:
        """Give copies of this rank's weights, on the host, by vLLM's names."""
        model = self.model_runner.get_model()
        return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}

    def rlkit_kv_discard(self) -> int:
        """Give the memory of the key-value cache back to the device; return the bytes freed."""
        return pools.discard_kv_cache()

    def rlkit_kv_restore(self) -> None:
        """Map memory for the key-value cache again, all zero, at the same addresses."""
        pools.map_kv_cache()
        self.rlkit_kv_clear()
        if hasattr(self.model_runner, "post_kv_cache_wake_up"):  # vLLM 0.24
            self.model_runner.post_kv_cache_wake_up()
        torch.cuda.synchronize()

    def rlkit_kv_clear(self) -> None:
        """Zero the key-value cache: attention reads whole blocks, and fresh memory could be NaN."""
        for cache in self.model_runner.kv_caches:
            cache.zero_()

    def _rlkit_manager(self) -> Any:
        return objects.adapter_manager(self.model_runner)

    def _rlkit_state(self) -> _State:
        # vLLM calls no __init__ of an extension.
        if not hasattr(self, "_rlkit_state_"):
            self._rlkit_state_ = _State()
        return self._rlkit_state_


def _hf_views(layer: str, kind: str, module: Any, parameter: Any, model: Any) -> dict[str, Tensor]:
    parent, _, leaf = layer.rpartition(".")
    parts = [f"{parent}.{p}.{kind}" for p in model.packed_modules_mapping.get(leaf, [leaf])]
    data = parameter.detach()
    if kind == "weight" and hasattr(module, "nf4_states"):  # see nf4.py
        codes = data.split([state.shape[0] for state in module.nf4_states])
        return dict(zip(parts, map(_four_bit, codes, module.nf4_states), strict=True))
    if kind == "weight" and hasattr(module, "fp8_scale"):  # see fp8.py
        sizes = list(module.output_sizes) if len(parts) > 1 else [len(data)]
        pairs = zip(data.split(sizes), module.fp8_scale.split(sizes), strict=True)
        weights = [fp8_weight(codes, scale, module.coded_dtype) for codes, scale in pairs]
        return dict(zip(parts, weights, strict=True))
    if len(parts) > 1 and data.shape[0] == sum(module.output_sizes):
        return dict(zip(parts, torch.split(data, list(module.output_sizes)), strict=True))
    if hasattr(module, "org_vocab_size"):
        data = data[: module.org_vocab_size]
    return {f"{layer}.{kind}": data}


def _four_bit(codes: Tensor, state: Any) -> Tensor:
    from bitsandbytes.nn.modules import Params4bit

    weight: Tensor = Params4bit(
        codes.view(-1, 1),
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        quant_storage=codes.dtype,
        bnb_quantized=True,
    )
    return weight
