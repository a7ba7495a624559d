"""A program that talks to a language model over HTTP is an environment: each request is a turn.

The program is a client of OpenAI's chat API, of any framework and in any language. It gets the URL
of a server on loopback, whose answers are the turns of the model that is trained. What it sends
next is what the model reads next.

    class Mine(AgentEnvironment):
        def play(self, columns, seed, endpoint):
            client = OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
            ...
            return reward

Ids only grow here as everywhere, so a program that rewrites its conversation is refused. Equal
seeds and turns must make it ask for equal turns, as for all sessions.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from rlkit.environments.base import Action, Example, Message, Turn
from rlkit.environments.calls import CallFormat, calls_in
from rlkit.environments.chat_server import ChatEndpoint, ChatServer, RequestRefused
from rlkit.environments.session import Played, SessionEnvironment


class AgentOutcome(NamedTuple):
    """This is what a program's episode came to."""

    reward: float
    info: Mapping[str, float] = {}
    """Numbers for the log."""


class AgentRequest(NamedTuple):
    """This is what a program asks a model to go on from."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]


class AgentSession:
    """It implements `rlkit.environments.session.StatefulSession` over a program in a thread."""

    def __init__(
        self,
        play: Callable[[int, ChatEndpoint], float | AgentOutcome],
        server: ChatServer,
        form: CallFormat,
    ) -> None:
        """Prepare to run `play` with a seed and the endpoint of its model.

        Args:
            play: The program; it returns its reward.
            server: The server that it talks to.
            form: The form in which the model writes calls of tools.
        """
        self._play, self._server, self._form = play, server, form
        self._events: queue.Queue[AgentRequest | AgentOutcome | Exception] = queue.Queue()
        self._answers: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._free = threading.Lock()
        self._so_far: list[dict[str, Any]] = []
        self._shown = 0
        self._offers_tools = False
        self._endpoint = server.add(self._ask)

    def reset(self, *, seed: int) -> tuple[AgentRequest, Mapping[str, Any]]:
        """Start the program; return its first request."""
        threading.Thread(target=self._run, args=(seed,), daemon=True).start()
        event = self._events.get()
        if not isinstance(event, AgentRequest):
            if isinstance(event, Exception):
                raise event
            raise ValueError("a program must ask for a turn of the model before it ends")
        return event, {}

    def step(self, action: str, /) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
        """Answer the program's request with a turn; return what it asks next, or its reward."""
        said = self._message(action)
        self._so_far.append(said)
        self._shown = len(self._so_far)
        self._answers.put(said)
        event = self._events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, AgentOutcome):
            return (), event.reward, True, False, event.info
        return event, 0.0, False, False, {}

    def close(self) -> None:
        """End the program, if it still waits: its request is refused."""
        self._server.remove(self._endpoint)
        self._answers.put(None)

    def _run(self, seed: int) -> None:
        try:
            outcome = self._play(seed, self._endpoint)
            made = outcome if isinstance(outcome, AgentOutcome) else AgentOutcome(float(outcome))
            self._events.put(made)
        except Exception as error:  # the user's program; the worker says what it was
            self._events.put(error)

    def _ask(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._free.acquire(blocking=False):
            raise self._lost("a program must ask for one turn at a time")
        try:
            self._events.put(self._request(body))
            answer = self._answers.get()
        finally:
            self._free.release()
        if answer is None:
            raise RequestRefused("the episode has ended")
        return answer

    def _request(self, body: Mapping[str, Any]) -> AgentRequest:
        if body.get("n") not in (None, 1):
            raise self._lost(f"n must be 1, got {body['n']}")
        messages = list(body["messages"])
        for number, (old, new) in enumerate(zip(self._so_far, messages, strict=False)):
            if _canonical(old) != _canonical(new):
                raise self._lost(
                    f"a program must go on with its conversation, got another message {number} "
                    f"({new.get('role')}: {_text(new)!r:.80}, not {_text(old)!r:.80})"
                )
        if len(messages) < len(self._so_far):
            raise self._lost("a program must go on with its conversation, got a shorter one")
        self._so_far = messages
        self._offers_tools = bool(body.get("tools"))
        new = tuple(Message(m["role"], _text(m)) for m in messages[self._shown :])
        return AgentRequest(new, tuple(body.get("tools") or ()))

    def _lost(self, message: str) -> RequestRefused:
        self._events.put(ValueError(message))
        return RequestRefused(message)

    def _message(self, text: str) -> dict[str, Any]:
        """Return a turn as a message; calls that cannot be read stay text, as in vLLM's server."""
        calls = calls_in(text, self._form) if self._offers_tools else []
        if not calls or any(call.problem for call in calls):
            return {"role": "assistant", "content": text}
        return {
            "role": "assistant",
            "content": text.partition("<tool_call>")[0].strip()
            if self._form is CallFormat.hermes
            else "",
            "tool_calls": [
                {
                    "id": f"call_{len(self._so_far)}_{number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for number, call in enumerate(calls)
            ],
        }


class AgentEnvironment(SessionEnvironment):
    """It plays the turns of an episode to a program that thinks it talks to a server."""

    roles: ClassVar[tuple[str, ...]] = ("user",)
    """The roles of what the program says to the model: `user`, `tool` or both."""
    tools: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """The tools that the program offers, as it sends them; `opening` returns them."""
    form: ClassVar[CallFormat] = CallFormat.hermes
    """The form in which the model writes calls of tools."""
    most_kept: ClassVar[int] = 64

    def __init__(self) -> None:
        super().__init__()
        self._server: ChatServer | None = None

    def play(
        self, columns: Mapping[str, Any], seed: int, endpoint: ChatEndpoint
    ) -> float | AgentOutcome:
        """Run the program with the model at `endpoint`; return its reward. Always overridden.

        Args:
            columns: The columns of the example.
            seed: All chance must come from it, in [0, 2^31).
            endpoint: The server that it asks for turns.
        """
        raise NotImplementedError("an AgentEnvironment must have play(columns, seed, endpoint)")

    def open(self, columns: Mapping[str, Any]) -> AgentSession:
        """Return a session in which `play` has not begun."""
        self._server = self._server or ChatServer()

        def play(seed: int, endpoint: ChatEndpoint) -> float | AgentOutcome:
            return self.play(columns, seed, endpoint)

        return AgentSession(play, self._server, self.form)

    def start(self, example: Example, seed: int) -> tuple[Played, Turn]:
        """Begin; the program's first request must begin with the example's prompt."""
        state, turn = super().start(example, seed)
        prompt = example.prompt
        if isinstance(prompt, str):
            raise ValueError("a program needs a prompt of messages, got text")
        shown, wanted = turn.messages[: len(prompt)], [(m.role, m.content) for m in prompt]
        if [(m.role, m.content) for m in shown] != wanted:
            raise ValueError(
                "the prompt must be what the program sends first, got "
                f"{wanted!r:.200}, not {[(m.role, m.content) for m in shown]!r:.200}"
            )
        return state, turn._replace(messages=self._checked(turn.messages[len(prompt) :]))

    def step(self, state: Played, action: Action) -> tuple[Played, Turn]:
        """Answer the program's request; what it asks next is what the model reads next."""
        state, turn = super().step(state, action)
        return state, turn._replace(messages=self._checked(turn.messages))

    def messages_of(self, observation: Any) -> tuple[Message, ...]:
        """Return the messages of a request that the model has not read."""
        if not isinstance(observation, AgentRequest):
            return ()
        if list(observation.tools) != list(self.tools):
            names = [tool.get("function", {}).get("name") for tool in observation.tools]
            raise ValueError(f"tools must be those that the program offers, which are {names}")
        return observation.messages

    def _checked(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        for message in messages:
            if message.role not in self.roles:
                raise ValueError(f"roles must hold {message.role}, got {self.roles}")
        return tuple(messages)


def opening(environment: AgentEnvironment, columns: Mapping[str, Any]) -> AgentRequest:
    """Return what the program of an example asks first: its prompt, and the tools that it offers.

    It writes the rows of a data set. The program is ended then.
    """
    session = environment.open(columns)
    try:
        request, _ = session.reset(seed=0)
    finally:
        session.close()
    return request


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise RequestRefused("messages must be text")
    return "".join(parts)


def _canonical(message: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what makes two messages the same; clients may drop blanks at the ends."""
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]
    return message.get("role"), _text(message).strip(), calls
