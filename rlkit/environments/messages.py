"""Messages in the form that chat templates take, and the forms in which templates write them."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

from rlkit.environments.base import Message

_CALL_ID = "rlkit0000"
"""Mistral's templates ask for the id of a call, of nine letters and digits."""


class Written(StrEnum):
    """This is how a template writes the content of a message."""

    plain = "plain"
    stripped = "stripped"
    """Without white space around it."""
    json = "json"
    """It stands between quotes, as JSON writes it: Llama 3.1 and 3.2 do so with a tool's words."""

    def of(self, content: str) -> str:
        """Return what stands in the conversation for `content`."""
        if self is Written.stripped:
            return content.strip()
        return _as_json(content) if self is Written.json else content


def message_of(message: Message) -> dict[str, Any]:
    """Return a message as templates take it."""
    more = {"tool_call_id": _CALL_ID} if message.role == "tool" else {}
    return {"role": message.role, "content": message.content, **more}


def _as_json(content: str) -> str:
    """Return the inside of a text of JSON, as the filter `tojson` of transformers writes it."""
    return json.dumps(content, ensure_ascii=False)[1:-1]
