"""Tools: forced, named, one at a time, none at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.tools import FunctionTool

from llama_index.llms.specrouter.testing.base import LLMTests

ENDPOINTS = ("chat_with_tools", "achat_with_tools", "stream_chat_with_tools", "astream_chat_with_tools")


def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


def now() -> str:
    """The time."""
    return "noon"


MULTIPLY = FunctionTool.from_defaults(multiply)
NOW = FunctionTool.from_defaults(now)


def send(llm: LLM, endpoint: str, tools: list[FunctionTool], message: str, **kwargs: Any) -> list[ChatResponse]:
    """All responses of a chat with tools, one if it does not stream."""
    method = getattr(llm, endpoint)
    if not endpoint.startswith("a"):
        outcome = method(tools, user_msg=message, **kwargs)
        return list(outcome) if "stream" in endpoint else [outcome]

    async def asend() -> list[ChatResponse]:
        outcome = await method(tools, user_msg=message, **kwargs)
        return [response async for response in outcome] if "stream" in endpoint else [outcome]

    return asyncio.run(asend())


class ToolTests(LLMTests):
    """Tools of a function calling model."""

    tool_prompt = "What is 6 times 7? Use the tool."

    @pytest.fixture
    def caller(self, llm: LLM) -> FunctionCallingLLM:
        if not llm.metadata.is_function_calling_model:
            pytest.skip("not a function calling model")
        assert isinstance(llm, FunctionCallingLLM)
        return llm

    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    def test_required_tool(self, caller: FunctionCallingLLM, endpoint: str) -> None:
        """`tool_required` gives a call of one of the tools with arguments that fit it."""
        last = send(caller, endpoint, [MULTIPLY, NOW], self.tool_prompt, tool_required=True)[-1]
        _assert_fit(caller.get_tool_calls_from_response(last))
        assert last.message.additional_kwargs["tool_calls"]

    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    @pytest.mark.parametrize("tool", [MULTIPLY, NOW], ids=["arguments", "no_arguments"])
    def test_named_tool(self, caller: FunctionCallingLLM, endpoint: str, tool: FunctionTool) -> None:
        """`tool_choice` with a name gives a call of that tool."""
        name = str(tool.metadata.name)
        last = send(caller, endpoint, [MULTIPLY, NOW], self.tool_prompt, tool_choice=name)[-1]
        selections = caller.get_tool_calls_from_response(last)
        _assert_fit(selections)
        assert {selection.tool_name for selection in selections} == {name}

    def test_one_call_at_a_time(self, caller: FunctionCallingLLM) -> None:
        """Without parallel calls there is one."""
        response = caller.chat_with_tools([MULTIPLY, NOW], user_msg=self.tool_prompt, tool_required=True)
        assert len(caller.get_tool_calls_from_response(response)) == 1

    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    def test_no_tools(self, caller: FunctionCallingLLM, endpoint: str) -> None:
        """An empty list is a plain chat."""
        last = send(caller, endpoint, [], self.prompt)[-1]
        assert last.message.content
        assert caller.get_tool_calls_from_response(last, error_on_no_tool_call=False) == []
        with pytest.raises(ValueError, match="tool"):
            caller.get_tool_calls_from_response(last, error_on_no_tool_call=True)

    def test_forbidden_tools(self, caller: FunctionCallingLLM) -> None:
        """`tool_choice="none"` gives an answer without calls."""
        response = caller.chat_with_tools([MULTIPLY], user_msg=self.tool_prompt, tool_choice="none")
        assert caller.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []

    def test_unknown_tool(self, caller: FunctionCallingLLM) -> None:
        """A choice that is not among the tools is refused."""
        with pytest.raises(ValueError, match="divide"):
            caller.chat_with_tools([MULTIPLY], user_msg=self.tool_prompt, tool_choice="divide")

    def test_calls_of_a_stream(self, caller: FunctionCallingLLM) -> None:
        """The calls of every response can be read; the last has all of them, with the ids of the first."""
        responses = send(caller, "stream_chat_with_tools", [MULTIPLY], self.tool_prompt, tool_required=True)
        seen = [caller.get_tool_calls_from_response(r, error_on_no_tool_call=False) for r in responses]
        ids = [selections[0].tool_id for selections in seen if selections]
        assert len(set(ids)) == 1
        _assert_fit(seen[-1])

    def test_predict_and_call(self, caller: FunctionCallingLLM) -> None:
        """The tool runs with what the model gave it."""
        answer = caller.predict_and_call([MULTIPLY], user_msg=self.tool_prompt, tool_required=True)
        assert len(answer.sources) == 1
        assert isinstance(answer.sources[0].raw_output, int)

    def test_history_with_calls(self, caller: FunctionCallingLLM) -> None:
        """A call and its result go back to the model."""
        asked = ChatMessage(role="user", content=self.tool_prompt)
        response = caller.chat_with_tools([MULTIPLY], chat_history=[asked], tool_required=True)
        selection = caller.get_tool_calls_from_response(response)[0]
        result = ChatMessage(role="tool", content="42", additional_kwargs={"tool_call_id": selection.tool_id})
        answer = caller.chat_with_tools([MULTIPLY], chat_history=[asked, response.message, result], tool_choice="none")
        assert answer.message.content


def _assert_fit(selections: list[ToolSelection]) -> None:
    assert selections
    for selection in selections:
        assert selection.tool_id
        expected = {"multiply": {"a": int, "b": int}, "now": {}}[selection.tool_name]
        assert {name: type(value) for name, value in selection.tool_kwargs.items()} == expected
