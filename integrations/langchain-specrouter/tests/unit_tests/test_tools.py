"""Tools and tool choices in all of LangChain's forms."""

from __future__ import annotations

from typing import TypedDict

import pytest
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import tool
from pydantic import BaseModel, RootModel
from pydantic.v1 import BaseModel as BaseModelV1

from langchain_specrouter import ChatSpecRouter, SpecRouterInvalidRequestError
from langchain_specrouter.structured import response_format
from langchain_specrouter.tools import to_tool_choice, to_tools
from specrouter_llm import StructuredOutput

NAMED = {"type": "function", "function": {"name": "add"}}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Add(BaseModel):
    """Add two numbers."""

    a: int
    b: int


class AddV1(BaseModelV1):
    """Add two numbers."""

    a: int
    b: int


class AddDict(TypedDict):
    """Add two numbers."""

    a: int
    b: int


ANTHROPIC = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
}


FLAT = {"type": "function", "name": "add", "description": "Add two numbers.", "parameters": ANTHROPIC["input_schema"]}
"""As in OpenAI's Responses API."""


@pytest.mark.parametrize("form", [add, tool(add), Add, AddV1, AddDict, Add.model_json_schema(), ANTHROPIC, FLAT])
def test_every_form_of_a_tool(form):
    (converted,) = to_tools([form])
    assert converted["type"] == "function"
    assert converted["function"]["name"].lower().startswith("add")
    assert converted["function"]["description"] == "Add two numbers."
    assert set(converted["function"]["parameters"]["properties"]) == {"a", "b"}
    assert to_tools([converted]) == [converted]


class Numbers(RootModel[dict[str, int]]):
    """Numbers by name."""


@pytest.mark.parametrize("form", [Numbers, Numbers.model_json_schema()])
def test_a_schema_that_does_not_begin_with_properties_is_kept(form):
    """LangChain makes of it a tool without parameters."""
    (converted,) = to_tools([form])
    assert converted["function"]["description"] == "Numbers by name."
    assert converted["function"]["parameters"]["additionalProperties"] == {"type": "integer"}


def test_a_tool_that_runs_at_a_provider_is_refused():
    with pytest.raises(SpecRouterInvalidRequestError, match="'web_search_preview' runs at a provider"):
        to_tools([{"type": "web_search_preview"}])


@pytest.mark.parametrize("wrong", [3, {"no": "name"}, {"type": "function"}, "add"])
def test_what_is_no_tool_is_refused(wrong):
    with pytest.raises(SpecRouterInvalidRequestError, match="a tool is a function"):
        to_tools([wrong])


@pytest.mark.parametrize(
    ("choice", "plain"),
    [
        (None, None),
        (False, None),
        ("auto", "auto"),
        ({"type": "auto"}, "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ({"type": "any"}, "required"),
        ("add", "add"),
        (NAMED, "add"),
        ({"type": "tool", "name": "add"}, "add"),
    ],
)
def test_every_form_of_a_choice(choice, plain):
    assert to_tool_choice(choice, to_tools([add])) == plain
    bound = ChatSpecRouter(model="demo").bind_tools([add], tool_choice=choice)
    assert isinstance(bound, RunnableBinding)
    assert bound.kwargs.get("tool_choice") == plain


@pytest.mark.parametrize("choice", ["multiply", {"type": "function", "function": {"name": "multiply"}}])
def test_an_unknown_tool_is_an_error_before_anything_runs(choice):
    with pytest.raises(SpecRouterInvalidRequestError, match="not one of the tools; choose one of add"):
        ChatSpecRouter(model="demo").bind_tools([add], tool_choice=choice)


@pytest.mark.parametrize("choice", ["any", True, "add"])
def test_forcing_without_tools_is_an_error(choice):
    with pytest.raises(SpecRouterInvalidRequestError, match="no tools were given"):
        ChatSpecRouter(model="demo").bind_tools([], tool_choice=choice)


def test_a_choice_of_the_wrong_type_is_an_error():
    with pytest.raises(SpecRouterInvalidRequestError, match="must be a name, a bool or a dict"):
        to_tool_choice(3, to_tools([add]))


@pytest.mark.parametrize("form", [Add, AddV1, AddDict, Add.model_json_schema(), response_format(Add)])
def test_a_response_format_in_every_form_of_a_schema(form):
    """The schema is bound, not the class: LangChain's cache tells schemas apart, but not classes of one name."""
    bound = ChatSpecRouter(model="demo").bind_tools([], response_format=form)
    assert bound.kwargs["response_format"]["type"] == "json_schema"
    assert bound.kwargs["response_format"]["json_schema"]["schema"]["required"] == ["a", "b"]


@pytest.mark.parametrize(
    "form", [{"type": "json_object"}, {"type": "text"}, StructuredOutput(choice=("yes", "no")), None]
)
def test_a_response_format_that_is_no_schema_is_left_alone(form):
    assert ChatSpecRouter(model="demo").bind_tools([add], response_format=form).kwargs["response_format"] == form


def test_what_is_no_response_format_is_refused():
    with pytest.raises(SpecRouterInvalidRequestError, match="a schema is a pydantic class"):
        ChatSpecRouter(model="demo").bind_tools([], response_format=3)


def test_strict_and_further_arguments_are_bound():
    bound = ChatSpecRouter(model="demo").bind_tools([add], strict=True, parallel_tool_calls=False)
    assert bound.kwargs["tools"][0]["function"]["strict"] is True
    assert bound.kwargs["tools"][0]["function"]["parameters"]["additionalProperties"] is False
    assert bound.kwargs["parallel_tool_calls"] is False
