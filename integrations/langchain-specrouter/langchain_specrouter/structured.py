"""Structured output: from a schema in any of LangChain's forms to a response format and a parser."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Literal, TypeAlias

from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_specrouter.errors import SpecRouterInvalidRequestError
from specrouter_llm import StructuredOutput

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]
METHODS = ("json_schema", "function_calling", "json_mode")
Schema: TypeAlias = "dict[str, Any] | type"
_ABOUT = frozenset({"$comment", "$defs", "$id", "$ref", "$schema", "definitions", "description", "title"})
"""Keywords beside a reference that do not narrow it."""


def is_pydantic(schema: Schema | None) -> bool:
    """Whether answers are to be instances of a pydantic class (v1 or v2)."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def response_format(schema: Schema | None) -> dict[str, Any]:
    """The schema in OpenAI's form; any JSON object if there is none."""
    if schema is None:
        return {"type": "json_object"}
    plain = json_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": str(plain.get("title", "answer")), "schema": plain}}


def to_response_format(given: Any) -> Any:
    """`response_format` of a schema in any form; what the engine's chat layer takes is left as it is.

    Raises SpecRouterInvalidRequestError for what is neither.
    """
    kind = given.get("type") if isinstance(given, Mapping) else None
    is_one = given is None or isinstance(given, StructuredOutput) or kind in ("text", "json_object", "json_schema")
    return given if is_one else response_format(given)


def json_schema(schema: Schema) -> dict[str, Any]:
    """The plain JSON schema of a pydantic class, a TypedDict, a JSON schema or one of OpenAI's wrappers around it.

    One that only refers to a definition, as pydantic has it for recursive classes, is that definition.

    Raises SpecRouterInvalidRequestError for anything else.
    """
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _of_class(schema)
    if isinstance(schema, Mapping):
        return _resolved(_unwrapped(schema))
    try:
        return convert_to_json_schema(schema)
    except (TypeError, ValueError) as error:
        raise SpecRouterInvalidRequestError(
            f"a schema is a pydantic class, a TypedDict or a JSON schema, got {schema!r}"
        ) from error


def as_function(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema as the description of a function: LangChain loses what does not begin with properties."""
    about = {"name": schema.get("title") or "answer", "description": schema.get("description")}
    parameters = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {**{key: text for key, text in about.items() if text}, "parameters": parameters}


def text_parser(schema: Schema | None) -> BaseOutputParser[Any]:
    """Parses an answer whose text is JSON."""
    # What is_pydantic says of the schema, mypy does not know.
    return PydanticOutputParser(pydantic_object=schema) if is_pydantic(schema) else JsonOutputParser()  # type: ignore[arg-type]


def with_raw(model: Runnable[Any, AIMessage], parser: BaseOutputParser[Any]) -> Runnable[Any, dict[str, Any]]:
    """{"raw": message, "parsed": value or None, "parsing_error": error or None}; parsing does not raise."""
    parse = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parse.with_fallbacks([failed], exception_key="parsing_error")


def _of_class(schema: Any) -> dict[str, Any]:
    made = schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema.schema()
    return {"title": schema.__name__, **_resolved(made)}


def _resolved(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, a reference at its root resolved if nothing beside it says more."""
    definitions, _, name = str(schema.get("$ref", "")).removeprefix("#/").partition("/")
    named = schema.get(definitions)
    found = named.get(name) if isinstance(named, Mapping) else None
    if not isinstance(found, Mapping) or not schema.keys() <= _ABOUT:
        return dict(schema)
    return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}


def _unwrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("json_schema", "function"):  # {"type": key, key: {...}}
        if schema.get("type") == key and isinstance(schema.get(key), Mapping):
            return _unwrapped(schema[key])
    for key in ("schema", "parameters", "input_schema"):  # {"name": ..., key: {...}}
        if "name" in schema and isinstance(schema.get(key), Mapping):
            about = {"title": schema["name"], "description": schema.get("description")}
            return {**{name: text for name, text in about.items() if text}, **schema[key]}
    return dict(schema)
