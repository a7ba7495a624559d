"""The template's text between two turns becomes ids here; what was sampled is never encoded again.

After a turn a chat template writes the end of that turn, the environment's messages and the
beginning of the next. This text, the delta, is found once with a mark in place of the turn, and
must be the same after any history. An episode is then prompt, sampled, delta, sampled, ... and its
ids only grow. Decoding and encoding would not give them back: 11 of 48 completions changed.

What an environment says is encoded with special tokens off, so that no tool can end a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlkit.environments.base import Message
from rlkit.environments.config import History
from rlkit.environments.encode import SafeEncoder, joined, split_at
from rlkit.environments.messages import Written, message_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAID, _HEARD, _THOUGHT = "rlkit-said", "rlkit-heard-{}-", "rlkit-thought"
_PROBE = 'rlkit "probe"\n<é> & \\n'
_KEY = "model.chat_template"

_ALSO_ENDS = ("<|eom_id|>",)
"""Llama 3.1 ends a turn that waits for a tool with this token, in place of the template's own."""

Conversation = list[dict[str, Any]]


class Delta(NamedTuple):
    """A delta is the text between two turns, around the contents of the messages."""

    pieces: tuple[str, ...]
    """One more than there are messages."""
    written: tuple[Written, ...]
    """How the template writes the content of each message."""


