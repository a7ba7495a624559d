"""Score and update alone: milliseconds and memory by the tokens of a micro-batch.

    python -m benchmarks.update [--tokens 4352,8192,16896] [--checkpointing off,on] [--out FILE]

GRPO with KL on a random model of the Qwen2.5-1.5B shape in bf16, LoRA of rank 16 on all linear
layers, 8 prompts of 128 tokens x 8 completions of 512; weights lie as in an engine. The fastest of
some repetitions: what else a host does only adds. `--tiny` runs a small model, on a CPU as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, Qwen2Config

from benchmarks.activations import QWEN_1_5B, batch_of, new_policy
from benchmarks.side import Result, write_report
from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.models.config import Checkpointing
from rlkit.models.fused import GATE_UP, QKV
from rlkit.models.joined import adjoined
from rlkit.policy.policy import Policy
from rlkit.training.optim import OptimConfig, build_optimizer
from rlkit.training.score import score
from rlkit.training.update import TrainState, UpdateSettings, train_step
from rlkit.types import Algorithm, RolloutBatch, Setting

_GROUP = 8
_TINY = Qwen2Config(
    vocab_size=30000, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip


class Sizes(NamedTuple):
    """The sizes of what is computed."""

    model: PreTrainedConfig = QWEN_1_5B
    prompts: int = 8
    prompt_tokens: int = 128
    completion_tokens: int = 512


def lay_like_an_engine(model: nn.Module) -> None:
    """Put the weights of layers with one input one behind the other; their values stay."""
    for module in model.modules():
        for names in (QKV, GATE_UP):
            layers = [getattr(module, name, None) for name in names]
            for leaf in ("weight", "bias"):
                found = [getattr(layer, leaf, None) for layer in layers]
                parts = [part for part in found if part is not None]
                if len(parts) == len(names) and adjoined(parts) is None:
                    whole = torch.cat([part.data for part in parts])
                    rows = torch.split(whole, [len(part) for part in parts])
                    for part, own in zip(parts, rows, strict=True):
                        part.data = own


def measure(
    policy: Policy, batch: RolloutBatch, algorithm: Algorithm, *, tokens: int, repetitions: int
) -> dict[str, float]:
    """The fastest score and update in ms, and what the allocator held at most in GB."""
    optim = OptimConfig(learning_rate=1e-4)
    state = TrainState(learner=policy, optimizer=build_optimizer(policy.named_parameters(), optim))
    settings = UpdateSettings(
        optim=optim, total_updates=100, temperature=1.0, tokens_per_microbatch=tokens
    )
    times: list[tuple[float, float]] = []
    on_cuda = batch.prompt_ids.is_cuda
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + repetitions):
        scoring, scored = _timed(partial(score, policy, batch, algorithm, settings))
        train = algorithm.prepare(scored)
        updating, _ = _timed(partial(train_step, state, train, algorithm, settings))
        times.append((scoring, updating))
    fastest = [min(column) for column in zip(*times[1:], strict=True)]
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_cuda else 0.0
    return {"score_ms": fastest[0], "update_ms": fastest[1], "peak_gb": peak}


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, the device's part included, and the result."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    start = now()
    result = run()
    return 1e3 * (now() - start), result


def main() -> int:
    """Print and write a row for each size of micro-batch and each way of checkpointing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update")
    parser.add_argument("--tokens", default="4352,8192,16896", help="of a micro-batch")
    parser.add_argument("--checkpointing", default="off,on")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write the numbers")
    parser.add_argument("--tiny", action="store_true", help="a small model: a test of this program")
    options = parser.parse_args()
    sizes = Sizes(_TINY, 2, 16, 32) if options.tiny else Sizes()
    if not torch.cuda.is_available() and not options.tiny:
        print(
            "benchmarks.update needs a CUDA device, got none; --tiny runs anywhere",
            file=sys.stderr,
        )
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = new_policy(sizes.model, device)
    lay_like_an_engine(policy.model)
    rows = sizes.prompts * _GROUP
    batch = batch_of(
        [sizes.prompt_tokens] * sizes.prompts, [sizes.completion_tokens] * rows,
        group=_GROUP, device=device,
    )  # fmt: skip
    objective = Objective(
        GRPOConfig(group_size=_GROUP), KLConfig(beta=0.04), RatioConfig(), CorrectionConfig()
    )
    setting = Setting(
        group_size=_GROUP, max_completion_length=sizes.completion_tokens, updates_per_batch=1
    )
    algorithm = build(objective, setting)
    results: dict[str, Result] = {}
    for mode in map(Checkpointing, options.checkpointing.split(",")):
        for tokens in map(int, options.tokens.split(",")):
            one = replace(policy, gradient_checkpointing=mode)
            found = measure(one, batch, algorithm, tokens=tokens, repetitions=options.repetitions)
            results[f"{mode.value}, {tokens} tokens"] = found
            if options.out:
                said = sizes._asdict() | {"model": sizes.model.to_diff_dict(), "samples": _GROUP}
                write_report(options.out, "benchmarks.update", said, results)
    print(table(results))
    return 0


def table(results: dict[str, Result]) -> str:
    """A line for each measurement."""
    lines = ["| micro-batch | score, ms | update, ms | memory, GB |", "| --- | --- | --- | --- |"]
    for name, found in results.items():
        cells = (f"{found[key]:.1f}" for key in ("score_ms", "update_ms", "peak_gb"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
