"""The cost of keeping, recomputing and offloading activations; the gain of packing and sharing.

`python -m benchmarks.activations [--out FILE]` on a CUDA device: random weights of real shapes,
the policy's own forward and backward pass. Tables in docs/memory/activations.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from rlkit.launch.environment import hardware, versions
from rlkit.models.config import Checkpointing, Switch
from rlkit.models.families import backbone_of, head_of
from rlkit.models.fused import fuse
from rlkit.models.offload import Offload
from rlkit.policy.lora import LoRAConfig, attach, init_adapter
from rlkit.policy.policy import Policy
from rlkit.runtime.garbage import garbage_waits
from rlkit.training.backward import backward
from rlkit.training.collate import collate
from rlkit.types import FinishReason, Prompt, Rollout, RolloutBatch, ScoredRollout

QWEN_1_5B = Qwen2Config(
    vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
    num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32768,
    tie_word_embeddings=True,
)  # fmt: skip
LLAMA_8B_8_LAYERS = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=8,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
    tie_word_embeddings=False,
)  # fmt: skip
MODES = (Checkpointing.off, Checkpointing.on, Checkpointing.offload)
_SIZES = ((1, 4096), (2, 4096), (1, 20480))
_REPEATS = 5
_TURNS = 12


def new_policy(config: PreTrainedConfig, device: torch.device) -> Policy:
    """A bf16 policy of random weights whose adapter does something."""
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    with device:
        model = auto.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.requires_grad_(False).train(False)
    lora = attach(model, LoRAConfig(rank=16), dtype=torch.bfloat16)
    fuse(model, join=lora.join)
    adapter = init_adapter(lora, seed=0, device=device)
    for name, leaf in adapter.items():
        if "lora_B" in name:
            torch.nn.init.normal_(leaf, std=0.01)
    return Policy(model=model, tuning=lora, head=head_of(model), adapter=adapter)


def batch_of(
    prompts: Sequence[int], completions: Sequence[int], *, group: int, device: torch.device
) -> RolloutBatch:
    """Random tokens: prompts of these lengths, each with `group` of the completions' lengths."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 30000, (length,), generator=generator).tolist())

    groups = []
    for i, length in enumerate(prompts):
        prompt = Prompt(index=i, ids=ids(length), text="")
        group_lengths = completions[i * group : (i + 1) * group]
        groups.append([_sample(prompt, s, ids(n)) for s, n in enumerate(group_lengths)])
    return collate(groups, reward_weights=(), pad_token_id=0, device=device)


def _sample(prompt: Prompt, index: int, ids: tuple[int, ...]) -> ScoredRollout:
    rollout = Rollout(
        prompt=prompt,
        sample_index=index,
        completion_ids=ids,
        sampling_logps=(0.0,) * len(ids),
        finish_reason=FinishReason.length,
        policy_version=0,
    )
    return ScoredRollout(rollout=rollout, text="", components=(), reward=0.0)


@garbage_waits()
def step(policy: Policy, batch: RolloutBatch) -> dict[str, Tensor]:
    """Gradient of the sum of the logps on `batch`."""
    for leaf in policy.adapter.values():
        leaf.grad = None
    out = policy.forward(batch, adapter=policy.adapter, temperature=1.0)
    backward(out.logps.sum())
    return {name: leaf.grad for name, leaf in policy.adapter.items() if leaf.grad is not None}


