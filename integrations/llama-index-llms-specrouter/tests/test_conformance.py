"""The conformance suite, over a scripted model (skill is given) and over the embedded family (a real, small model)."""

from __future__ import annotations

import re

import pytest
from llama_index.core.llms.llm import LLM

from llama_index.llms.specrouter import SpecRouterLLM
from llama_index.llms.specrouter.testing import LLMConformanceTests
from llama_index.llms.specrouter.testing.base import Work


def competent(prompt: str) -> str:
    """What a model says that understands the prompts of the suite."""
    if "Invent an album" in prompt or "An album about" in prompt:
        return '{"title":"Night Train","year":1962,"mood":"calm"}'
    if "Count to one thousand" in prompt:
        return " ".join(str(i) for i in range(1, 1001))
    if "Thought:" in prompt and "Observation:" not in prompt.rsplit("Use the tool.", 1)[-1]:
        return 'Thought: I need a tool.\nAction: multiply\nAction Input: {"a": 6, "b": 7}'
    if "Thought:" in prompt:
        return "Thought: I can answer without using any more tools.\nAnswer: It is 42."
    if re.search(r"<tool_call>|42", prompt.rsplit("Use the tool.", 1)[-1]):
        return "It is 42."
    if '"name": "multiply"' in prompt and "Use the tool." in prompt:
        return '<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call>'
    return "Hello! A router sends each of us where we need to go."


class SpecRouterTests(LLMConformanceTests):
    """Looks into the engine."""

    long_tokens = 600
    """The embedded family says 300 in a tenth of a second."""

    def work(self, llm: LLM) -> Work:
        assert isinstance(llm, SpecRouterLLM)
        stats = llm.engine.stats
        return Work(stats.num_running + stats.num_waiting, stats.num_committed_tokens)

    def test_pickled(self, llm):
        """By its name: an engine that was handed over, as in these tests, stays where it is."""
        super().test_pickled(SpecRouterLLM("demo"))


class TestScripted(SpecRouterTests):
    @pytest.fixture
    def llm(self, scripted):
        return scripted(competent, max_tokens=100)


class TestDemo(SpecRouterTests):
    @pytest.fixture
    def llm(self, demo_engine):
        return SpecRouterLLM(engine=demo_engine, max_tokens=48)

    @property
    def long_kwargs(self):
        return {"max_tokens": 3 * self.long_tokens, "ignore_eos": True}
