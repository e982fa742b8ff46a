"""JSON schemas as the backend is to read them: what it would not keep, or needlessly refuses, is written differently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from specrouter_llm.structured.bounds import narrowed, within_reach
from specrouter_llm.structured.formats import spelled

_NO_SCHEMAS = frozenset({"const", "default", "enum", "examples", "not"})
"""Keywords that hold values; and of what must not be valid, less must not be left."""
_BY_NAME = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords that hold schemas by names, which are no keywords."""


def kept_by_backend(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A schema whose values are all valid under the given one, called `name` in messages, also after parsing.

    Raises:
        UnsupportedSchemaError: nothing is left between two bounds, or a bound is out of reach.
    """
    # The backend multiplies steps that meet in one number, and overflows without a word.
    return dict(_walked(dict(schema), name, steps='"multipleOf"' not in json.dumps(schema)))


def _walked(node: Any, name: str, *, steps: bool) -> Any:
    """A schema, a list of some, or something else, with everything inside."""
    if isinstance(node, list):
        return [_walked(each, name, steps=steps) for each in node]
    if not isinstance(node, dict):
        return node
    walked = {}
    for key, value in _rewritten(node, name, steps=steps).items():
        if key in _BY_NAME and isinstance(value, dict):
            walked[key] = {each: _walked(inner, name, steps=steps) for each, inner in value.items()}
        else:
            walked[key] = value if key in _NO_SCHEMAS else _walked(value, name, steps=steps)
    return walked


def _rewritten(node: dict[str, Any], name: str, *, steps: bool) -> dict[str, Any]:
    """One schema without what is inside it."""
    if node.get("uniqueItems") is False:  # says nothing, and the backend does not know the keyword
        node = {key: value for key, value in node.items() if key != "uniqueItems"}
    return narrowed(within_reach(spelled(node), name), name, steps=steps)
