"""This module turns a row's messages into a prompt's text, and nothing is lost on the way.

A template is a program that picks what it likes from a message. Tool calls, names and even the text
of a question can be left out without an error. What does not reach the prompt is therefore refused,
with the row, the message and the key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlkit.tasks.base import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
_MARK = "rlkit-content-mark"

Conversation = list[dict[str, Any]]
Apply = Callable[[Conversation], str]
"""A conversation to its text under the chat template."""


def read_messages(
    value: Sequence[object], where: str, *, ignored: Collection[str]
) -> tuple[Message, ...]:
    """Return the messages of a row's list, in TRL's and OpenAI's shape.

    Content is text, a list of text parts, or null beside `tool_calls`. Null keys are left out, as
    Parquet writes every key into every message.

    Args:
        value: The list of messages.
        where: Row and column, for errors.
        ignored: Keys that are left out on purpose (`task.ignore_keys`).

    Raises:
        ValueError: A message has no known role or no text; row and message are named.
    """
    return tuple(_message(item, f"{where}: message {i}", ignored) for i, item in enumerate(value))


def render_conversation(
    messages: Sequence[Message], template: str, apply: Apply, *, where: str
) -> str:
    """Return the text of a conversation, after a look at whether all of it is there.

    A template that loops over content parts gets parts. A `developer` turn is called `system` for
    a template that does not know the role.

    Args:
        messages: The turns.
        template: The template's text.
        apply: Renders a conversation with it.
        where: The row, for errors.

    Returns:
        The text, ready to be tokenised.

    Raises:
        ValueError: The template fails, or leaves out a message's content or one of its keys.
    """
    plain = [_as_dict(message, template) for message in messages]
    text = _apply(apply, plain, where)
    lost = _lost_contents(plain, text, apply)
    conversation = plain
    if lost:
        conversation = [
            {**m, "content": [{"type": "text", "text": m["content"]}]} if m["content"] else m
            for m in plain
        ]
        try:
            text = apply(conversation)
        except Exception:  # it takes no parts either, so that the first finding stands
            text = ""
        if any(m["content"].strip() not in text for m in plain):
            raise ValueError(
                f"{where}: message {lost[0]}: content does not reach the prompt, because the chat "
                "template leaves it out"
            )
    for i, message in enumerate(conversation):
        for key in message.keys() - {"role", "content"}:
            without = {k: v for k, v in message.items() if k != key}
            if _same(apply, [*conversation[:i], without, *conversation[i + 1 :]], text):
                raise ValueError(
                    f"{where}: message {i}: {key} does not reach the prompt, because the chat "
                    f"template leaves it out (task.ignore_keys=[{key}] accepts that)"
                )
    return text


def _message(item: object, where: str, ignored: Collection[str]) -> Message:
    if not isinstance(item, Mapping) or item.get("role") not in ROLES:
        raise ValueError(
            f"{where} must hold a role of {', '.join(ROLES)} and content, got {item!r:.60}"
        )
    more = {
        str(key): _without_null(value)
        for key, value in item.items()
        if key not in ("role", "content", *ignored) and value is not None
    }
    content = item.get("content")
    if content is None and more.get("tool_calls"):
        content = ""
    return Message(
        str(item["role"]),
        _text(content, where),
        json.dumps(more, ensure_ascii=False) if more else "",
    )


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not content:
        raise ValueError(f"{where}: content must be text or a list of parts, got {content!r:.60}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind != "text" or not isinstance(text, str):
            raise ValueError(f"{where}: content must hold text parts only, got {part!r:.60}")
        texts.append(text)
    return "".join(texts)


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_null(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_null(item) for item in value]
    return value


def _as_dict(message: Message, template: str) -> dict[str, Any]:
    role = message.role
    if role == "developer" and "developer" not in template:
        role = "system"
    more = json.loads(message.more) if message.more else {}
    return {"role": role, "content": message.content, **more}


def _lost_contents(conversation: Conversation, text: str, apply: Apply) -> list[int]:
    """Return the messages whose content is not in `text`, and would not be whatever it was."""
    lost = []
    for i, message in enumerate(conversation):
        if message["content"].strip() in text:
            continue
        marked = {**message, "content": _MARK}
        try:
            # A template may shorten a content on purpose: Qwen3 drops the reasoning of old turns.
            found = _MARK in apply([*conversation[:i], marked, *conversation[i + 1 :]])
        except Exception:  # it cannot do without this content, so it does read it
            found = True
        if not found:
            lost.append(i)
    return lost


def _same(apply: Apply, conversation: Conversation, text: str) -> bool:
    try:
        return apply(conversation) == text
    except Exception:  # without the key it fails, so it does read it
        return False


def _apply(apply: Apply, conversation: Conversation, where: str) -> str:
    try:
        return apply(conversation)
    except Exception as error:  # a template is a program of the model's author
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{where} must render with the chat template, got {reason}") from error
