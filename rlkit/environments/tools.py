"""An environment whose tools are plain Python functions; a user's own is a few lines.

    class Solver(ToolEnvironment):
        functions = (calculator, python)

        def judge(self, columns, text):
            return float(columns["answer"] in text)

A turn with calls is answered by their results. A turn without one is the answer, and is judged.
What goes wrong in a call is text to the model, and counted: it is the model's own doing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypedDict

from rlkit.environments.base import Action, Example, Message, Turn
from rlkit.environments.calls import Call, CallFormat, calls_in
from rlkit.environments.limited import Limits, ToolError, call_limited
from rlkit.environments.schemas import problem_with, schema_of


class Columns(TypedDict):
    """The state is the example's columns: tools keep nothing between calls."""

    columns: dict[str, object]


class ToolEnvironment:
    """It calls `functions` for the model, and `judge` pays for the model's answer."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    """Functions with annotated parameters and a docstring."""
    limits: ClassVar[Limits] = Limits()
    """The limits of each call; `environment.timeout_s` must leave time for all calls of a turn."""
    most_calls: ClassVar[int] = 4
    """Calls of one turn that are made; further ones are refused."""
    roles: ClassVar[tuple[str, ...]] = ("tool",)

    def __init__(self, form: str = "hermes") -> None:
        """Read calls in the format `form`: hermes, llama3 or mistral."""
        try:
            self._form = CallFormat(form)
        except ValueError as error:
            known = ", ".join(CallFormat)
            raise ValueError(f"environment.options.form must be one of {known}") from error
        self._functions = {f.__name__: f for f in self.functions}
        self._schemas = {f.__name__: schema_of(f) for f in self.functions}

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Return the schemas, which the chat template shows to the model."""
        return tuple(self._schemas.values())

    def judge(self, columns: Mapping[str, Any], text: str) -> float:
        """Return the reward of an answer; overridden by every environment."""
        raise NotImplementedError("a ToolEnvironment must have judge(columns, text)")

    def start(self, example: Example, seed: int) -> tuple[Columns, Turn]:
        """Keep the example's columns for `judge`."""
        return {"columns": dict(example.columns)}, Turn()

    def step(self, state: Columns, action: Action) -> tuple[Columns, Turn]:
        """Make the calls of a turn, or judge it."""
        calls = calls_in(action.text, self._form)
        if not calls:
            reward = float(self.judge(state["columns"], action.text))
            return state, Turn(reward=reward, done=True)
        errors = 0
        messages = []
        for number, call in enumerate(calls):
            try:
                if number >= self.most_calls:
                    raise ToolError(f"a turn may have {self.most_calls} calls")
                text = self._result(call)
            except ToolError as error:
                text = f"error: {error}"
                errors += 1
            messages.append(Message("tool", text))
        info = {"calls": float(len(calls)), "errors": float(errors)}
        return state, Turn(tuple(messages), info=info)

    def _result(self, call: Call) -> str:
        if call.problem:
            raise ToolError(call.problem)
        if call.name not in self._functions:
            raise ToolError(f"there is no tool {call.name}; there are {', '.join(self._functions)}")
        if problem := problem_with(call.arguments, self._schemas[call.name]):
            raise ToolError(problem)
        return call_limited(self._functions[call.name], call.arguments, self.limits)
