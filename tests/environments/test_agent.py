"""Programs that talk to OpenAI's API over HTTP, played as episodes."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from code_blocks import ROOT, blocks

from rlkit.environments import EnvironmentConfig, EnvironmentSpec, Example, Message
from rlkit.environments.agent import AgentEnvironment, AgentOutcome, opening
from rlkit.environments.base import Action
from rlkit.environments.chat_server import ChatEndpoint, ChatServer
from rlkit.environments.pool import Answer, Begin, Continue, EnvironmentPool, Fault

PROMPT = (Message("system", "Play."), Message("user", "Guess a number from 1 to 7."))
TOOL = {"type": "function", "function": {"name": "double", "parameters": {"type": "object"}}}


def ask(endpoint: ChatEndpoint, messages: list[dict[str, Any]], **more: Any) -> Any:
    """What a client of OpenAI's API does, without one."""
    request = urllib.request.Request(
        f"{endpoint.base_url}/chat/completions",
        json.dumps({"model": endpoint.model, "messages": messages, **more}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.api_key}"},
    )
    with urllib.request.urlopen(request) as reply:
        return reply.read().decode() if more.get("stream") else json.load(reply)


def first() -> list[dict[str, Any]]:
    return [{"role": m.role, "content": m.content} for m in PROMPT]


class Guess(AgentEnvironment):
    """A program with a loop of its own; an observation comes with the prompt if `greet`."""

    greet = False

    def play(self, columns: Mapping[str, Any], seed: int, endpoint: ChatEndpoint) -> AgentOutcome:
        number, messages = 1 + seed % 7, first()
        if self.greet:
            messages.append({"role": "user", "content": f"seed {seed}"})
        for tries in range(1, 4):
            choice = ask(endpoint, messages)["choices"][0]
            assert choice["finish_reason"] == "stop"
            messages.append(choice["message"])
            said = int(choice["message"]["content"])
            if said == number:
                return AgentOutcome(1.0 / tries, {"tries": tries})
            hint = "higher" if said < number else "lower"
            messages.append({"role": "user", "content": [{"type": "text", "text": hint}]})
        return AgentOutcome(0.0)


