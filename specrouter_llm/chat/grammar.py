"""Grammars of answers in llguidance's Lark dialect: forced tool calls, a final answer of a given form, or either.

The markers, keys and layouts are those of `tool_formats`, which the parser reads too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from specrouter_llm.chat.tool_formats import ToolFormat
from specrouter_llm.chat.tools import Tool, closed
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.backend import check_schema, literal
from specrouter_llm.structured.schema import kept_by_backend

Rules = dict[str, str]


def call_rules(tool_format: ToolFormat, tools: Sequence[Tool], token_ids: Mapping[str, int], *, many: bool) -> Rules:
    """`calls`: one call of one of the tools, or several if `many`, and nothing else; `begun`: all of it behind the begin
    marker of the first.

    `token_ids` of the vocabulary's added tokens: a marker among them is one token, else it is text.
    """

    def marker(text: str) -> list[str]:
        if not text:
            return []
        return [f"<[{token_ids[text]}]>" if text in token_ids else literal(text)]

    form = tool_format
    begin = [] if form.begin_is_optional else marker(form.begin)
    gap = [literal(form.gap)] if form.gap else []
    separator = [literal(form.separator)] if form.separator else []
    more = f" ({' '.join([*separator, 'call'])})*" if many and form.layout != "single" else ""
    objects = {f"object_{i}": _object(form, tool, marker(form.name_end)) for i, tool in enumerate(tools)}
    rules = {"object": " | ".join(objects), **objects}
    if form.layout == "list":
        return {"calls": " ".join([*begin, "begun"]), "begun": f'" "? "[" call{more} "]"', "call": "object", **rules}
    inner = " ".join([*gap, "object", *gap, *marker(form.end)])
    return {"calls": f"call{more}", "begun": f"{inner}{more}", "call": " ".join([*begin, inner]), **rules}


def enforceable(tool: Tool) -> Tool:
    """The tool, its arguments any JSON object if its schema cannot be enforced."""
    try:
        check_tool(tool)
    except InvalidParameterError:
        return Tool(tool.name, {"type": "object"})
    return tool


def check_tool(tool: Tool) -> None:
    """Raises UnsupportedSchemaError, or InvalidParameterError, if a model cannot be held to a tool's parameters."""
    check_schema(closed(tool.parameters), f"the parameters of tool {tool.name!r}")


def _object(form: ToolFormat, tool: Tool, name_end: list[str]) -> str:
    # The spelling of Python's json.dumps, which is what templates print and models are trained on.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    schema = kept_by_backend(closed(tool.parameters), f"the parameters of tool {tool.name!r}")
    arguments = f"%json {json.dumps({'x-guidance': style, **schema})}"
    if name_end:
        return " ".join([literal(tool.name), *name_end, arguments])
    head = f'{{"{form.name_key}": {json.dumps(tool.name, ensure_ascii=False)}, "{form.arguments_key}": '
    return f'{literal(head)} {arguments} "}}"'


def response_format(given: StructuredOutput | Mapping[str, Any] | None) -> StructuredOutput | None:
    """A response format in any of its forms. Raises InvalidParameterError."""
    if given is None or isinstance(given, StructuredOutput):
        return given
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutput(json_schema={"type": "object"})
    if kind == "json_schema":
        inner = given.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if isinstance(schema, Mapping):
            return StructuredOutput(json_schema=closed(schema))
    raise InvalidParameterError(
        'response_format must be StructuredOutput, {"type": "json_object"} or '
        f'{{"type": "json_schema", "json_schema": {{"name": ..., "schema": {{...}}}}}}, got {given!r}'
    )


def answer_form(given: StructuredOutput | Mapping[str, Any] | None, params: SamplingParams) -> StructuredOutput | None:
    """What a response format or the parameters want. Raises InvalidParameterError if both want something."""
    form = response_format(given)
    if form is not None and params.structured is not None:
        raise InvalidParameterError("give response_format or params.structured, not both")
    return form or params.structured


def final_answer(form: StructuredOutput) -> Rules:
    """`final`: an answer of that form. Raises InvalidParameterError for a Lark grammar, whose rules cannot be mixed in."""
    if form.after is not None:
        raise InvalidParameterError("a response_format with `after` cannot be combined with tools")
    if form.json_schema is not None:
        style = {"whitespace_flexible": form.whitespace}
        schema = kept_by_backend(form.json_schema, "the response_format")
        return {"final": f"%json {json.dumps({'x-guidance': style, **schema})}"}
    if form.regex is not None:
        return {"final": _slashed(form.regex)}
    if form.choice is not None:
        return {"final": " | ".join(literal(text) for text in form.choice)}
    raise InvalidParameterError(
        "a Lark grammar as response_format cannot be combined with tools: write both into the grammar, or use a JSON schema"
    )


def grammar(rules: Rules) -> str:
    """The rules as the text of one grammar."""
    return "\n".join(f"{name}: {body}" for name, body in rules.items())


def _slashed(regex: str) -> str:
    """A regular expression as a literal of the grammar: slashes and line ends that are not escaped yet are."""
    return "/" + re.sub(r"\\.|/|\n", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), regex, flags=re.DOTALL) + "/"
