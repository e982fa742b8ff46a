"""Tool definitions: checked, and their schemas brought into a form that a grammar can hold a model to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specrouter_llm.errors import InvalidParameterError

_SUBSCHEMAS = ("items", "additionalProperties", "not", "contains")
_LISTS_OF_SCHEMAS = ("prefixItems", "anyOf", "oneOf", "allOf")
_NAMED_SCHEMAS = ("properties", "$defs", "definitions", "patternProperties")
_ELSEWHERE = ("$ref", "allOf", "anyOf", "oneOf")
_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments, an object."""


def checked_tools(definitions: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """The tools of a request. Raises InvalidParameterError for what is not in OpenAI's form, and for equal names."""
    if isinstance(definitions, (str, bytes, Mapping)) or not isinstance(definitions, Sequence):
        raise InvalidParameterError(f"tools must be a list of definitions, got {type(definitions).__name__}")
    tools = tuple(_tool(definition, f"tools[{i}]") for i, definition in enumerate(definitions))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidParameterError(f"two tools are called {twice!r}; names must differ")
    return tools


def closed(schema: Any) -> Any:
    """A copy of a JSON schema in which objects that list their properties have no others, unless it says so.

    Schemas that merge several (`allOf`) stay as they are: closed parts would exclude each other.
    """
    return schema if _merges(schema) else _closed(schema)


def _tool(definition: Any, where: str) -> Tool:
    function = definition.get("function") if isinstance(definition, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidParameterError(f'{where} must be {{"type": "function", "function": {{"name": ..., ...}}}}')
    name = function.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[^\s\"\\{}\[\]<>]+", name):
        raise InvalidParameterError(f"{where} needs a name without spaces, quotes and brackets, got {name!r}")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidParameterError(f"the parameters of tool {name!r} must be a JSON schema, got {parameters!r}")
    schema = {"type": "object", **(parameters or {})}
    if not any(key in schema for key in _ELSEWHERE):  # "no properties" would contradict those that are listed there
        schema.setdefault("properties", {})
    if schema["type"] != "object":
        raise InvalidParameterError(f"the parameters of tool {name!r} must be of type object, got {schema['type']!r}")
    return Tool(name, schema)


def _merges(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        merged = schema.get("allOf")
        if isinstance(merged, Sequence) and (len(merged) > 1 or "properties" in schema):
            return True
        return any(_merges(value) for value in schema.values())
    return isinstance(schema, (list, tuple)) and any(_merges(item) for item in schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    copy = dict(schema)
    for key, value in schema.items():
        if key in _SUBSCHEMAS:
            copy[key] = _closed(value)
        elif key in _LISTS_OF_SCHEMAS and isinstance(value, Sequence):
            copy[key] = [_closed(item) for item in value]
        elif key in _NAMED_SCHEMAS and isinstance(value, Mapping):
            copy[key] = {name: _closed(item) for name, item in value.items()}
    if "properties" in schema and not any(key in schema for key in _OPEN):
        copy["additionalProperties"] = False
    return copy
