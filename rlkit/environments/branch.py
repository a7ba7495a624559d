"""`environment.history=branch` follows chat templates that rewrite turns of the past.

Before each turn the template renders the whole conversation. Where the text goes on as the model
has read it, ids only grow, as ever. Where it does not, the model reads the new text. Its ids stand
in the row behind the turn before, and the context begins afresh with them. Training
packs each context as a sequence of its own, so the log-probs are those of what was read. The row
stays one episode: rewards, advantages, ratios and averages never learn of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlkit.environments.base import Message
from rlkit.environments.messages import message_of
from rlkit.environments.splice import Splicer
from rlkit.types import Prompt


class Shown(NamedTuple):
    """This is what a model has read before its turn."""

    own: tuple[Mapping[str, Any], ...]
    """The prompt's messages."""
    since: tuple[Mapping[str, Any], ...]
    """The turns since, and the answers to them."""
    text: str
    """All of it as the template wrote it."""


class Next(NamedTuple):
    """This is what a model reads before its next turn."""

    shown: Shown
    ids: tuple[int, ...]
    """They are appended to the row."""
    afresh: bool
    """Whether `ids` are all that the model reads, and not what follows."""


def begin(prompt: Prompt) -> Shown:
    """Return what the first turn is sampled after."""
    return Shown(tuple(prompt.messages), (), prompt.text)


def follow(
    splicer: Splicer, shown: Shown, said: str, messages: Sequence[Message], *, after: int
) -> Next:
    """Return what the model reads after its turn and the environment's answer.

    Args:
        splicer: The template and its text between turns.
        shown: What the model had read before its turn.
        said: The turn, decoded without special tokens.
        messages: The environment's answer.
        after: The last id that was sampled.

    Raises:
        ValueError: The template cannot render the conversation.
    """
    turn = {"role": "assistant", "content": splicer.opening + said}
    heard = [message_of(message) for message in messages]
    since = (*shown.since, turn, *heard)
    text, ids = splicer.conversation(shown.own, since)
    following = Shown(shown.own, since, text)
    if text == shown.text + said + splicer.text_between(messages):
        return Next(following, splicer.between(messages, after=after), afresh=False)
    return Next(following, ids, afresh=True)
