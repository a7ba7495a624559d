"""Fault F7 and F8: reward functions that misbehave in every way we know, in real processes.

Each fault hits the second of three groups only. The other groups keep their rewards, the second
one has none, the fault is counted under its kind, and the next batch is scored as if nothing had
happened.
"""

from __future__ import annotations

import math
import random
import threading
import time
from pathlib import Path

import pytest
from reward_faults import FAULTS, MODULE, batch

from benchmarks.faults.formulas import HANGING
from rlkit.assembly.stoppable import StoppableRewards
from rlkit.rewards import Failure, RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.training.stopping import Interrupted, StopRequest
from rlkit.types import Completion, FinishReason, Prompt

DEADLINE_S = 1.0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_f7(fault: str, workers: int, tmp_path: Path) -> None:
    body, kind = FAULTS[fault]
    path = tmp_path / "f.py"
    path.write_text(MODULE.format(body=body))
    specs = [RewardSpec("f", f"{path}:f"), RewardSpec("ok", f"{path}:ok")]
    config = RewardConfig(workers=workers, timeout_s=DEADLINE_S)
    with RewardPool(specs, config) as pool:
        pool.start()
        start = time.monotonic()
        scores = pool.score(batch())
        elapsed = time.monotonic() - start
        again = pool.score(batch(first_index=10))
    assert scores.report.failures == {("f", kind): 2}
    assert scores.rewards[0] == scores.rewards[2] == [1.5, 2.5]
    assert all(math.isnan(reward) for reward in scores.rewards[1])
    assert all(math.isnan(f) and ok == 0.5 for f, ok in scores.components[1])
    message = scores.report.messages["f", kind]
    assert message and "\n" not in message and len(message) < 800
    assert elapsed < DEADLINE_S + 1.0 + 1.0 * (kind is Failure.output)
    assert again.rewards == [[1.5, 2.5]] * 3
    assert again.failures == {}


