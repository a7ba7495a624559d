"""This adapter plays the tasks of a taskset of verifiers 0.4, scored by their own rewards.

It serves tasks that are judged by what was said: one turn, no harness, no runtime. Rewards and
judges of a task that ask for a runtime are refused, since verifiers would leave them out.

    class Mine(VerifiersEnvironment):
        def tasks(self):
            return MyTaskset(MyConfig())

`rows` gives the prompts of these tasks for `task=dataset`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, TypedDict

from rlkit.environments.base import Action, Example, Turn
from rlkit.runtime.distribution import lacks

COLUMN = "verifiers_task"
"""The column of an example that holds the number of its task."""


_ROLES = ("system", "user", "assistant")


class Position(TypedDict):
    """The state is the number of the task in its taskset."""

    task: int


class VerifiersEnvironment:
    """One turn of the model is scored by a task's `@reward` and `@metric` methods and judges."""

    def __init__(self) -> None:
        self._tasks = list(self.tasks())
        for task in self._tasks:
            check(task)

    def tasks(self) -> Iterable[Any]:
        """Return the tasks, in the order that `rows` had; overridden by every environment."""
        raise NotImplementedError("a VerifiersEnvironment must have tasks()")

    def start(self, example: Example, seed: int) -> tuple[Position, Turn]:
        """Find the task of an example."""
        number = example.columns.get(COLUMN)
        if type(number) is not int or not 0 <= number < len(self._tasks):
            rule = f"the column {COLUMN} must be in [0, {len(self._tasks)})"
            raise ValueError(f"{rule}, got {number!r}")
        return {"task": number}, Turn()

    def step(self, state: Position, action: Action) -> tuple[Position, Turn]:
        """Score what the model said; a score that cannot be made raises."""
        trace = scored(self._tasks[state["task"]], action.text)
        numbers = {name: float(v) for name, v in trace.metrics.items() if v is not None}
        parts = {name: float(r.value) for name, r in trace.rewards.items() if r is not None}
        return state, Turn(reward=float(trace.reward), done=True, info={**numbers, **parts})


def rows(tasks: Iterable[Any]) -> Iterator[dict[str, object]]:
    """Yield a row for `task=dataset` of each task: its prompt, and its number.

    Args:
        tasks: Tasks of verifiers whose prompt is text or messages of text.

    Yields:
        `{"prompt": [{"role": ..., "content": ...}, ...], "verifiers_task": 0}`.

    Raises:
        ValueError: A task has no prompt, or one that is not text.
    """
    for number, task in enumerate(tasks):
        yield {"prompt": _messages(task), COLUMN: number}


def check(task: Any) -> None:
    """Raise ValueError for a task that cannot be scored by what was said alone."""
    signals = [*task.hooks("metric"), *task.hooks("reward")]
    signals += [judge.score for judge in task.plugged_judges()]
    for signal in signals:
        wanted = inspect.signature(signal).parameters.get("runtime")
        if wanted is not None and wanted.default is inspect.Parameter.empty:
            name = f"{type(task).__name__}.{signal.__name__}"
            raise ValueError(f"a task of verifiers must be scored without a runtime, got {name}")
    if not task.hooks("reward") and not task.plugged_judges():
        raise ValueError(f"a task of verifiers must have a reward, got {type(task).__name__}")


def scored(task: Any, said: str) -> Any:
    """Return verifiers' trace of one turn in which the model said `said`, with its rewards."""
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        raise lacks("verifiers", "VerifiersEnvironment") from error

    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    messages = [kinds[m["role"]](content=m["content"]) for m in _messages(task)]
    nodes = [vf.MessageNode(message=m) for m in messages]
    nodes.append(vf.MessageNode(message=vf.AssistantMessage(content=said), sampled=True))
    for number, node in enumerate(nodes):
        node.parent = number - 1 if number else None
    trace = vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=nodes,
    )
    asyncio.run(task.score(trace))
    return trace


def _messages(task: Any) -> list[dict[str, str]]:
    data = task.data
    found = [] if data.system_prompt is None else [("system", data.system_prompt)]
    prompt = [] if data.prompt is None else data.prompt
    if isinstance(prompt, str):
        found.append(("user", prompt))
    else:
        found += [(message.role, message.content) for message in prompt]
    bad = [c for role, c in found if not isinstance(c, str) or role not in _ROLES]
    if bad or not any(role == "user" for role, _ in found):
        name = type(task).__name__
        raise ValueError(f"the prompt of {name} {data.idx} must be text, got {data.prompt!r:.80}")
    return [{"role": role, "content": str(content)} for role, content in found]
