"""Environments of OpenEnv itself, in this process and behind its server, played as episodes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from rlkit.environments import Example
from rlkit.environments.base import Action
from rlkit.environments.openenv import OpenEnvSession
from rlkit.environments.session import SessionEnvironment

pytest.importorskip("openenv")
pytestmark = pytest.mark.peers

PORT = 18765


def make_guess() -> tuple[Any, Any, Any]:
    """Return an environment of OpenEnv, the type of its actions and that of its observations."""
    import random

    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action as TheirAction
    from openenv.core.env_server.types import Observation, State

    class Guess(TheirAction):  # type: ignore[misc]
        number: int

    class Told(Observation):  # type: ignore[misc]
        text: str = ""

    class Room(Environment[Guess, Told, State]):  # type: ignore[misc]
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Told:
            self.number = random.Random(seed).randrange(1, 8)
            return Told(text="guess from 1 to 7")

        def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Told:
            if action.number == self.number:
                return Told(text="right", reward=1.0, done=True)
            return Told(text="higher" if action.number < self.number else "lower")

        @property
        def state(self) -> State:
            return State()

    return Room, Guess, Told


def played(environment: SessionEnvironment) -> list[tuple[str, float | None, bool]]:
    """Play one episode by halving; every second step is repeated by a worker without a memory."""
    state, turn = environment.start(Example(prompt="q"), seed=3)
    assert turn.messages[0].content == "guess from 1 to 7"
    low, high, said = 1, 7, []
    for number in range(3):
        guess = (low + high) // 2
        if number % 2:
            environment._kept.clear()
        state, turn = environment.step(state, Action(str(guess), (1,), number))
        text = turn.messages[0].content if turn.messages else ""
        said.append((text, turn.reward, turn.done))
        if turn.done:
            break
        low, high = (guess + 1, high) if text == "higher" else (low, guess - 1)
    return said


def test_in_the_process_and_behind_a_server_an_episode_is_the_same() -> None:
    import uvicorn
    from openenv.core import GenericEnvClient
    from openenv.core.env_server.http_server import create_app

    room, guess, told = make_guess()

    class Here(SessionEnvironment):
        def open(self, columns: Any) -> OpenEnvSession:
            return OpenEnvSession(room(), shown="text")

        def action_of(self, text: str) -> Any:
            return guess(number=int(text))

    class There(Here):
        def open(self, columns: Any) -> OpenEnvSession:
            client = GenericEnvClient(base_url=f"http://127.0.0.1:{PORT}")
            return OpenEnvSession(client.sync(), shown="text")

        def action_of(self, text: str) -> Any:
            return {"number": int(text)}

    here = played(Here())
    assert here[-1] == ("", 1.0, True) and all(reward == 0.0 for _, reward, _ in here[:-1])
    app = create_app(room, guess, told, env_name="room", max_concurrent_envs=8)
    server = uvicorn.Server(uvicorn.Config(app, port=PORT, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.1)
    try:
        assert played(There()) == here
    finally:
        server.should_exit = True
        thread.join(timeout=10.0)
