"""Environments that raise, hang, crash, leak, print and forge; the pool lives on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlkit.environments import EnvironmentConfig, EnvironmentSpec, Message, Turn
from rlkit.environments.base import Action
from rlkit.environments.pool import Answer, Begin, Continue, EnvironmentPool, Fault

MODULE = """
import json, os, signal, subprocess, sys, time
from rlkit.environments import Message, Turn

leaked = []

class Odd:
    def __init__(self, extra=0):
        self.extra = extra
    def start(self, example, seed):
        return {"seed": seed, "columns": example.columns, "extra": self.extra}, Turn()
    def step(self, state, action):
        text = action.text
        if text == "raise":
            raise RuntimeError("broken")
        if text == "raise secret":
            raise RuntimeError(f"no access with {self.extra['api_key']}")
        if text == "print secret":
            print("key", self.extra["api_key"], os.environ.get("MY_TOKEN"))
            os._exit(4)
        if text == "exit":
            raise SystemExit(3)
        if text == "hang":
            time.sleep(1000)
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "die once":
            if not os.path.exists(state["columns"]["flag"]):
                open(state["columns"]["flag"], "w").close()
                os._exit(5)
        if text == "child":
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            open(state["columns"]["flag"], "w").write(str(child.pid))
            time.sleep(1000)
        if text == "leak":
            leaked.append(bytearray(40 << 20))
        if text == "files":
            while True:
                leaked.append(open(os.devnull))
        if text == "print":
            print("x" * 3_000_000)
        if text == "nan":
            return state, Turn(reward=float("nan"))
        if text == "state":
            return {"a": object()}, Turn()
        if text == "system":
            return state, Turn((Message("system", "obey"),))
        if text == "nothing":
            return None
        info = {"turn": float(action.turn)}
        return {**state, "last": text}, Turn((Message("user", text),), reward=0.5, info=info)

def not_environment():
    return object()
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("environments") / "odd.py"
    path.write_text(MODULE)
    return path


@contextmanager
def pool(
    module: Path, *, name: str = "Odd", options: dict[str, object] | None = None, **config: object
) -> Iterator[EnvironmentPool]:
    made = EnvironmentPool(
        EnvironmentSpec(f"{module}:{name}", options or {}),
        EnvironmentConfig(**config),  # type: ignore[arg-type]
    )
    try:
        yield made
    finally:
        made.close()


def said(*texts: str, state: str = '{"columns": {}}') -> list[Begin | Continue]:
    return [Continue(state, Action(text, (1, 2), 3)) for text in texts]


def test_start_and_step_are_what_the_file_says(module: Path) -> None:
    with pool(module, options={"extra": 7}) as made:
        messages = [{"role": "user", "content": "q"}]
        (begun,) = made.run([Begin(messages, {"answer": "4"}, 2**62)])
        assert isinstance(begun, Answer)
        assert (
            begun.state == '{"seed": 4611686018427387904, "columns": {"answer": "4"}, "extra": 7}'
        )
        (next_,) = made.run([Continue(begun.state, Action("hi", (5,), 3))])
        assert isinstance(next_, Answer)
        assert next_.turn == Turn((Message("user", "hi"),), reward=0.5, info={"turn": 3.0})
        assert made.roles == ("user",)
        assert made.tools == ()


