"""Environments of verifiers itself, with its harness, server, users and tools, played as episodes.

verifiers' chat program prepares its packages with `uv`, once and over the network.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from rlkit.environments import EnvironmentConfig, EnvironmentSpec
from rlkit.environments.agent import opening
from rlkit.environments.base import Action
from rlkit.environments.load import load
from rlkit.environments.pool import Answer, Begin, Continue, EnvironmentPool
from rlkit.environments.verifiers_episodes import VerifiersEpisodes, rows

pytest.importorskip("verifiers.v1")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which("uv") is None, reason="verifiers' programs need uv"),
]

PACKAGE = """
import verifiers.v1 as vf

__all__ = ["Game"]

class GameData(vf.TaskData):
    number: int

class GameTask(vf.Task[GameData]):
    @vf.metric
    async def turns(self, trace):
        return trace.num_turns

class GameConfig(vf.TasksetConfig):
    pass

class Game(vf.Taskset[GameTask, GameConfig]):
    def load(self):
        for i in range(1, 8):
            yield GameTask(GameData(prompt="Guess from 1 to 7.", system_prompt="Play.", number=i))

class HalvingConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class Halving(vf.Env[HalvingConfig]):
    async def run(self, task, agents):
        tries, right = 0, False
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated:
                tries += 1
                said = int(segment.last_reply)
                right = said == task.data.number
                if right or tries == 3:
                    break
                segment = await interaction.turn("higher" if said < task.data.number else "lower")
        interaction.trace.record_reward("game", float(right) / tries, 2.0)
"""
TOOL_SERVER = '''
import verifiers.v1 as vf

class Doubler(vf.Toolset[vf.ToolsetConfig, vf.State]):
    @vf.tool
    def double(self, x: int) -> str:
        """Double a number."""
        return str(2 * x)

if __name__ == "__main__":
    Doubler.run()
'''
TOOLS = """
import verifiers.v1 as vf
from doubler import Doubler

__all__ = ["Sums"]

class SumTask(vf.Task[vf.TaskData]):
    @classmethod
    def toolsets(cls, config):
        return [Doubler(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, trace):
        return float(trace.last_reply == "84")

class SumsConfig(vf.TasksetConfig):
    pass

class Sums(vf.Taskset[SumTask, SumsConfig]):
    def load(self):
        yield SumTask(vf.TaskData(prompt="What is 42 doubled?", system_prompt="Use the tool."))
"""
MINE = """
import sys
sys.path.insert(0, {folder!r})
import verifiers.v1 as vf
from halving_game import Halving, HalvingConfig
from rlkit.environments.verifiers_episodes import VerifiersEpisodes

HERE = {{"harness": {{"id": "null"}}, "runtime": {{"type": "subprocess"}}}}

class Game(VerifiersEpisodes):
    def env(self):
        config = {{"taskset": {{"id": "halving_game"}}, "player": HERE}}
        return Halving(HalvingConfig.model_validate(config))

class Sums(VerifiersEpisodes):
    roles = ("tool",)
    tools = {tools}
    def env(self):
        config = {{"taskset": {{"id": "doubled_sums"}}, "agent": HERE}}
        return vf.SingleAgentEnv(vf.SingleAgentEnvConfig.model_validate(config))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "halving_game.py").write_text(PACKAGE)
    (tmp_path / "doubled_sums.py").write_text(TOOLS)
    (tmp_path / "mine.py").write_text(MINE.format(folder=str(tmp_path), tools="()"))
    (tmp_path / "doubler.py").write_text(TOOL_SERVER)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def environment(folder: Path, name: str) -> VerifiersEpisodes:
    made = load(f"{folder}/mine.py:{name}", {}).environment
    assert isinstance(made, VerifiersEpisodes)
    return made


def test_workers_play_an_environment_of_several_turns(folder: Path) -> None:
    """The number is 5: too low, too high and right in the third try is a reward of 2 / 3.

    Two samples of one start part in their first turn. A step goes on in any worker.
    """
    (row,) = rows(environment(folder, "Game"), first=4, count=1)
    assert row["prompt"] == [
        {"role": "system", "content": "Play."},
        {"role": "user", "content": "Guess from 1 to 7."},
    ]
    config = EnvironmentConfig(timeout_s=60.0, memory_mb=None)
    pool = EnvironmentPool(EnvironmentSpec(f"{folder}/mine.py:Game"), config)
    try:
        (begun,) = pool.run([Begin(row["prompt"], {"verifiers_task": 4}, 1)])
        assert isinstance(begun, Answer), begun
        states, said = [begun.state, begun.state], [["4", "6", "5"], ["5"]]
        paid: list[list[tuple[float | None, str, bool]]] = [[], []]
        for number in range(3):
            live = [i for i in range(2) if number < len(said[i])]
            calls = [Continue(states[i], Action(said[i][number], (1,), number)) for i in live]
            for i, answer in zip(live, pool.run(calls), strict=True):
                assert isinstance(answer, Answer), answer
                states[i], turn = answer.state, answer.turn
                text = turn.messages[0].content if turn.messages else ""
                paid[i].append((turn.reward, text, turn.done))
                if turn.done:
                    assert turn.info["turns"] == len(said[i])
    finally:
        pool.close()
    assert paid[0] == [
        (0.0, "higher", False),
        (0.0, "lower", False),
        (pytest.approx(2 / 3), "", True),
    ]
    assert paid[1] == [(2.0, "", True)]


def test_a_tool_server_of_verifiers_answers_the_calls(folder: Path) -> None:
    from rlkit.environments import Example, Message

    asked = opening(environment(folder, "Sums"), {"verifiers_task": 0})
    (tool,) = asked.tools
    name = tool["function"]["name"]
    assert name.endswith("double")
    (folder / "mine.py").write_text(
        MINE.format(folder=str(folder), tools=f"({json.loads(json.dumps(tool))!r},)")
    )
    sums = environment(folder, "Sums")
    state, _ = sums.start(Example(prompt=asked.messages, columns={"verifiers_task": 0}), 0)
    call = json.dumps({"name": name, "arguments": {"x": 42}})
    state, turn = sums.step(state, Action(f"<tool_call>{call}</tool_call>", (1,), 0))
    assert turn.messages == (Message("tool", "84"),)
    _, turn = sums.step(state, Action("84", (1,), 1))
    assert (turn.reward, turn.done) == (1.0, True)
