"""An engine meets the other ranks of its team at a place that it is told, not by the environment.

vLLM's external launcher reads RANK, MASTER_PORT and so on. rlkit has taken torchrun's out of the
environment, and a team is not all of the run. On a CPU vLLM also names shared memory after the
place: two engines that meet by the environment would use the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlkit.generation.vllm.team import Team

NAMES = """
v1/executor/uniproc_executor.py ExecutorWithExternalLauncher._distributed_args()
lora/layers/base_linear.py BaseLinearLayerWithLoRA: tp_size
lora/layers/column_parallel_linear.py ColumnParallelLinearWithLoRA.slice_lora_a(lora_a)
lora/layers/column_parallel_linear.py ColumnParallelLinearWithLoRA.slice_lora_b(lora_b)
lora/layers/column_parallel_linear.py MergedColumnParallelLinearWithLoRA.slice_lora_a(lora_a)
lora/layers/column_parallel_linear.py MergedColumnParallelLinearWithLoRA.slice_lora_b(lora_b)
lora/layers/row_parallel_linear.py RowParallelLinearWithLoRA.slice_lora_a(lora_a)
lora/layers/row_parallel_linear.py RowParallelLinearWithLoRA.slice_lora_b(lora_b)
"""


@contextmanager
def meets(team: Team | None) -> Iterator[None]:
    """Let the engine that the body builds meet its team; do nothing without one."""
    if team is None:
        yield
        return
    from vllm.v1.executor import uniproc_executor

    launcher: Any = uniproc_executor.ExecutorWithExternalLauncher
    original = launcher._distributed_args
    # The last is the card's number among those that this process sees: it sees one.
    launcher._distributed_args = lambda _executor: (team.address, team.rank, 0)
    try:
        yield
    finally:
        launcher._distributed_args = original
