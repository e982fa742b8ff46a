"""`AnswerTool`: a schema as the one tool that a model has to call, so that the call is its answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import Generation

from langchain_specrouter.structured import Schema, is_pydantic, json_schema

_VALUE = "value"
"""The one argument of a tool whose schema is none of an object with properties."""


class AnswerParser(JsonOutputKeyToolsParser):
    """Parses a message that calls the tool."""

    first_tool_only: bool = True
    read: Callable[[dict[str, Any]], Any]
    """The value that the arguments say."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        arguments = super().parse_result(result, partial=partial)
        try:
            return None if arguments is None else self.read(arguments)
        except (KeyError, ValueError):  # pydantic's errors are ValueErrors
            if partial:
                return None
            raise


@dataclass(frozen=True, slots=True)
class AnswerTool:
    """The tool, and how its calls are read."""

    schema: Schema
    plain: Mapping[str, Any]
    """The schema as JSON schema."""

    @classmethod
    def of(cls, schema: Schema) -> AnswerTool:
        """Raises SpecRouterInvalidRequestError for what is no schema."""
        return cls(schema, json_schema(schema))

    @property
    def name(self) -> str:
        """The schema's title as far as a name may have its letters: "Box_int" of `Box[int]`."""
        return re.sub(r"[^\w-]+", "_", str(self.plain.get("title", ""))).strip("_") or "answer"

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as a named schema."""
        return {**(self.plain if self._is_object else _wrapped(self.plain)), "title": self.name}

    @property
    def parser(self) -> AnswerParser:
        return AnswerParser(key_name=self.name, read=self._read)

    @property
    def _is_object(self) -> bool:
        """Whether its properties can be the tool's arguments."""
        return self.plain.get("type", "object") == "object" and "properties" in self.plain

    def _read(self, arguments: dict[str, Any]) -> Any:
        value = arguments if self._is_object else arguments[_VALUE]
        if not is_pydantic(self.schema):
            return value
        schema: Any = self.schema  # a class of pydantic's, of its first version perhaps
        validate = getattr(schema, "model_validate", None) or schema.parse_obj
        return validate(value)


def _wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object whose only argument follows `schema`."""
    about = {"description": schema["description"]} if "description" in schema else {}
    inner = {key: value for key, value in schema.items() if key not in ("title", "description", "$id")}
    properties = {_VALUE: _moved(inner, f"#/properties/{_VALUE}")}
    return {**about, "type": "object", "properties": properties, "required": [_VALUE], "additionalProperties": False}


def _moved(node: Any, place: str) -> Any:
    """A copy of a schema that lies at `place`: what it refers to in itself is there now."""
    if isinstance(node, list):
        return [_moved(item, place) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {
        key: place + value[1:] if key == "$ref" and str(value).startswith("#") else _moved(value, place)
        for key, value in node.items()
    }
