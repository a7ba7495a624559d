"""Tasks of verifiers itself, scored by their own rewards, played as episodes of one turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from code_blocks import ROOT, blocks

from rlkit.environments import Example
from rlkit.environments.base import Action
from rlkit.environments.config import EnvironmentConfig, EnvironmentSpec
from rlkit.environments.pool import Answer, Begin, Continue, EnvironmentPool
from rlkit.environments.verifiers_tasks import COLUMN, VerifiersEnvironment, check, rows, scored

vf = pytest.importorskip("verifiers.v1")
pytestmark = pytest.mark.peers

MODULE = """
import verifiers.v1 as vf
from rlkit.environments.verifiers_tasks import VerifiersEnvironment

class Sum(vf.TaskData):
    answer: str

class SumTask(vf.Task[Sum]):
    @vf.reward(weight=2.0)
    async def right(self, trace):
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.5)
    async def polite(self, task, trace):
        return float("please" in trace.messages[1].content and task.answer in trace.last_reply)

    @vf.metric
    async def letters(self, trace):
        return len(trace.last_reply)

class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        for i in range(4):
            yield SumTask(Sum(prompt=f"{i} + 1, please", system_prompt="Add.", answer=str(i + 1)))

class Mine(VerifiersEnvironment):
    def tasks(self):
        return Sums(vf.TasksetConfig())
"""


def test_the_page_has_a_program_that_writes_the_rows(tmp_path: Path) -> None:
    """The block of docs/environments.md runs as printed, beside tasks of four sums."""
    (block,) = (b for b in blocks(ROOT / "docs/environments.md") if b.needs == "verifiers")
    tasks = MODULE.replace("Sums(", "MyTaskset(") + "\nMyConfig = vf.TasksetConfig\n"
    (tmp_path / "my_tasks.py").write_text(tasks)
    (tmp_path / "mine.py").write_text(block.text)
    ours = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=ours, check=True)
    written = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert len(written) == 4 and "2 + 1, please" in json.dumps(written[2])


def mine(folder: Path) -> Any:
    (folder / "mine.py").write_text(MODULE)
    space: dict[str, Any] = {"__name__": "mine"}
    exec(compile(MODULE, "mine.py", "exec"), space)
    return space["Mine"]()


def test_a_turn_earns_what_verifiers_pays(tmp_path: Path) -> None:
    """The weights are 2 and 0.5: right is 2.5, right with more words 0.5, wrong 0."""
    environment = mine(tmp_path)
    for said, reward, letters in (("3", 2.5, 1), ("it is 3", 0.5, 7), ("4", 0.0, 1)):
        state, turn = environment.start(Example(prompt="q", columns={COLUMN: 2}), seed=0)
        assert not turn.done and not turn.messages
        _, turn = environment.step(state, Action(said, (1,), 0))
        assert (turn.reward, turn.done) == (reward, True)
        assert turn.info["letters"] == letters
    assert scored(list(environment.tasks())[1], "2").num_turns == 1


def test_rows_have_the_prompts_of_the_tasks(tmp_path: Path) -> None:
    found = list(rows(mine(tmp_path).tasks()))
    assert [row[COLUMN] for row in found] == [0, 1, 2, 3]
    assert found[3]["prompt"] == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "3 + 1, please"},
    ]


def test_workers_play_the_tasks(tmp_path: Path) -> None:
    """The pool loads the user's file in its processes, as a run does."""
    mine(tmp_path)
    pool = EnvironmentPool(EnvironmentSpec(f"{tmp_path}/mine.py:Mine"), EnvironmentConfig())
    try:
        begun, lost = pool.run([Begin("q", {COLUMN: 0}, 1), Begin("q", {}, 1)])
        assert isinstance(begun, Answer)
        assert "verifiers_task must be in [0, 4), got None" in getattr(lost, "message", "")
        (done,) = pool.run([Continue(begun.state, Action("1", (5,), 0))])
        assert isinstance(done, Answer) and done.turn.reward == 2.5 and done.turn.done
    finally:
        pool.close()


def test_tasks_that_need_a_runtime_or_pay_nothing_are_refused() -> None:
    class Boxed(vf.Task[vf.TaskData]):  # type: ignore[misc, name-defined]
        @vf.reward  # type: ignore[untyped-decorator]
        async def passes(self, runtime: object) -> float:
            return 1.0

    class Free(vf.Task[vf.TaskData]):  # type: ignore[misc, name-defined]
        pass

    class Bad(VerifiersEnvironment):
        def tasks(self) -> Any:
            return [Boxed(vf.TaskData(prompt="x"))]

    with pytest.raises(ValueError, match=r"without a runtime, got Boxed.passes"):
        Bad()
    with pytest.raises(ValueError, match="must have a reward, got Free"):
        check(Free(vf.TaskData(prompt="x")))
    with pytest.raises(ValueError, match="must be text, got None"):
        list(rows([Boxed(vf.TaskData(prompt=None))]))