def measured(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds (median after a warm-up) and what the allocator held at most, GiB."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = [_ms(run) for _ in range(_REPEATS)]
    peak = torch.cuda.max_memory_allocated()
    return {
        "ms": statistics.median(times),
        "ms_min": min(times),
        "peak_gib": peak / 2**30,
        "above_weights_gib": (peak - before) / 2**30,
    }


def checkpointing(
    policy: Policy, sizes: Sequence[tuple[int, int]], device: torch.device
) -> list[object]:
    """Off, on and offload of micro-batches of `sizes`, sequences x tokens; what does not fit is
    left out."""
    rows: list[object] = []
    for count, length in sizes:
        batch = batch_of([64] * count, [length - 64] * count, group=1, device=device)
        offload = Offload(device)
        ways = {
            mode: replace(
                policy,
                gradient_checkpointing=mode,
                offload=offload if mode is Checkpointing.offload else None,
            )
            for mode in MODES
        }
        peaks = {mode: _peak(partial(step, one, batch)) for mode, one in ways.items()}
        fitting = {mode: ways[mode] for mode, peak in peaks.items() if peak is not None}
        for mode, ms in _in_turns(fitting, batch).items():
            host = offload.host.num_bytes if mode is Checkpointing.offload else 0
            rows.append({
                "sequences": count, "tokens": length, "mode": mode.value,
                "ms": statistics.median(ms), "ms_min": min(ms), "ms_all": ms,
                "above_weights_gib": peaks[mode], "host_gib": host / 2**30,
            })  # fmt: skip
            print(rows[-1], flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def _ms(run: Callable[[], object]) -> float:
    """Return the milliseconds of one run, the device's part included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _peak(run: Callable[[], object]) -> float | None:
    """GiB above what there was; None = more than there is. Warms up."""
    try:
        run()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    except torch.OutOfMemoryError:
        return None


def _in_turns(ways: dict[Checkpointing, Policy], batch: RolloutBatch) -> dict[Any, list[float]]:
    """Milliseconds of each, one after the other and back: what else the host does meets all."""
    times: dict[Any, list[float]] = {mode: [] for mode in ways}
    for turn in range(_TURNS):
        for mode in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            times[mode].append(_ms(partial(step, ways[mode], batch)))
    return times


def bitwise(policy: Policy, device: torch.device) -> dict[str, object]:
    """Gradients of offload against on: bits that differ, and those of on against itself."""
    batch = batch_of([512, 300], [3000, 900, 40, 2500], group=2, device=device)
    on = replace(policy, gradient_checkpointing=Checkpointing.on)
    offload = replace(on, gradient_checkpointing=Checkpointing.offload, offload=Offload(device))
    result: dict[str, object] = {}
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        first = {k: v.clone() for k, v in step(on, batch).items()}
        for label, other in (("on", on), ("offload", offload)):
            for _ in range(3):
                again = step(other, batch)
            unequal = sum(int((again[k] != first[k]).sum()) for k in first)
            result[f"{label}, deterministic={deterministic}"] = unequal
    result["numbers"] = sum(v.numel() for v in first.values())
    torch.use_deterministic_algorithms(False)
    return result


def packing(policy: Policy, device: torch.device) -> dict[str, object]:
    """Ragged rows packed against padded, and shared prompts against repeated ones."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(64, 2048, (16,), generator=generator).tolist()
    ragged = batch_of([256] * 16, lengths, group=1, device=device)
    result: dict[str, object] = {"lengths": lengths}
    result["packed"] = measured(partial(step, policy, ragged))
    result["padded"] = measured(partial(_padded_step, policy, ragged))
    for prompt, completion in ((256, 512), (1024, 256), (4096, 256)):
        batch = batch_of([prompt], [completion] * 8, group=8, device=device)
        for way in (Switch.on, Switch.off):
            one = replace(policy, shared_prefix=way)
            key = f"8 x {completion} after {prompt}, shared_prefix={way.value}"
            result[key] = measured(partial(step, one, batch))
    return result


def _padded_step(policy: Policy, batch: RolloutBatch) -> None:
    """The same rows as a right-padded batch through transformers' own attention (sdpa, causal)."""
    for leaf in policy.adapter.values():
        leaf.grad = None
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    with policy.tuning.active(policy.adapter):
        states = backbone_of(policy.model)(input_ids=ids, use_cache=False).last_hidden_state
    # The head costs the same both ways and is left out here: only the packed side pays it.
    backward(states.float().sum())


def main() -> int:
    """Run everything and write JSON after each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.activations")
    parser.add_argument("--out", type=Path, help="where to write the numbers")
    out: Path | None = parser.parse_args().out
    if not torch.cuda.is_available():
        print("benchmarks.activations needs a CUDA device, got none", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    record: dict[str, object] = {
        "command": " ".join(["python -m benchmarks.activations", *sys.argv[1:]]),
        "versions": versions(),
        "hardware": hardware(),
    }

    def save(key: str, value: object) -> None:
        record[key] = value
        if out is not None:
            out.write_text(json.dumps(record, indent=2) + "\n")
        print(key, value, flush=True)

    policy = new_policy(QWEN_1_5B, device)
    save("bitwise", bitwise(policy, device))
    save("qwen2.5-1.5b", checkpointing(policy, _SIZES, device))
    save("packing, qwen2.5-1.5b", packing(policy, device))
    del policy
    gc.collect()
    torch.cuda.empty_cache()
    policy = new_policy(LLAMA_8B_8_LAYERS, device)
    save("llama-3.1-8b, 8 of 32 layers", checkpointing(policy, _SIZES, device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
