"""This adapter makes a session of an environment of OpenEnv, in this process or behind its client.

Both have `reset(seed=...)` and `step(action)`. In the process they return an observation that has
`reward` and `done`; a client wraps it as `.observation` and puts them beside it. Nothing of OpenEnv
is imported here: the user's file brings the environment and the type of its actions.

    class Mine(SessionEnvironment):
        def open(self, columns):
            return OpenEnvSession(EchoEnvironment(), shown="echoed_message")

        def action_of(self, text):
            return EchoAction(message=text)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class OpenEnvSession:
    """It implements `rlkit.environments.session.StatefulSession` over an environment of OpenEnv."""

    def __init__(self, environment: Any, *, shown: str) -> None:
        """Show the field `shown` of each observation to the model.

        Args:
            environment: An `Environment` of OpenEnv, or its client's `sync()`.
            shown: The field of the observations that holds text.
        """
        self._environment = environment
        self._shown = shown

    def reset(self, *, seed: int) -> tuple[object, Mapping[str, Any]]:
        """Begin an episode; return what the model reads first."""
        return self._text(self._environment.reset(seed=seed)), {}

    def step(self, action: Any, /) -> tuple[object, float, bool, bool, Mapping[str, Any]]:
        """Take an action; no reward counts as 0."""
        result = self._environment.step(action)
        reward = 0.0 if result.reward is None else float(result.reward)
        return self._text(result), reward, bool(result.done), False, {}

    def close(self) -> None:
        """Close the environment, or the connection to its server."""
        self._environment.close()

    def _text(self, result: Any) -> str:
        observation = getattr(result, "observation", result)
        # Generic clients have no type of their own for an observation.
        if isinstance(observation, Mapping):
            value = observation.get(self._shown)
        else:
            value = getattr(observation, self._shown, None)
        if not isinstance(value, str):
            raise TypeError(
                f"shown must name a field that holds text, got {self._shown}: {value!r}"
            )
        return value
