"""Conformance tests for any LlamaIndex LLM: subclass `LLMConformanceTests` in a test module and say how to make the model.

Needs pytest. No plugin for async tests is needed.
"""

from __future__ import annotations

from llama_index.llms.specrouter.testing.agents import AgentTests
from llama_index.llms.specrouter.testing.endpoints import EndpointTests
from llama_index.llms.specrouter.testing.structured import StructuredTests
from llama_index.llms.specrouter.testing.tools import ToolTests

__all__ = ["AgentTests", "EndpointTests", "LLMConformanceTests", "StructuredTests", "ToolTests"]


class LLMConformanceTests(EndpointTests, ToolTests, StructuredTests, AgentTests):
    """What users of LlamaIndex rely on, for the eight endpoints, tools, structured prediction and agents.

    A subclass gives `make_llm`; the model should answer the same prompt with the same text (temperature 0). Tests that
    need skill (calling a tool without being forced to) are few and can be marked in the subclass:

        class TestMyLLM(LLMConformanceTests):
            def make_llm(self):
                return MyLLM(temperature=0)
    """
