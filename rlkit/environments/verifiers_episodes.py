"""This adapter plays whole environments of verifiers 0.4: harnesses, tools, users, several turns.

verifiers runs as it always does. Its interception server records each turn of the harness and asks
a model's endpoint for it. That endpoint is the model that is trained here.

    class Mine(VerifiersEpisodes):
        def env(self):
            return MyEnv(MyEnvConfig(...))

`rows` writes the prompts of its tasks for `task=dataset`. Tasks that are judged by one answer alone
are simpler in `rlkit.environments.verifiers_tasks`, which starts no server and no program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from rlkit.environments.agent import AgentEnvironment, AgentOutcome, opening
from rlkit.environments.chat_server import ChatEndpoint
from rlkit.environments.verifiers_tasks import COLUMN
from rlkit.runtime.distribution import lacks


class VerifiersEpisodes(AgentEnvironment):
    """An episode is one of verifiers' own; its trace has the rewards and the numbers."""

    def env(self) -> Any:
        """Return a new `Env` of verifiers; overridden by every environment.

        Its agents need a runtime on this machine, such as `{"type": "subprocess"}`.
        """
        raise NotImplementedError("a VerifiersEpisodes must have env()")

    def play(self, columns: Mapping[str, Any], seed: int, endpoint: ChatEndpoint) -> AgentOutcome:
        """Run the episode of the task whose number is in the column `verifiers_task`."""
        number = columns.get(COLUMN)
        if type(number) is not int or number < 0:
            raise ValueError(f"the column {COLUMN} must be >= 0, got {number!r}")
        return asyncio.run(_episode(self.env(), number, endpoint))


def rows(environment: VerifiersEpisodes, *, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield a row for `task=dataset` of each task: what its harness asks first, and its number.

    Args:
        environment: The environment; its tools are not checked here.
        first: The number of the first task, >= 0.
        count: The number of tasks, >= 0.

    Yields:
        `{"prompt": [{"role": ..., "content": ...}, ...], "verifiers_task": 0}`.
    """
    for number in range(first, first + count):
        asked = opening(environment, {COLUMN: number})
        prompt = [{"role": m.role, "content": m.content} for m in asked.messages]
        yield {"prompt": prompt, COLUMN: number}


async def _episode(env: Any, number: int, endpoint: ChatEndpoint) -> AgentOutcome:
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        raise lacks("verifiers", "VerifiersEpisodes") from error

    task = next(islice(iter(env.taskset.load()), number, None), None)
    if task is None:
        raise ValueError(f"the column {COLUMN} must be the number of a task, got {number}")
    # A variable that nobody sets: the server on loopback has no key, and gets none of the user's.
    client = vf.EvalClientConfig(base_url=endpoint.base_url, api_key_var="RLKIT_NO_KEY")
    async with env.serving():
        episode = await env.run_episode(task, vf.ModelContext(endpoint.model, client))
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    trained = [trace for trace in episode.traces if trace.agent.trainable]
    if not episode.ok or len(trained) != 1:
        said = "; ".join(f"{error.type}: {error.message}" for error in errors)
        raise RuntimeError(said or f"one agent must be trained, got {len(trained)}")
    (trace,) = trained
    numbers = {name: float(v) for name, v in trace.metrics.items() if v is not None}
    parts = {name: float(r.value) for name, r in trace.rewards.items() if r is not None}
    return AgentOutcome(float(trace.reward), {**numbers, **parts})
