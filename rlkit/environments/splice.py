"""The template's text between two turns becomes ids here; what was sampled is never encoded again.

After a turn a chat template writes the end of that turn, the environment's messages and the
beginning of the next. This text, the delta, is found once with a mark in place of the turn, and
must be the same after any history. An episode is then prompt, sampled, delta, sampled, ... and its
ids only grow. Decoding and encoding would not give them back: 11 of 48 completions changed.

What an environment says is encoded with special tokens off, so that no tool can end a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from rlkit.environments.base import Message
from rlkit.environments.config import History

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAID, _HEARD, _THOUGHT = "rlkit-said", "rlkit-heard-{}-", "rlkit-thought"
_PROBE = 'rlkit "probe"\n<é> & \\n'
_KEY = "model.chat_template"

Conversation = list[dict[str, Any]]


class Delta(NamedTuple):
    """A delta is the text between two turns, around the contents of the messages."""

    pieces: tuple[str, ...]
    """One more than there are messages."""
    trims: tuple[bool, ...]
    """Whether the template strips white space off the content of each message."""


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
        # White space is no way to forge a token, and some tokenizers add runs of it.
        self._added = {
            int(i): str(token.content)
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special or str(token.content).strip()
        }
        self._deltas: dict[tuple[str, ...], Delta] = {}
        if not tokenizer.chat_template:
            raise ValueError(f"{_KEY} must be given with an environment: the tokenizer has none")
        if tools:
            self._check_tools()
        for role in roles:
            self._check_history(role, history)
            self._delta((role,))

    def between(self, messages: Sequence[Message], *, after: int) -> tuple[int, ...]:
        """Return the ids from the end of a turn to the beginning of the next.

        Args:
            messages: What the environment says.
            after: The last id that was sampled. If it is the one that ends a turn, the delta begins
                behind it; a turn that ended otherwise gets that id, unsampled.

        Raises:
            ValueError: The template cannot follow with messages of these roles.
        """
        delta = self._delta(tuple(message.role for message in messages))
        contents = [
            message.content.strip() if trims else message.content
            for message, trims in zip(messages, delta.trims, strict=True)
        ]
        ids = self._encode(delta.pieces, contents)
        return ids[1:] if ids[0] == after else ids

    def prompt(
        self, conversation: Sequence[Mapping[str, object]], messages: Sequence[Message]
    ) -> tuple[str, tuple[int, ...]]:
        """Return text and ids of a first prompt: the example's conversation, then `messages`.

        Args:
            conversation: The example's own messages.
            messages: What the environment says before the first turn.
        """
        marks = [_HEARD.format(i) for i in range(len(messages))]
        marked = [{"role": m.role, "content": k} for m, k in zip(messages, marks, strict=True)]
        text = self._render([*map(dict, conversation), *marked])
        pieces = _split(text, marks)
        if pieces is None:
            roles = ", ".join(message.role for message in messages)
            raise ValueError(f"{_KEY} must show messages of role {roles} after a prompt")
        contents = [message.content for message in messages]
        whole = "".join(map("".join, zip(pieces, [*contents, ""], strict=True)))
        return whole, self._encode(pieces, contents)

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
            pieces = _split(text, marks)
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
        trims = tuple(self._trims(roles, i) for i in range(len(roles)))
        ids = self._ids("".join(found[0]))
        if not ids or ids[0] not in self._added:
            raise ValueError(
                f"{_KEY} must end a turn with a token of its own, got {found[0][0][:40]!r}, whose "
                "tokens could merge with what was sampled"
            )
        return Delta(found[0], trims)

    def _after(self, history: Conversation, roles: Sequence[str], contents: Sequence[str]) -> str:
        """Return what the template writes after a turn: messages, and the next one's beginning."""
        heard = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        text = self._render([*history, {"role": "assistant", "content": _SAID}, *heard])
        _, said, rest = text.rpartition(_SAID)
        if not said:
            raise ValueError("it leaves out what the model said")
        return rest

    def _trims(self, roles: tuple[str, ...], place: int) -> bool:
        """Tell whether the template strips a content; refuse one that writes it in another way."""
        contents = ["x"] * len(roles)
        contents[place] = f" {_PROBE} "
        text = self._after(_histories(roles)[0], roles, contents)
        if f" {_PROBE} " in text:
            return False
        if _PROBE in text:
            return True
        raise ValueError(
            f"{_KEY} must show the content of a {roles[place]} message as it is, got {text[:80]!r}"
        )

    def _check_history(self, role: str, history: History) -> None:
        """Refuse a template that shows the model's turns otherwise than they were sampled."""
        if history is History.append:
            return
        begun = _histories((role,))[0]
        heard = {"role": role, "content": "x"}
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
                f"environment.history must be append with this chat template, which {what} of a "
                f"turn once a {role} message follows, got {history.value}"
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

    def _encode(self, pieces: Sequence[str], contents: Sequence[str]) -> tuple[int, ...]:
        """Encode as one text, as templates are meant to be, unless a content forges a token."""
        whole = "".join(map("".join, zip(pieces, [*contents, ""], strict=True)))
        ids = self._ids(whole)
        own = [self._ids(piece) for piece in pieces]
        if self._added_in(ids) == [i for part in own for i in self._added_in(part)]:
            return ids
        parts = list(own[0])
        for content, piece in zip(contents, own[1:], strict=True):
            parts += [*self._plain(content), *piece]
        return tuple(parts)

    def _plain(self, text: str) -> list[int]:
        """Encode text in which no added token may appear: each such text is cut in two."""
        cuts = {0, len(text)}
        for token in self._added.values():
            start = text.find(token)
            while start >= 0:
                cuts.add(start + 1)
                start = text.find(token, start + 1)
        places = sorted(cuts)
        parts = [text[a:b] for a, b in pairwise(places)]
        ids = [i for part in parts for i in self._ids(part)]
        if self._added_in(ids):
            raise ValueError(f"the tokenizer must encode {text[:80]!r} without special tokens")
        return ids

    def _added_in(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._added]

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def _histories(roles: Sequence[str]) -> list[Conversation]:
    """Return conversations after which the model speaks, the plainest first."""
    ask = {"role": "user", "content": "question"}
    said = {"role": "assistant", "content": "answer"}
    thought = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nanswer"}
    heard = [{"role": role, "content": "reply"} for role in roles]
    return [
        [ask],
        [{"role": "system", "content": "rules"}, ask],
        [ask, said, ask],
        [ask, thought, ask],
        *([[ask, said, *heard], [ask, said, *heard, thought, *heard]] if heard else []),
    ]


def _split(text: str, marks: Sequence[str]) -> tuple[str, ...] | None:
    """Return the text around `marks`, None unless each is there once, in order."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            return None
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return (*pieces, text)
