"""Calls of tools are found in what a model said, in the formats of common families.

    hermes     <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>      Qwen, Hermes, SmolLM
    llama3     {"name": "f", "parameters": {"a": 1}}                            Llama 3.1 and later
    mistral    [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]              Mistral

The text is decoded without special tokens, so a family's own marks may be missing from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LLAMA = re.compile(r"\A\s*(?:<\|python_tag\|>)?\s*(\{.*\})\s*(?:<\|eom_id\|>)?\s*\Z", re.DOTALL)
_MISTRAL = re.compile(r"\A\s*(?:\[TOOL_CALLS\])?\s*(\[\s*\{.*\}\s*\])\s*\Z", re.DOTALL)


class CallFormat(StrEnum):
    """The way in which a family of models writes a call."""

    hermes = "hermes"
    llama3 = "llama3"
    mistral = "mistral"


class Call(NamedTuple):
    """A call of a tool, or what was meant as one."""

    name: str
    arguments: Any
    """A dict, unless the model wrote something else."""
    problem: str = ""
    """One line for the model when the call cannot be read; empty = it can."""


def calls_in(text: str, form: CallFormat) -> list[Call]:
    """Return the calls of a turn in order; an empty list when it has none."""
    return _PARSERS[form](text)


def _hermes(text: str) -> list[Call]:
    return [_call(body) for body in _HERMES.findall(text)]


def _llama3(text: str) -> list[Call]:
    match = _LLAMA.match(text)
    if match is None:
        return []
    bodies = re.split(r"\}\s*;\s*\{", match[1])
    if len(bodies) > 1:  # several calls, separated by semicolons
        bodies = [
            f"{'{' if i else ''}{b}{'}' if i < len(bodies) - 1 else ''}"
            for i, b in enumerate(bodies)
        ]
    return [_call(body) for body in bodies]


def _mistral(text: str) -> list[Call]:
    match = _MISTRAL.match(text)
    if match is None:
        return []
    try:
        items = json.loads(match[1])
    except ValueError as error:
        return [Call("", None, f"the call is no JSON: {error}")]
    return [_of(item) for item in items]


_PARSERS: Mapping[CallFormat, Callable[[str], list[Call]]] = {
    CallFormat.hermes: _hermes,
    CallFormat.llama3: _llama3,
    CallFormat.mistral: _mistral,
}


def _call(body: str) -> Call:
    try:
        return _of(json.loads(body))
    except (ValueError, RecursionError) as error:
        return Call("", None, f"the call is no JSON: {error}")


def _of(item: object) -> Call:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return Call("", None, "the call must be an object with a name")
    arguments = item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):  # some models write them as text
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            return Call(item["name"], None, f"the arguments are no JSON: {error}")
    return Call(item["name"], arguments)