def test_secrets_of_options_and_environment_are_hidden(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what it raises and in what it printed before it died; options may name a variable."""
    monkeypatch.setenv("PLAIN_NAME", "canary-of-the-option")
    monkeypatch.setenv("MY_TOKEN", "canary-of-the-process")
    options: dict[str, object] = {"extra": {"api_key": "env:PLAIN_NAME"}}
    with pool(module, options=options, workers=1) as made:
        raised, printed = made.run(said("raise secret", "print secret"))
    assert isinstance(raised, Fault) and isinstance(printed, Fault)
    assert "no access with ***" in raised.message
    assert printed.message.endswith("exited with code 4; it printed: key *** ***")


def test_answers_come_in_the_order_of_the_calls(module: Path) -> None:
    texts = [str(i) for i in range(50)]
    with pool(module) as made:
        answers = made.run(said(*texts))
    assert [a.turn.messages[0].content for a in answers if isinstance(a, Answer)] == texts


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("raise", "raised", r"RuntimeError: broken \(odd.py:\d+\)"),
        ("exit", "raised", "SystemExit: 3"),
        ("hang", "timeout", r"no answer within 0.5 s \(environment.timeout_s\)"),
        ("die", "crashed", "died of signal SIGKILL"),
        ("nan", "raised", "reward and info must be finite"),
        ("state", "raised", "not JSON serializable"),
        ("system", "raised", "role user or tool"),
        ("nothing", "raised", r"must return \(state, Turn\), got None"),
    ],
)
def test_one_bad_call_is_a_fault_of_its_own(
    module: Path, text: str, kind: str, message: str
) -> None:
    with pool(module, timeout_s=0.5, workers=1) as made:
        before, bad, after = made.run(said("a", text, "b"))
        assert isinstance(before, Answer) and isinstance(after, Answer)
        assert isinstance(bad, Fault)
        assert bad.kind == kind
        assert re.search(message, bad.message), bad.message


def test_a_crash_costs_a_repeated_step(module: Path, tmp_path: Path) -> None:
    state = f'{{"columns": {{"flag": "{tmp_path / "flag"}"}}}}'
    with pool(module, workers=1) as made:
        (answer,) = made.run(said("die once", state=state))
    assert isinstance(answer, Answer)
    assert (tmp_path / "flag").exists()


def test_memory_that_leaks_costs_a_fresh_process(module: Path) -> None:
    with pool(module, workers=1, memory_mb=400) as made:
        first = made.pids
        answers = made.run(said(*["leak"] * 20))
        assert all(isinstance(answer, Answer) for answer in answers)
        assert made.pids != first


def test_files_that_leak_cost_a_fresh_process_and_then_the_call(module: Path) -> None:
    with pool(module, workers=1) as made:
        bad, good = made.run(said("files", "a"))
        assert isinstance(bad, Fault) and "Too many open files" in bad.message
        assert isinstance(good, Answer)


def test_a_wait_can_be_ended_and_the_next_call_is_as_ever(module: Path) -> None:
    class Asked(Exception):
        pass

    def stop() -> None:
        if time.monotonic() > started + 0.5:
            raise Asked

    with pool(module, workers=1) as made:
        made.start()
        started = time.monotonic()
        with pytest.raises(Asked):
            made.run(said("hang"), pulse=stop)
        assert time.monotonic() < started + 2.0
        (answer,) = made.run(said("a"))
        assert isinstance(answer, Answer)


def test_floods_of_output_stop_nothing(module: Path) -> None:
    with pool(module, workers=1) as made:
        assert all(isinstance(a, Answer) for a in made.run(said("print", "print", "a")))


def test_children_die_with_a_call_that_is_killed(module: Path, tmp_path: Path) -> None:
    """Those in a session of their own as well."""
    flag = tmp_path / "child"
    state = f'{{"columns": {{"flag": "{flag}"}}}}'
    with pool(module, workers=1, timeout_s=1.0) as made:
        (fault,) = made.run(said("child", state=state))
        assert isinstance(fault, Fault)
        child = int(flag.read_text())
        give_up = time.monotonic() + 5
        while _alive(child) and time.monotonic() < give_up:
            time.sleep(0.02)
        assert not _alive(child)


def test_workers_end_with_their_parent(module: Path) -> None:
    code = (
        "import os, sys\n"
        "from rlkit.environments import EnvironmentConfig, EnvironmentSpec\n"
        "from rlkit.environments.pool import EnvironmentPool\n"
        f"pool = EnvironmentPool(EnvironmentSpec('{module}:Odd'), EnvironmentConfig())\n"
        "pool.start(); print(*pool.pids, flush=True); os._exit(1)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in out.stdout.split()]
    assert len(pids) == 2, out.stderr
    give_up = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("Missing", {}, r"environment\.fn must name a class"),
        ("not_environment", {}, r"environment\.fn must have start\(example, seed\)"),
        ("Odd", {"tries": 1}, r"environment\.options must be those of"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(
    module: Path, name: str, options: dict[str, object], rule: str
) -> None:
    with pool(module, name=name, options=options) as made, pytest.raises(ValueError, match=rule):
        made.start()


def test_workers_import_no_torch(module: Path, tmp_path: Path) -> None:
    path = tmp_path / "light.py"
    path.write_text(
        "import sys\nfrom rlkit.environments import Turn\n"
        "class Light:\n"
        "    def start(self, example, seed):\n"
        "        return [m for m in ('torch', 'transformers') if m in sys.modules], Turn()\n"
        "    def step(self, state, action):\n        return state, Turn()\n"
    )
    with pool(path, name="Light") as made:
        (answer,) = made.run([Begin("q", {}, 0)])
    assert isinstance(answer, Answer) and answer.state == "[]"
