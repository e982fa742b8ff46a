"""Agents of LlamaIndex on top of the model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.llms.llm import LLM
from llama_index.core.tools import FunctionTool

from llama_index.llms.specrouter.testing.base import LLMTests
from llama_index.llms.specrouter.testing.tools import multiply

Agent = FunctionAgent | ReActAgent


async def run(agent: Agent, message: str) -> tuple[AgentOutput, list[Any]]:
    """What an agent answers, and the events on the way. It gives up politely after a few rounds."""
    handler = agent.run(message, max_iterations=4, early_stopping_method="generate")
    events = [event async for event in handler.stream_events()]
    return await handler, events


class AgentTests(LLMTests):
    """The loop ends, tools run, deltas arrive."""

    agent_prompt = "What is 6 times 7? Use the tool."
    agent_tool = "multiply"

    @pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "whole"])
    def test_function_agent(self, llm: LLM, streaming: bool) -> None:
        """The forced first call runs its tool, and the run ends with an answer."""
        if not llm.metadata.is_function_calling_model:
            pytest.skip("not a function calling model")
        tool = FunctionTool.from_defaults(multiply)
        agent = FunctionAgent(tools=[tool], llm=llm, streaming=streaming, initial_tool_choice=self.agent_tool)
        output, events = asyncio.run(run(agent, self.agent_prompt))
        results = [event for event in events if isinstance(event, ToolCallResult)]
        assert results[0].tool_name == self.agent_tool
        assert not results[0].tool_output.is_error
        assert output.response.content is not None
        if streaming:
            pieces = [event for event in events if isinstance(event, AgentStream)]
            assert any(piece.tool_calls for piece in pieces)

    @pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "whole"])
    def test_react_agent(self, llm: LLM, streaming: bool) -> None:
        """A run ends with an answer, whether or not the model keeps to the form."""
        agent = ReActAgent(tools=[FunctionTool.from_defaults(multiply)], llm=llm, streaming=streaming)
        output, _ = asyncio.run(run(agent, self.agent_prompt))
        assert output.response.content
