"""Tools and tool choices in every form that LangChain takes, as the one form of the engine's chat layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_specrouter.errors import SpecRouterInvalidRequestError
from langchain_specrouter.structured import as_function, is_pydantic, json_schema

AnyTool: TypeAlias = "Mapping[str, Any] | type | Callable[..., Any] | BaseTool"
ToolChoice: TypeAlias = "str | bool | Mapping[str, Any] | None"
_NOT_IN_A_SCHEMA = frozenset({"function", "name", "toolSpec"})
"""Keys of other descriptions of a tool."""


def to_tools(tools: Sequence[AnyTool], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """The tools in OpenAI form.

    Raises SpecRouterInvalidRequestError for what is no tool, and for tools that a provider would run on its side.
    """
    return [_to_tool(tool, strict) for tool in tools]


def to_tool_choice(choice: ToolChoice, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """`None` (the default), "auto", "none", "required" or the name of one of `tools` (in OpenAI form).

    Takes those, "any", booleans (True: some tool must be called) and the dicts of OpenAI and Anthropic.
    Raises SpecRouterInvalidRequestError for a tool that is not among them, and for forcing a call without tools.
    """
    name = _plain(choice)
    if name in (None, "auto", "none"):
        return name
    names = [tool["function"]["name"] for tool in tools]
    if not names:
        raise SpecRouterInvalidRequestError(f"tool_choice={choice!r} forces a tool call, but no tools were given")
    if name not in ("required", *names):
        raise SpecRouterInvalidRequestError(
            f"tool_choice={choice!r} is not one of the tools; choose one of {', '.join(names)}, or 'any', 'auto', 'none'"
        )
    return name


def _to_tool(tool: AnyTool, strict: bool | None) -> dict[str, Any]:
    if isinstance(tool, Mapping):  # OpenAI's Responses API has what describes a function beside its type
        flat = tool.get("type") == "function" and "function" not in tool
        tool = {key: value for key, value in tool.items() if not flat or key != "type"}
    elif isinstance(tool, type) and is_pydantic(tool):
        tool = json_schema(tool)  # LangChain would inline references, and lose what refers to itself
    if isinstance(tool, Mapping) and "title" in tool and not tool.keys() & _NOT_IN_A_SCHEMA:
        tool = as_function(tool)
    try:
        converted = convert_to_openai_tool(tool, strict=strict)
    except (AttributeError, TypeError, ValueError) as error:
        raise SpecRouterInvalidRequestError(
            f"a tool is a function with a docstring, a LangChain tool, a pydantic class, a TypedDict or a named schema, "
            f"got {tool!r}: {error}"
        ) from error
    if converted.get("type") != "function" or "function" not in converted:
        raise SpecRouterInvalidRequestError(
            f"a tool of type {converted.get('type')!r} runs at a provider; a local model can only be given functions"
        )
    return converted


def _plain(choice: ToolChoice) -> str | None:
    if isinstance(choice, bool):
        return "required" if choice else None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        named = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        choice = named if isinstance(named, str) else choice.get("type")
    if choice is not None and not isinstance(choice, str):
        raise SpecRouterInvalidRequestError(f"tool_choice must be a name, a bool or a dict, got {choice!r}")
    return "required" if choice == "any" else choice
