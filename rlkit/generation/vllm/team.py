"""Several ranks of a run are one engine: each computes its part of every layer.

vLLM calls this tensor parallelism with an external launcher. Each rank has an engine of its own
with its own scheduler. All are given the same requests in the same order, and so they make the same
steps. Sums over the ranks within each layer keep them together.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

_LOCAL = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The ranks that are one engine, as one of them sees them."""

    rank: int
    """The number of this process in the team, 0 <= rank < size."""
    size: int
    """The number of processes, >= 2; all are on one machine."""
    port: int
    """The first of them listens here, and the others come."""

    @property
    def address(self) -> str:
        """Return the place where torch.distributed meets."""
        return f"tcp://{_LOCAL}:{self.port}"

    def options(self) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM` that make this process one of the team."""
        return {
            "tensor_parallel_size": self.size,
            "distributed_executor_backend": "external_launcher",
            # Its kernels write into each other's cards, and a rank sees no card but its own.
            "disable_custom_all_reduce": True,
            # Else a rank looks at a step's tokens when it happens to have them, and may schedule
            # another step. The others would wait for it in a layer.
            "async_scheduling": False,
        }


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((_LOCAL, 0))
        return int(probe.getsockname()[1])
