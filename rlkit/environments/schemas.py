"""Plain Python functions become tools: their types and docstrings are the JSON schema.

The worker of an environment imports neither torch nor transformers, so this is not transformers'
`get_json_schema`; the result has the same form, which chat templates know.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_PLAIN: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ENTRY = re.compile(r"^\s+(\w+)(?:\s*\([^)]*\))?:\s*(.+?)\s*$")


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a function with annotated parameters and a docstring.

    Raises ValueError, naming the parameter, for a type that JSON does not have.
    """
    name = getattr(function, "__name__", "")
    text = inspect.getdoc(function) or ""
    if not text:
        raise ValueError(f"tool {name} must have a docstring that says what it does, got none")
    hints = typing.get_type_hints(function)
    described = _descriptions(text)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"parameter {parameter.name} of tool {name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{where} must have a name of its own, got {parameter}")
        if parameter.name not in hints:
            raise ValueError(f"{where} must have a type, got none")
        properties[parameter.name] = _type_of(hints[parameter.name], where)
        if parameter.name in described:
            properties[parameter.name]["description"] = described[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": text.split("\n\n")[0].replace("\n", " "),
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }


def problem_with(arguments: object, schema: Mapping[str, Any]) -> str:
    """Say what is wrong with a call's arguments, for the model; empty = nothing."""
    parameters = schema["function"]["parameters"]
    properties = parameters["properties"]
    if not isinstance(arguments, dict):
        return "arguments must be an object"
    for name in arguments:
        if name not in properties:
            known = ", ".join(properties) or "none"
            return f"unknown argument {name}; known are {known}"
    for name in parameters["required"]:
        if name not in arguments:
            return f"argument {name} is missing"
    for name, value in arguments.items():
        if not _fits(value, properties[name]):
            wanted = properties[name].get("enum") or properties[name].get("type", "another type")
            return f"argument {name} must be {wanted}"
    return ""


def _type_of(hint: Any, where: str) -> dict[str, Any]:
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal and all(isinstance(part, str) for part in parts):
        return {"type": "string", "enum": list(parts)}
    if origin in (typing.Union, types.UnionType) and len(parts) == 2 and type(None) in parts:
        (inner,) = (part for part in parts if part is not type(None))
        return {**_type_of(inner, where), "nullable": True}
    if hint is list or origin is list:
        return {"type": "array", **({"items": _type_of(parts[0], where)} if parts else {})}
    if hint is dict or origin is dict:
        return {"type": "object"}
    raise ValueError(
        f"{where} must be str, int, float, bool, list, dict, Literal or one of them or None, got "
        f"{hint}"
    )


def _fits(value: object, schema: Mapping[str, Any]) -> bool:
    if value is None:
        return bool(schema.get("nullable"))
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if isinstance(value, bool):
        return bool(kind == "boolean")
    python: Mapping[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "array": (list,),
        "object": (dict,),
    }
    if kind == "array" and isinstance(value, list) and "items" in schema:
        return all(_fits(item, schema["items"]) for item in value)
    return isinstance(value, python[kind])


def _descriptions(text: str) -> dict[str, str]:
    """Return the entries of a docstring's section Args."""
    found: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        if line.strip() == "Args:":
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            break
        elif inside and (match := _ENTRY.match(line)):
            found[match[1]] = match[2]
    return found
