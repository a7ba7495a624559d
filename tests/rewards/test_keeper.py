"""Processes that a reward function starts end with its worker, and memory has a limit."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import reward_leftovers
from reward_leftovers import ENDS, LEAVES, MODULE, batch, processes_with

from rlkit.rewards import Failure, RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.types import Completion, FinishReason, Prompt


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("left", LEAVES)
def test_nothing_is_left_of_a_worker(left: str, end: str, tmp_path: Path) -> None:
    canary = f"{left}-{end}-{tmp_path.name}-{os.getpid()}"
    file = tmp_path / "f.py"
    file.write_text(MODULE.format(body=LEAVES[left], then=ENDS[end], canary=canary))
    config = RewardConfig(workers=1, timeout_s=0.5)
    with RewardPool([RewardSpec("f", f"{file}:f")], config) as pool:
        scores = pool.score(batch())
        assert (scores.rewards == [[1.0]]) == (end == "by itself")
        give_up = time.monotonic() + 5.0 * (end == "by itself")
        while not (running := processes_with(canary)) and time.monotonic() < give_up:
            time.sleep(0.02)  # it may not have become `sleep` yet
        assert bool(running) == (end == "by itself")
    assert processes_with(canary) == []


def test_nothing_is_left_when_the_trainer_is_killed(tmp_path: Path) -> None:
    canary = f"killed-{os.getpid()}"
    file = tmp_path / "f.py"
    body = LEAVES["a session of its own"]
    file.write_text(MODULE.format(body=body, then="pass", canary=canary))
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from reward_leftovers import batch; "
        "from rlkit.rewards import RewardConfig, RewardSpec; "
        "from rlkit.rewards.pool import RewardPool; "
        "pool = RewardPool([RewardSpec('f', sys.argv[1] + ':f')], RewardConfig(workers=1)); "
        "pool.score(batch()); print('scored', flush=True); time.sleep(600)"
    )
    arguments = [sys.executable, "-c", code, str(file), str(Path(reward_leftovers.__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as trainer:
        try:
            assert trainer.stdout is not None and trainer.stdout.readline() == "scored\n"
            # Linux shows the environment of a new program only once it is loaded.
            assert _soon(lambda: bool(processes_with(canary)))
        finally:
            trainer.send_signal(signal.SIGKILL)
    assert _soon(lambda: not processes_with(canary))


def _soon(holds: Callable[[], bool]) -> bool:
    """Wait until `holds`, at most 10 s; tell if it does."""
    give_up = time.monotonic() + 10.0
    while not holds() and time.monotonic() < give_up:
        time.sleep(0.05)
    return holds()


def test_memory_beyond_the_limit_fails_one_call(tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text(
        "def f(group):\n"
        "    size = 1 << 30 if group[0].prompt.index == 1 else 1 << 20\n"
        "    return [float(len(bytearray(size)))/ size] * len(group)\n"
    )
    groups = [
        [
            Completion(
                prompt=Prompt(index=i, ids=(1,), text="q"),
                text="a",
                ids=(1,),
                finish_reason=FinishReason.stop,
            )
        ]
        for i in range(3)
    ]
    config = RewardConfig(workers=1, max_memory_bytes=1 << 29)
    with RewardPool([RewardSpec("f", f"{file}:f")], config) as pool:
        scores = pool.score(groups)
    assert scores.report.failures == {("f", Failure.memory): 1}
    assert scores.rewards[0] == scores.rewards[2] == [1.0]
    assert math.isnan(scores.rewards[1][0])


@pytest.mark.parametrize("value", ["1e200", "-1e30", "1000001", "10 ** 300"])
def test_a_huge_reward_is_refused_and_counted(value: str, tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text(f"def f(group):\n    return [1e6, {value}, -1e6]\n")
    prompt = Prompt(index=0, ids=(1,), text="q")
    group = [
        Completion(prompt=prompt, text=t, ids=(1,), finish_reason=FinishReason.stop) for t in "abc"
    ]
    with RewardPool([RewardSpec("f", f"{file}:f")], RewardConfig(workers=1)) as pool:
        scores = pool.score([group])
    assert scores.report.failures == {("f", Failure.too_large): 1}
    assert [scores.rewards[0][0], scores.rewards[0][2]] == [1e6, -1e6]
    assert math.isnan(scores.rewards[0][1])
    (line,) = scores.describe()
    assert "beyond +-1e+06" in line