def test_a_hang_costs_one_sample_of_a_per_sample_function(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text(
        "import time\n"
        "from rlkit.rewards import per_sample\n"
        "@per_sample\n"
        "def f(completion):\n"
        "    if completion.text == 'bb' and completion.prompt.index == 1:\n"
        "        time.sleep(1e6)\n"
        "    return 1.0\n"
    )
    config = RewardConfig(workers=2, timeout_s=DEADLINE_S)
    with RewardPool([RewardSpec("f", f"{path}:f")], config) as pool:
        scores = pool.score(batch())
    assert scores.report.failures == {("f", Failure.timeout): 1}
    assert scores.rewards[0] == scores.rewards[2] == [1.0, 1.0]
    assert scores.rewards[1][0] == 1.0 and math.isnan(scores.rewards[1][1])


def test_a_function_that_always_hangs_cannot_stop_the_run(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text("import time\ndef f(group):\n    time.sleep(1e6)\n")
    config = RewardConfig(workers=2, timeout_s=0.5, step_timeout_s=1.2)
    groups = [group for i in range(10) for group in batch(first_index=3 * i)]
    with RewardPool([RewardSpec("f", f"{path}:f")], config) as pool:
        pool.start()
        start = time.monotonic()
        scores = pool.score(groups)
        assert time.monotonic() - start < 2.2
    assert scores.report.failures == {("f", Failure.timeout): 60}
    assert all(math.isnan(reward) for rewards in scores.rewards for reward in rewards)


def test_a_request_to_stop_does_not_wait_for_a_function_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text("import time\ndef f(group):\n    time.sleep(1e6)\n")
    stop = StopRequest()
    with RewardPool([RewardSpec("f", f"{path}:f")], RewardConfig(workers=2)) as pool:
        rewards = StoppableRewards(pool, stop)
        assert (rewards.names, rewards.weights) == (("f",), (1.0,))
        pool.start()
        threading.Timer(0.5, stop.request, ["SIGTERM"]).start()
        start = time.monotonic()
        with pytest.raises(Interrupted, match="SIGTERM"):
            rewards.score(batch())
        assert 0.4 < time.monotonic() - start < 2.0


def test_a_function_that_always_crashes_cannot_stop_the_run(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text("import os\ndef f(group):\n    os._exit(1)\n")
    with RewardPool([RewardSpec("f", f"{path}:f")], RewardConfig(workers=2)) as pool:
        scores = pool.score(batch() + batch(first_index=3))
    assert scores.failures == {"f/exited": 12}


def test_a_forked_copy_does_not_answer_too(tmp_path: Path) -> None:
    """Its answers would be taken for those of the next calls."""
    path = tmp_path / "f.py"
    path.write_text(MODULE.format(body="os.fork(); return [9.0] * len(group)"))
    specs = [RewardSpec("f", f"{path}:f"), RewardSpec("ok", f"{path}:ok")]
    with RewardPool(specs, RewardConfig(workers=1)) as pool:
        for _ in range(3):
            scores = pool.score(batch())
            assert scores.rewards == [[1.5, 2.5], [9.5, 9.5], [1.5, 2.5]]
            assert pool.score(batch(first_index=10)).rewards == [[1.5, 2.5]] * 3


def test_grandchildren_die_with_the_worker(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    marker = tmp_path / "pid"
    path = tmp_path / "f.py"
    path.write_text(
        "import subprocess, time\n"
        "def f(group):\n"
        "    child = subprocess.Popen(['sleep', '1000'])\n"
        f"    open({str(marker)!r}, 'w').write(str(child.pid))\n"
        "    time.sleep(1e6)\n"
    )
    config = RewardConfig(workers=1, timeout_s=DEADLINE_S)
    with RewardPool([RewardSpec("f", f"{path}:f")], config) as pool:
        pool.score(batch()[:1])
    pid = int(marker.read_text())
    start = time.monotonic()
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - start < 5.0
        time.sleep(0.05)


# --- F8: math-verify -----------------------------------------------------------------------------


@pytest.mark.slow
def test_f8_formulas_that_hang_math_verify() -> None:
    pytest.importorskip("math_verify", reason="the extra rlkit-lm[math] is not installed")
    prompt = Prompt(index=0, ids=(1,), text="q", columns={"answer": "42"})
    texts = [f"${formula}$" for formula in HANGING] + ["so $42$", "so $41$"]
    samples = [
        Completion(prompt=prompt, text=t, ids=(1,), finish_reason=FinishReason.stop) for t in texts
    ]
    config = RewardConfig(workers=2, timeout_s=4.0)
    specs = [RewardSpec("math", "math", 1.0, {"alarm_s": 1})]
    with RewardPool(specs, config) as pool:
        pool.start()
        for sample in samples:  # one by one, so that each is within the deadline
            scores = pool.score([[sample]])
            assert scores.report.seconds < config.timeout_s + 1.0, sample.text
            reward = scores.rewards[0][0]
            if scores.failures:
                assert set(scores.failures) <= {"math/timeout", "math/killed"}, sample.text
                assert math.isnan(reward)
            else:
                assert reward == float(sample.text == "so $42$"), sample.text
        together = pool.score([samples])
        assert together.rewards[0][-2:] == [1.0, 0.0]


def fuzzed_formulas(number: int) -> list[str]:
    """Random LaTeX of the kind that small models write: deep, unbalanced, huge."""
    rng = random.Random("F8")
    atoms = ["x", "7", "10", "999999", r"\pi", r"\infty", "e", "0", r"\text{km}", "3.5", ","]
    shapes = ["{a}^{{{b}}}", r"\frac{{{a}}}{{{b}}}", "({a}+{b}", "{a})-{b}", r"\sqrt{{{a}}}{b}"]
    shapes += [r"\sum_{{k=1}}^{{{a}}}{b}", r"\int_0^{{{a}}}{b}dx", "{a}!{b}", r"\boxed{{{a}}}={b}"]

    def formula(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return rng.choice(atoms)
        return rng.choice(shapes).format(a=formula(depth - 1), b=formula(depth - 1))

    return [f"${formula(rng.randint(1, 5))}$" for _ in range(number)]


@pytest.mark.slow
def test_f8_fuzzed_formulas() -> None:
    pytest.importorskip("math_verify", reason="the extra rlkit-lm[math] is not installed")
    prompt = Prompt(index=0, ids=(1,), text="q", columns={"answer": "-31337"})
    samples = [
        Completion(prompt=prompt, text=text, ids=(1,), finish_reason=FinishReason.stop)
        for text in fuzzed_formulas(200)
    ]
    config = RewardConfig(workers=2, timeout_s=3.0)
    specs = [RewardSpec("math", "math", 1.0, {"alarm_s": 1})]
    with RewardPool(specs, config) as pool:
        pool.start()
        for sample in samples:
            scores = pool.score([[sample]])
            assert scores.report.seconds < config.timeout_s + 1.0, sample.text
            assert set(scores.failures) <= {"math/timeout", "math/killed"}, sample.text
            reward = scores.rewards[0][0]
            assert math.isnan(reward) if scores.failures else reward == 0.0, sample.text


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (r"the answer is $\frac{1}{2}$", "0.5", 1.0),
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", 1.0),
        (r"\boxed{(1, 2)}", "(2, 1)", 0.0),
        ("nothing to see", "3", 0.0),
        ("$3$", "", None),
    ],
)
def test_math_answer(text: str, answer: str, expected: float | None) -> None:
    pytest.importorskip("math_verify", reason="the extra rlkit-lm[math] is not installed")
    from rlkit.rewards.math import math_answer

    prompt = Prompt(index=0, ids=(1,), text="q", columns={"answer": answer})
    sample = Completion(prompt=prompt, text=text, ids=(1,), finish_reason=FinishReason.stop)
    assert math_answer(sample) == expected
