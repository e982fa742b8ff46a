"""Why a JSON schema is refused, and what to do: the backend's messages in words for who wrote the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from specrouter_llm.errors import InvalidParameterError, UnsupportedSchemaError

_UNSUPPORTED = re.compile(r"unimplemented|unknown format|not supported", re.IGNORECASE)


def refused_schema(name: str, message: str) -> InvalidParameterError:
    """The error about a schema, called `name` in it, that the backend refuses with this message."""
    for known, reason in _REASONS:
        if found := known.search(message):
            return UnsupportedSchemaError(f"{name}: this cannot be enforced: {reason(found)}")
    if _UNSUPPORTED.search(message):
        return UnsupportedSchemaError(f"{name}: this cannot be enforced: {message}")
    return InvalidParameterError(f"{name} cannot be compiled: {message}")


def _keywords(found: re.Match[str]) -> str:
    names = sorted(json.loads(found[1]))
    way_out = (
        "use a list in place of a set, and drop what is there twice afterwards"
        if "uniqueItems" in names
        else "leave it out, and check the answer for it"
    )
    return f"{', '.join(names)}; {way_out}"


def _format(found: re.Match[str]) -> str:
    return f"format {found[1]!r}; leave it out and check the answer for it, or describe the text with a pattern"


def _alternatives(found: re.Match[str]) -> str:
    return (
        "oneOf, where a value may fit two alternatives; use anyOf, or alternatives that differ in their type or in a "
        "required property with a const of its own"
    )


def _pattern(found: re.Match[str]) -> str:
    return (
        f"the pattern {found[1]}, which looks ahead, behind or back; write it without, or leave it out and check the "
        "answer for it"
    )


_REASONS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"Unimplemented keys: (\[.*?\])"), _keywords),
    (re.compile(r"Unknown format: (.*)"), _format),
    (re.compile(r"coerce_one_of"), _alternatives),
    (re.compile(r"regex parse error:\s+(.*?)\n.*(?:look-around|backreferences)", re.DOTALL), _pattern),
)