class Splicer:
    """A splicer makes ids that follow a turn of the messages of an environment."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        roles: Sequence[str],
        history: History,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Check the chat template for every role that the environment uses.

        Args:
            tokenizer: The model's tokenizer, with its chat template.
            roles: Roles of the environment's messages.
            history: What becomes of a template that rewrites turns of the past.
            tools: JSON schemas that the template shows.

        Raises:
            ValueError: The template cannot be used, with one line that says why.
        """
        self._tokenizer = tokenizer
        self._tools: list[dict[Any, Any] | Callable[..., Any]] = [dict(tool) for tool in tools]
        self._encoder = SafeEncoder(tokenizer)
        self._deltas: dict[tuple[str, ...], Delta] = {}
        self.opening = ""
        """The template begins a turn with it and takes it for the model's own words: `<think>` in
        some. It is filled for `History.branch`."""
        if not tokenizer.chat_template:
            raise ValueError(f"{_KEY} must be given with an environment: the tokenizer has none")
        if tools:
            self._check_tools()
        for role in roles:
            self._check_history(role, history)
            self._delta((role,))
        if history is History.branch:
            self.opening = self._opening(roles[0])

    def between(self, messages: Sequence[Message], *, after: int) -> tuple[int, ...]:
        """Return the ids from the end of a turn to the beginning of the next.

        Args:
            messages: What the environment says.
            after: The last id that was sampled. If it is the one that ends a turn, the delta begins
                behind it; a turn that ended otherwise gets that id, unsampled.

        Raises:
            ValueError: The template cannot follow with messages of these roles.
        """
        ids = self._encoder.encode(*self._parts(messages))
        ended = ids[0] == after or self._encoder.added.get(after) in _ALSO_ENDS
        return ids[1:] if ended else ids

    def text_between(self, messages: Sequence[Message]) -> str:
        """Return the text from the end of a turn to the beginning of the next."""
        return joined(*self._parts(messages))

    def conversation(
        self, own: Sequence[Mapping[str, object]], since: Sequence[Mapping[str, Any]]
    ) -> tuple[str, tuple[int, ...]]:
        """Return text and ids of a conversation as the template renders it, for another turn.

        Args:
            own: The example's messages, which are trusted.
            since: What was said since. Words in it that would be read as special tokens become the
                ordinary tokens of their letters.

        Raises:
            ValueError: The template shows a text more than once.
        """
        mark = "rlkit-cut-"
        while any(mark in str(message["content"]) for message in (*own, *since)):
            mark = f"x{mark}"  # somebody wants to be taken for a mark
        cut: list[str] = []
        marked = [
            {**message, "content": self._encoder.marked(message, mark, cut)} for message in since
        ]
        text = self._render([*map(dict, own), *marked])
        marks = [f"{mark}{i}-" for i in range(len(cut))]
        # A template may leave out what was thought, and marks with it.
        kept = [i for i, mark in enumerate(marks) if mark in text]
        pieces = split_at(text, [marks[i] for i in kept])
        if pieces is None:
            raise ValueError(f"{_KEY} must show each text once, in order, with history=branch")
        contents = [cut[i] for i in kept]
        whole = joined(pieces, contents)
        return whole, self._encoder.encode(pieces, contents)

    def prompt(
        self, conversation: Sequence[Mapping[str, object]], messages: Sequence[Message]
    ) -> tuple[str, tuple[int, ...]]:
        """Return text and ids of a first prompt: the example's conversation, then `messages`.

        Args:
            conversation: The example's own messages.
            messages: What the environment says before the first turn.
        """
        marks = [_HEARD.format(i) for i in range(len(messages))]
        marked = [message_of(Message(m.role, k)) for m, k in zip(messages, marks, strict=True)]
        text = self._render([*map(dict, conversation), *marked])
        pieces = split_at(text, marks)
        if pieces is None:
            roles = ", ".join(message.role for message in messages)
            raise ValueError(f"{_KEY} must show messages of role {roles} after a prompt")
        contents = [message.content for message in messages]
        whole = joined(pieces, contents)
        return whole, self._encoder.encode(pieces, contents)

    def _parts(self, messages: Sequence[Message]) -> tuple[tuple[str, ...], list[str]]:
        delta = self._delta(tuple(message.role for message in messages))
        contents = [
            written.of(message.content)
            for message, written in zip(messages, delta.written, strict=True)
        ]
        return delta.pieces, contents

    def _opening(self, role: str) -> str:
        """Return what a generation prompt has beyond the beginning of a past turn."""
        begun = _histories(())[0]
        past = self._render(
            [*begun, {"role": "assistant", "content": _SAID}, message_of(Message(role, "x"))]
        )
        now, before = self._render(begun), past.partition(_SAID)[0]
        return now[len(before) :] if now.startswith(before) else ""

    def _delta(self, roles: tuple[str, ...]) -> Delta:
        if roles not in self._deltas:
            self._deltas[roles] = self._derive(roles)
        return self._deltas[roles]

    def _derive(self, roles: tuple[str, ...]) -> Delta:
        """Find the delta, and compare it after histories of several kinds."""
        name = " and ".join(roles) or "no message"
        marks = [_HEARD.format(i) for i in range(len(roles))]
        found: list[tuple[str, ...]] = []
        for history in _histories(roles):
            try:
                text = self._after(history, roles, marks)
            except Exception as error:  # a template is a program of the model's author
                if found:
                    continue  # it knows no system role, or no earlier tool
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise ValueError(f"{_KEY} must let {name} follow a turn, got {reason}") from error
            pieces = split_at(text, marks)
            if pieces is None:
                raise ValueError(
                    f"{_KEY} must show what {name} says after a turn, got {text[:80]!r}"
                )
            found.append(pieces)
        if len(set(found)) > 1:
            other = next(pieces for pieces in found if pieces != found[0])
            raise ValueError(
                f"{_KEY} must write the same between two turns after any history, got "
                f"{''.join(found[0])!r} and {''.join(other)!r} around {name}"
            )
        written = tuple(self._written(roles, i) for i in range(len(roles)))
        ids = self._encoder.ids("".join(found[0]))
        if not ids or ids[0] not in self._encoder.added:
            raise ValueError(
                f"{_KEY} must end a turn with a token of its own, got {found[0][0][:40]!r}, whose "
                "tokens could merge with what was sampled"
            )
        return Delta(found[0], written)

    def _after(self, history: Conversation, roles: Sequence[str], contents: Sequence[str]) -> str:
        """Return what the template writes after a turn: messages, and the next one's beginning."""
        heard = [message_of(Message(r, c)) for r, c in zip(roles, contents, strict=True)]
        text = self._render([*history, {"role": "assistant", "content": _SAID}, *heard])
        _, said, rest = text.rpartition(_SAID)
        if not said:
            raise ValueError("it leaves out what the model said")
        return rest

    def _written(self, roles: tuple[str, ...], place: int) -> Written:
        """Find how the template writes a content; refuse one that does so in another way."""
        contents = ["x"] * len(roles)
        contents[place] = f" {_PROBE} "
        text = self._after(_histories(roles)[0], roles, contents)
        for written in Written:
            if written.of(contents[place]) in text:
                return written
        raise ValueError(
            f"{_KEY} must show the content of a {roles[place]} message as it is, got {text[:80]!r}"
        )

    def _check_history(self, role: str, history: History) -> None:
        """Refuse a template that shows the model's turns otherwise than they were sampled."""
        if history is not History.strict:
            return
        begun = _histories((role,))[0]
        heard = message_of(Message(role, "x"))
        try:
            before = self._render(begun)
            thought = f"<think>\n{_THOUGHT}\n</think>\n\n{_SAID}"
            plain, thinking = (
                self._render([*begun, {"role": "assistant", "content": said}, heard])
                for said in (_SAID, thought)
            )
        except Exception:  # `_derive` says so, in one line
            return
        kept = thinking.startswith(before) and _THOUGHT in thinking
        if not (kept and plain.startswith(before + _SAID)):
            what = "strips the thinking" if _THOUGHT not in thinking else "rewrites the beginning"
            raise ValueError(
                f"environment.history must be append or branch with this chat template, which "
                f"{what} of a turn once a {role} message follows, got {history.value}"
            )

    def _check_tools(self) -> None:
        begun = _histories(("user",))[0]
        if self._render(begun) == str(
            self._tokenizer.apply_chat_template(begun, tokenize=False, add_generation_prompt=True)
        ):
            raise ValueError(
                f"{_KEY} must show the environment's tools, got one that knows none: describe "
                "them in the prompt, and leave the attribute `tools` away"
            )

    def _render(self, conversation: Conversation) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                conversation, tools=self._tools or None, tokenize=False, add_generation_prompt=True
            )
        )


def _histories(roles: Sequence[str]) -> list[Conversation]:
    """Return conversations after which the model speaks, the plainest first."""
    ask = {"role": "user", "content": "question"}
    said = {"role": "assistant", "content": "answer"}
    thought = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nanswer"}
    heard = [message_of(Message(role, "reply")) for role in roles]
    return [
        [ask],
        [{"role": "system", "content": "rules"}, ask],
        [ask, said, ask],
        [ask, thought, ask],
        *([[ask, said, *heard], [ask, said, *heard, thought, *heard]] if heard else []),
    ]
