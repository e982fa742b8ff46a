"""What handlers and tracers see."""

from __future__ import annotations

import json

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.tools import FunctionTool
from llama_index_instrumentation import get_dispatcher
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llama_index.llms.specrouter import SpecRouterStatsHandler
from llama_index.llms.specrouter.testing.base import ENDPOINTS, call

HELLO = [ChatMessage(role="user", content="Hello?")]


@pytest.fixture
def stats():
    handler = SpecRouterStatsHandler()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers[:] = [other for other in dispatcher.event_handlers if other is not handler]


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def test_stats_add_up(scripted, stats):
    """Each of the eight endpoints counts once; sums are those of the responses."""
    llm = scripted("One two three four five.")
    raws = [call(llm, endpoint, "Hello?")[-1].raw for endpoint in ENDPOINTS]
    sums = stats.totals()["scripted"]
    assert sums["calls"] == len(ENDPOINTS)
    for name in ("num_draft_tokens", "num_accepted_draft_tokens", "num_target_steps", "num_spec_steps"):
        assert sums[name] == sum(raw["speculative_decoding"][name] for raw in raws)
    assert sums["completion_tokens"] == sum(raw["usage"]["completion_tokens"] for raw in raws)
    assert sums["draft_acceptance_rate"] == sums["num_accepted_draft_tokens"] / sums["num_draft_tokens"]
    assert sums["mean_acceptance_length"] == sums["completion_tokens"] / sums["num_target_steps"]
    stats.reset()
    assert stats.totals() == {}


@pytest.mark.parametrize("raw", [None, {"usage": {"prompt_tokens": 1}}, object()])
def test_responses_of_others_are_left_out(stats, raw):
    response = ChatResponse(message=ChatMessage(content="x"), raw=raw)
    stats.handle(LLMChatEndEvent(messages=HELLO, response=response))
    stats.handle(LLMChatEndEvent(messages=HELLO, response=None))
    assert stats.totals() == {}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_openinference_spans(scripted, spans, endpoint):
    """One LLM span for each call, with the model, the text and the exact counts, streamed or not."""
    llm = scripted("One two three four five.")
    raw = call(llm, endpoint, "Hello?")[-1].raw
    llm_spans = [s for s in spans.get_finished_spans() if s.attributes.get("openinference.span.kind") == "LLM"]
    assert len(llm_spans) == 1
    attributes = llm_spans[0].attributes
    assert attributes["llm.model_name"] == "scripted"
    assert attributes["llm.token_count.prompt"] == raw["usage"]["prompt_tokens"]
    assert attributes["llm.token_count.completion"] == raw["usage"]["completion_tokens"]
    assert "One two three four five." in json.dumps(dict(attributes))


def test_openinference_sees_tool_calls(scripted, spans):
    """What was called, and with what."""
    llm = scripted('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
    llm.chat_with_tools([FunctionTool.from_defaults(lambda a: a, name="add", description="Add.")], user_msg="x")
    names = [
        value
        for span in spans.get_finished_spans()
        for key, value in span.attributes.items()
        if key.startswith("llm.output_messages") and key.endswith("tool_call.function.name")
    ]
    assert names == ["add"]
