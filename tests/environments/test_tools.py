"""Tools: schemas, calls in three formats, limits, and errors as text to the model."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from transformers.utils.chat_template_utils import get_json_schema

from rlkit.environments import Example, Message
from rlkit.environments.arithmetic import calculate
from rlkit.environments.base import Action
from rlkit.environments.calls import Call, CallFormat, calls_in
from rlkit.environments.limited import Limits, ToolError, call_limited
from rlkit.environments.schemas import problem_with, schema_of
from rlkit.environments.toolbox import calculator, python_in, search_in
from rlkit.environments.tools import ToolEnvironment

ISOLATION = (
    "limits"
    if subprocess.run(["unshare", "-Urpnf", "true"], capture_output=True).returncode
    else "namespaces"
)


def weather(
    city: str, days: int = 1, unit: Literal["C", "F"] = "C", exact: bool | None = None
) -> str:
    """Look up the weather.

    It may rain.

    Args:
        city: Name of the city.
        days: Days from now.
        unit: Of the temperature.
        exact: Whether to round.
    """
    return f"{city} {days} {unit}"


def add(numbers: list[float], scale: float = 1.0) -> float:
    """Add numbers.

    Args:
        numbers: What to add.
        scale: Factor.
    """
    return scale * sum(numbers)


@pytest.mark.parametrize("function", [add, calculator, python_in(ISOLATION)])
def test_schemas_are_those_of_transformers(function: Callable[..., object]) -> None:
    theirs = get_json_schema(function)
    theirs["function"].pop("return", None)
    assert schema_of(function) == theirs


def test_choices_and_optional_parameters() -> None:
    parameters = schema_of(weather)["function"]["parameters"]
    assert parameters["required"] == ["city"]
    assert parameters["properties"]["unit"]["enum"] == ["C", "F"]
    assert parameters["properties"]["exact"] == {
        "type": "boolean",
        "nullable": True,
        "description": "Whether to round.",
    }


def no_docs(a: int) -> int:
    return a


def no_type(a) -> int:  # type: ignore[no-untyped-def]
    """Do it."""
    return 0


def odd_type(a: set[int]) -> int:
    """Do it."""
    return 0


def many(*a: int) -> int:
    """Do it."""
    return 0


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (no_docs, "tool no_docs must have a docstring"),
        (no_type, "parameter a of tool no_type must have a type"),
        (odd_type, "parameter a of tool odd_type must be str, int"),
        (many, "parameter a of tool many must have a name of its own"),
    ],
)
def test_functions_that_are_no_tools_are_refused(
    function: Callable[..., object], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        schema_of(function)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"city": "Rome"}, ""),
        ({"city": "Rome", "exact": None}, ""),
        ({}, "argument city is missing"),
        ({"city": 3}, "argument city must be string"),
        ({"city": "Rome", "days": True}, "argument days must be integer"),
        ({"city": "Rome", "unit": "K"}, "argument unit must be ['C', 'F']"),
        ({"city": "Rome", "when": 1}, "unknown argument when; known are city, days, unit, exact"),
        ([], "arguments must be an object"),
    ],
)
def test_arguments_are_checked_in_words(arguments: object, problem: str) -> None:
    assert problem_with(arguments, schema_of(weather)) == problem


HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        ("hermes", f"I will call.\n{HERMES}", [Call("f", {"a": 1})]),
        ("hermes", f"{HERMES}\n{HERMES}", [Call("f", {"a": 1})] * 2),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', [Call("f", {"a": 1})]),
        ("hermes", '{"name": "f", "arguments": {}}', []),
        ("llama3", '{"name": "f", "parameters": {"a": 1}}', [Call("f", {"a": 1})]),
        (
            "llama3",
            '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
            [Call("f", {"a": 1}), Call("g", {})],
        ),
        ("llama3", 'The answer is {"name": 3}', []),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', [Call("f", {"a": 1})]),
        ("mistral", ' [{"name": "f", "arguments": {"a": 1}}]', [Call("f", {"a": 1})]),
        ("mistral", "The answer is [1, 2]", []),
    ],
)
def test_calls_of_each_family(form: str, text: str, calls: list[Call]) -> None:
    assert calls_in(text, CallFormat(form)) == calls


@pytest.mark.parametrize("body", ["{", "3", '{"arguments": {}}', '{"name": 3}', "[" * 100_000])
def test_what_is_no_call_says_why(body: str) -> None:
    (call,) = calls_in(f"<tool_call>{body}</tool_call>", CallFormat.hermes)
    assert call.problem.startswith("the call")


def slow() -> str:
    """Wait."""
    time.sleep(100)
    return ""


def spins() -> str:
    """Compute."""
    while True:
        pass


def eats() -> int:
    """Use memory."""
    return len(bytearray(1 << 30))


def dies() -> str:
    """Crash."""
    os.kill(os.getpid(), 9)
    return ""


def leaves_a_child() -> str:
    """Fork."""
    if os.fork() == 0:
        time.sleep(100)
    time.sleep(100)
    return ""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (slow, "no result within 0.3 s"),
        (spins, "no result within 0.3 s"),
        (eats, "MemoryError"),
        (dies, "the call ended with signal SIGKILL"),
        (leaves_a_child, "no result within 0.3 s"),
    ],
)
def test_calls_that_hang_crash_or_eat_are_errors_in_time(
    function: Callable[..., object], message: str
) -> None:
    started = time.monotonic()
    limits = Limits(seconds=0.3, memory_mb=900 if function is eats else 8192)
    with pytest.raises(ToolError, match=message):
        call_limited(function, {}, limits)
    assert time.monotonic() - started < 2.0


def test_long_results_are_cut_and_said_to_be() -> None:
    text = call_limited(lambda: "x" * 5000, {}, Limits(memory_mb=8192))
    assert text == "x" * 2000 + " ... (3000 characters more)"
    assert call_limited(lambda: {"a": [1, 2]}, {}, Limits(memory_mb=8192)) == '{"a": [1, 2]}'


def test_python_runs_apart(tmp_path: Path) -> None:
    python = python_in(ISOLATION)
    assert python("print(6 * 7)") == "42\n"
    assert python("pass") == "(no output)"
    with pytest.raises(ToolError, match=r"^ZeroDivisionError: division by zero\nbefore$"):
        python("print('before')\n1 / 0")
    with pytest.raises(ToolError, match="ModuleNotFoundError"):
        python("import torch")
    with pytest.raises(ToolError, match="exit code 3"):
        python("raise SystemExit(3)")
    assert call_limited(python, {"code": "print(2)"}, Limits()) == "2\n"
    with pytest.raises(ToolError, match=r"^ValueError: no\n1"):
        call_limited(python, {"code": "print(1)\nraise ValueError('no')"}, Limits())
    with pytest.raises(ToolError, match="MemoryError"):  # the limits of the call hold inside
        call_limited(python, {"code": "'a' * (300 << 20)"}, Limits(memory_mb=256))
    with pytest.raises(ValueError, match="'jail' is not a valid Isolation"):
        python_in("jail")


def test_python_sees_neither_files_nor_network_and_leaves_nothing(tmp_path: Path) -> None:
    if ISOLATION == "limits":
        with pytest.raises(ValueError, match="running Python must be possible, got: forbidden"):
            python_in("namespaces")
        return
    python, mine, alive = python_in("namespaces"), tmp_path / "mine", tmp_path / "alive"
    mine.write_text("secret")
    with pytest.raises(ToolError, match="FileNotFoundError"):
        python(f"open({str(mine)!r})")
    daemon = "while True: open('alive', 'a').write('x'); print(1, flush=True)"
    hangs = f"import subprocess, sys\nsubprocess.run(['setsid', sys.executable, '-c', {daemon!r}])"
    children = _descendants()
    with pytest.raises(ToolError, match=r"no result within 0\.5 s"):
        call_limited(python, {"code": hangs}, Limits(seconds=0.5))
    give_up = time.monotonic() + 10.0
    while _descendants() != children and time.monotonic() < give_up:
        time.sleep(0.05)
    assert _descendants() == children and not alive.exists()


def _descendants() -> set[str]:
    """Return the command lines of all processes that run a daemon of these tests."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if "open('alive'" in path.read_text(errors="replace"):
                found.add(str(path))
    return found


def test_search_finds_the_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("The heron eats fish.\n\nThe owl hunts at night.\n\nOwls, owls.")
    search = search_in(tmp_path, results=1)
    assert search("what does a heron eat") == "The heron eats fish."
    assert search("zebra") == "nothing found"
    assert schema_of(search)["function"]["name"] == "search"
    with pytest.raises(ValueError, match="must be given a folder with"):
        search_in(tmp_path / "none")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("347 * 26", "9022"),
        ("7 / 2", "3.5"),
        ("-2 ** 2", "-4"),
        ("(1 + 2) % 2", "1"),
        ("2**0.5", "1.414213562"),
    ],
)
def test_arithmetic(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "1/0",
        "2**99999",
        "9**9**9**9",
        "__import__('os')",
        "a",
        "",
        "True",
        "(-8)**0.5",
        "1e999",
        "1;2",
        "(" * 150,
    ],
)
def test_what_is_no_arithmetic_is_one_line(expression: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        calculate(expression)


class Solver(ToolEnvironment):
    functions = (calculator, slow)
    limits = Limits(seconds=3.0, memory_mb=8192)  # a busy machine starts a process in a second

    def judge(self, columns: object, text: str) -> float:
        return float(columns["answer"] in text)  # type: ignore[index]


def act(
    environment: ToolEnvironment, text: str
) -> tuple[tuple[Message, ...], float | None, dict[str, float]]:
    state, _ = environment.start(Example(prompt="q", columns={"answer": "42"}), 0)
    assert json.loads(json.dumps(state)) == state
    _, turn = environment.step(state, Action(text, (), 0))
    return turn.messages, turn.reward, dict(turn.info)


def test_an_environment_of_tools_answers_calls_and_judges_the_rest() -> None:
    solver = Solver()
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "6*7"}}</tool_call>'
    hang = '<tool_call>{"name": "slow", "arguments": {}}</tool_call>'
    bad = '<tool_call>{"name": "calc", "arguments": {}}</tool_call>'
    messages, reward, info = act(solver, call + hang + bad)
    assert messages == (
        Message("tool", "42"),
        Message("tool", "error: no result within 3 s"),
        Message("tool", "error: there is no tool calc; there are calculator, slow"),
    )
    assert (reward, info) == (None, {"calls": 3.0, "errors": 2.0})
    assert act(solver, "It is 42.") == ((), 1.0, {})
    assert act(solver, "It is 41.") == ((), 0.0, {})
    messages, _, info = act(solver, call * 6)
    assert info == {"calls": 6.0, "errors": 2.0}
    assert messages[-1].content == "error: a turn may have 4 calls"
    with pytest.raises(ValueError, match=r"environment\.options\.form must be one of hermes"):
        Solver(form="xml")
