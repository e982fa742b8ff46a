"""What observability tools see, with the real instrumentors and nothing leaving the process."""

from __future__ import annotations

import json

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from langchain_specrouter import ChatSpecRouter, SpecRouterLLM

QUESTION = "What is 3 plus 4?"
TOKENS = 12


class Runs(BaseTracer):
    """Keeps finished root runs, as LangSmith's tracer would send them."""

    def __init__(self):
        super().__init__()
        self.roots = []

    def _persist_run(self, run):
        self.roots.append(run)


@pytest.fixture
def chat(demo_engine):
    return ChatSpecRouter(engine=demo_engine, max_tokens=TOKENS, chain=["demo/draft"])


@pytest.mark.parametrize("streaming", [False, True], ids=["invoke", "stream"])
def test_a_run_tree_holds_usage_statistics_and_the_chain(chat, streaming):
    tracer = Runs()
    pipeline = RunnableLambda(lambda text: text) | chat
    if streaming:
        list(pipeline.stream(QUESTION, {"callbacks": [tracer]}))
    else:
        pipeline.invoke(QUESTION, {"callbacks": [tracer]})
    (root,) = tracer.roots
    (run,) = [child for child in root.child_runs if child.run_type in ("llm", "chat_model")]
    assert run.error is None
    metadata = run.extra["metadata"]
    assert (metadata["ls_provider"], metadata["ls_model_name"]) == ("specrouter", "demo/target")
    assert metadata["specrouter_chain"] == ["demo/draft"]
    assert "langchain-specrouter" in metadata["lc_versions"]
    message = run.outputs["generations"][0][0]["message"]["kwargs"]
    assert message["usage_metadata"]["output_tokens"] == TOKENS
    assert message["response_metadata"]["speculative_decoding"]["num_target_steps"] < TOKENS


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


@pytest.fixture
def openinference(spans):
    from openinference.instrumentation.langchain import LangChainInstrumentor

    provider, exporter = spans
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


@pytest.mark.parametrize("streaming", [False, True], ids=["invoke", "stream"])
def test_openinference_sees_tokens_model_and_statistics(openinference, chat, streaming):
    if streaming:
        list(chat.stream(QUESTION))
    else:
        chat.invoke(QUESTION)
    (span,) = openinference.get_finished_spans()
    seen = dict(span.attributes)
    assert seen["openinference.span.kind"] == "LLM"
    assert seen["llm.model_name"] == "demo/target"
    assert seen["llm.token_count.completion"] == TOKENS
    assert seen["llm.token_count.total"] == seen["llm.token_count.prompt"] + TOKENS
    assert "num_accepted_draft_tokens" in seen["output.value"]
    assert json.loads(seen["metadata"])["specrouter_chain"] == ["demo/draft"]


async def test_openinference_sees_text_models_and_async_calls(openinference, demo_engine):
    llm = SpecRouterLLM(engine=demo_engine, max_tokens=TOKENS)
    await llm.ainvoke("Once upon a time")
    async for _ in llm.astream("Once upon a time"):
        pass
    called, streamed = openinference.get_finished_spans()
    assert called.attributes["llm.token_count.completion"] == TOKENS
    assert called.status.is_ok
    assert streamed.status.is_ok


@pytest.fixture
def langfuse(spans):
    import langfuse
    from langfuse.langchain import CallbackHandler

    provider, exporter = spans
    client = langfuse.Langfuse(
        public_key="pk-test", secret_key="sk-test", tracer_provider=provider, span_exporter=exporter, flush_at=1
    )
    yield CallbackHandler(public_key="pk-test"), client, exporter
    client.shutdown()


def test_langfuse_sees_usage_and_with_a_second_sink_statistics(langfuse, demo_engine):
    handler, client, exporter = langfuse
    chat = ChatSpecRouter(engine=demo_engine, max_tokens=TOKENS, stats_sinks={"response_metadata", "additional_kwargs"})
    chat.invoke(QUESTION, {"callbacks": [handler]})
    client.flush()
    seen = dict(exporter.get_finished_spans()[-1].attributes)
    assert seen["langfuse.observation.type"] == "generation"
    assert seen["langfuse.observation.model.name"] == "demo/target"
    usage = json.loads(seen["langfuse.observation.usage_details"])
    assert usage["output"] == TOKENS
    assert "num_accepted_draft_tokens" in seen["langfuse.observation.output"]