class Doubles(AgentEnvironment):
    """A program with a tool."""

    roles = ("tool",)
    tools = (TOOL,)

    def play(self, columns: Mapping[str, Any], seed: int, endpoint: ChatEndpoint) -> float:
        messages = first()
        for _ in range(4):
            message = ask(endpoint, messages, tools=[TOOL])["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                return float(message["content"] == "8")
            for call in message["tool_calls"]:
                number = json.loads(call["function"]["arguments"])["x"]
                result = {"role": "tool", "tool_call_id": call["id"], "content": str(2 * number)}
                messages.append(result)
        return 0.0


class Odd(AgentEnvironment):
    """Programs that do what a program must not."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def play(self, columns: Mapping[str, Any], seed: int, endpoint: ChatEndpoint) -> float:
        if self.way == "ends":
            return 1.0
        if self.way == "n":
            ask(endpoint, first(), n=2)
        if self.way == "at once":
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda _: ask(endpoint, first()), range(2)))
        message = ask(endpoint, first())["choices"][0]["message"]
        more = [message, {"role": "user", "content": "go on"}]
        if self.way == "raises":
            raise KeyError("lost")
        if self.way == "forgets":
            ask(endpoint, [first()[0], *more])
        if self.way == "shortens":
            ask(endpoint, first()[:1])
        if self.way == "edits":
            ask(endpoint, [*first(), {"role": "assistant", "content": "12"}, more[1]])
        if self.way == "commands":
            ask(endpoint, [*first(), message, {"role": "system", "content": "obey"}])
        if self.way == "calls":
            ask(endpoint, [*first(), *more], tools=[TOOL])
        return 0.0


def test_each_request_is_a_turn_and_what_follows_is_read() -> None:
    """The number is 1 + 9 % 7 = 3: a guess of 4 is too high, and the second try earns 1/2."""
    guess = Guess()
    state, turn = guess.start(Example(prompt=PROMPT), seed=9)
    assert turn.messages == () and not turn.done
    state, turn = guess.step(state, Action("4", (1,), 0))
    assert (turn.messages, turn.reward, turn.done) == ((Message("user", "lower"),), 0.0, False)
    guess._kept.clear()  # any worker can go on
    state, turn = guess.step(state, Action("3", (1,), 1))
    assert (turn.messages, turn.reward, turn.done, turn.info) == ((), 0.5, True, {"tries": 2.0})


def test_samples_of_one_start_are_apart() -> None:
    guess = Guess()
    state, _ = guess.start(Example(prompt=PROMPT), seed=9)
    turns = [guess.step(state, Action(said, (1,), 0))[1] for said in ("1", "3", "1", "5")]
    assert [turn.reward for turn in turns] == [0.0, 1.0, 0.0, 0.0]
    assert [m.content for turn in turns for m in turn.messages] == ["higher", "higher", "lower"]


def test_an_observation_may_follow_the_prompt_and_another_prompt_is_refused() -> None:
    class Greets(Guess):
        greet = True

    _, turn = Greets().start(Example(prompt=PROMPT), seed=5)
    assert turn.messages == (Message("user", "seed 5"),)
    assert opening(Greets(), {}).messages == (*PROMPT, Message("user", "seed 0"))
    with pytest.raises(ValueError, match="the prompt must be what the program sends first"):
        Guess().start(Example(prompt=(Message("user", "Hello"),)), seed=5)


def test_calls_of_tools_reach_the_program_as_calls() -> None:
    environment = Doubles()
    state, turn = environment.start(Example(prompt=PROMPT), seed=0)
    two = "".join(
        f'<tool_call>{{"name": "double", "arguments": {{"x": {x}}}}}</tool_call>' for x in (2, 4)
    )
    state, turn = environment.step(state, Action(f"I call. {two}", (1,), 0))
    assert turn.messages == (Message("tool", "4"), Message("tool", "8"))
    _, turn = environment.step(state, Action("8", (1,), 1))
    assert (turn.reward, turn.done) == (1.0, True)
    # What is no call is text, as in vLLM's own server.
    state, _ = environment.start(Example(prompt=PROMPT), seed=0)
    _, turn = environment.step(state, Action("<tool_call>{double 2}</tool_call>", (1,), 0))
    assert (turn.reward, turn.done) == (0.0, True)
    assert opening(environment, {}).tools == (TOOL,)


def test_a_program_may_read_a_stream() -> None:
    class Streams(AgentEnvironment):
        def play(self, columns: Mapping[str, Any], seed: int, endpoint: ChatEndpoint) -> float:
            lines = ask(endpoint, first(), stream=True).split("\n\n")
            assert lines[-2:] == ["data: [DONE]", ""]
            deltas = [json.loads(line[6:])["choices"][0] for line in lines[:-2]]
            assert deltas[-1]["finish_reason"] == "stop"
            return float(deltas[0]["delta"]["content"])

    environment = Streams()
    state, _ = environment.start(Example(prompt=PROMPT), seed=0)
    assert environment.step(state, Action("0.25", (1,), 0))[1].reward == 0.25


@pytest.mark.parametrize(
    ("way", "rule"),
    [
        ("ends", "must ask for a turn of the model before it ends"),
        ("n", "n must be 1, got 2"),
        ("at once", "one turn at a time|got a shorter one"),  # before or after the first's answer
        ("raises", "lost"),
        ("forgets", r"must go on with its conversation, got another message 1 \(assistant: 'so'"),
        ("shortens", "got a shorter one"),
        ("edits", r"got another message 2 \(assistant: '12', not 'so'\)"),
        ("commands", r"roles must hold system, got \('user',\)"),
        ("calls", r"tools must be those that the program offers, which are \['double'\]"),
    ],
)
def test_what_a_program_must_not_do_is_one_line(way: str, rule: str) -> None:
    environment = Odd(way)
    with pytest.raises((ValueError, KeyError), match=rule):
        state, _ = environment.start(Example(prompt=PROMPT), seed=0)
        environment.step(state, Action("so", (1,), 0))


def test_programs_that_nobody_answers_are_ended() -> None:
    """More than a worker keeps; those that wait longest get an error, and their threads end."""

    class Few(Guess):
        most_kept = 3

    environment, before = Few(), threading.active_count()
    for seed in range(12):
        environment.start(Example(prompt=PROMPT), seed=seed)
    assert len(environment._kept) == 3
    give_up = time.monotonic() + 5.0
    # The server, and for each session that is kept its program and its request.
    while threading.active_count() > before + 1 + 2 * 3 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert threading.active_count() <= before + 1 + 2 * 3
    endpoint = ChatEndpoint("http://127.0.0.1:9/0/v1")
    with pytest.raises(urllib.error.URLError):
        ask(endpoint, first())


def test_workers_play_programs(tmp_path: Path) -> None:
    """As a run does: the class lies in a file, and a program that hangs costs its own step."""
    (tmp_path / "mine.py").write_text(
        "import time\n"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_agent import Guess\n"
        "class Mine(Guess):\n"
        "    def play(self, columns, seed, endpoint):\n"
        "        if columns.get('hang'):\n"
        "            time.sleep(1e6)\n"
        "        return super().play(columns, seed, endpoint)\n"
    )
    config = EnvironmentConfig(timeout_s=2.0, workers=2)
    pool = EnvironmentPool(EnvironmentSpec(f"{tmp_path}/mine.py:Mine"), config)
    try:
        begun, lost = pool.run([Begin(first(), {}, 9), Begin(first(), {"hang": 1}, 9)])
        assert isinstance(begun, Answer) and isinstance(lost, Fault)
        assert lost.kind == "timeout"
        several = [Continue(begun.state, Action(said, (1,), 0)) for said in ("1", "3", "7")]
        answers = pool.run(several)
    finally:
        pool.close()
    assert [a.turn.reward for a in answers if isinstance(a, Answer)] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("sent", [b"{", b"[1]", b'{"messages": "hello"}', b"\xff"])
def test_a_body_that_is_no_request_is_refused_and_asks_for_nothing(sent: bytes) -> None:
    asked: list[object] = []
    server = ChatServer()

    def answer(body: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(body)
        return {"role": "assistant", "content": "yes"}

    endpoint = server.add(answer)
    request = urllib.request.Request(f"{endpoint.base_url}/chat/completions", sent)
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(request, timeout=20)
    assert json.loads(caught.value.read())["error"]["message"].startswith("the body must ")
    assert asked == []


def test_the_program_of_the_page_runs_with_the_client_of_openai() -> None:
    """It says No. to a wrong answer, and pays 1 for one that holds the right one."""
    pytest.importorskip("openai")
    (block,) = (b for b in blocks(ROOT / "docs/environments.md") if b.needs == "openai")
    space: dict[str, Any] = {"__name__": "mine"}
    exec(compile(block.text, "mine.py", "exec"), space)
    mine = space["Mine"]()
    columns = {"question": "2 + 2?", "answer": "4"}
    prompt = opening(mine, columns).messages
    assert prompt == (Message("user", "2 + 2?"),)
    state, turn = mine.start(Example(prompt=prompt, columns=columns), seed=0)
    state, turn = mine.step(state, Action("5", (1,), 0))
    assert turn.messages == (Message("user", "No."),) and not turn.done
    state, turn = mine.step(state, Action("It is 4.", (1,), 1))
    assert turn.done and turn.reward == 1.0
