"""One span per chat: where it hangs, what it says, and that it always ends."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from specrouter_llm import SamplingParams, telemetry
from specrouter_llm.chat import ChatRequest, count_tokens, submit
from specrouter_llm.errors import CallbackError, InvalidParameterError, QueueFullError


@pytest.fixture
def spans(monkeypatch):
    """`spans()` lists the finished ones of chats; a provider of the test's own, not the process's."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return lambda: [span for span in exporter.get_finished_spans() if span.name.startswith("chat ")]


def request_of(kit, **changes):
    params = SamplingParams(max_tokens=20, temperature=0.5, seed=7, stop=("\n\n\n",))
    return ChatRequest(**{"messages": kit.QUESTION, "params": params, **changes})


def test_what_a_span_says(demo, kit, spans):
    completion = submit(demo, request_of(kit, options={"chain": ["demo/draft"]})).result()[0].completion
    (span,) = spans()
    said = dict(span.attributes)
    assert "chat demo/target" == span.name
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "specrouter",
        "gen_ai.request.model": "demo/target",
        "gen_ai.response.model": "demo/target",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("\n\n\n",),
        "gen_ai.response.finish_reasons": (completion.finish_reason.value,),
        "gen_ai.usage.input_tokens": completion.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": completion.usage.completion_tokens,
        "specrouter.speculative.num_draft_tokens": completion.stats.num_draft_tokens,
        "specrouter.speculative.num_accepted_draft_tokens": completion.stats.num_accepted_draft_tokens,
        "specrouter.speculative.mean_acceptance_length": completion.stats.mean_acceptance_length,
        "specrouter.speculative.chain": ("demo/draft", "demo/target"),
    }.items() <= said.items()
    assert said["gen_ai.response.time_to_first_chunk"] > 0


@pytest.mark.parametrize("params", [SamplingParams(top_k=5), None])
def test_a_span_shows_what_acts(kit, says, spans, params):
    """Also what the request does not say, but the model's generation config."""
    engine = says("Hello.", default_params=SamplingParams(temperature=0.7, top_k=20, top_p=0.8))
    submit(engine, request_of(kit, params=params)).result()
    (span,) = spans()
    said = {name: span.attributes[f"gen_ai.request.{name}"] for name in ("temperature", "top_k", "top_p", "max_tokens")}
    assert said == {"temperature": 0.7, "top_k": 5 if params else 20, "top_p": 0.8, "max_tokens": 256}


def test_the_parent_is_the_span_around_submit(demo, kit, spans):
    """Also when the answer is read elsewhere, and by tasks that share a loop."""
    tracer = trace.get_tracer("test")
    with tracer.start_as_current_span("outer") as outer:
        handle = submit(demo, request_of(kit))
    handle.result()

    async def ask():
        with tracer.start_as_current_span("task") as own:
            await submit(demo, request_of(kit)).aresult()
            return own.get_span_context().span_id

    async def both():
        return await asyncio.gather(ask(), ask())

    parents = {outer.get_span_context().span_id, *asyncio.run(both())}
    assert parents == {span.parent.span_id for span in spans()}
    assert len(parents) == 3


def test_sums_over_samples(demo, kit, spans):
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=1, n=3)
    results = submit(demo, request_of(kit, params=params)).result()
    (span,) = spans()
    assert span.attributes["gen_ai.usage.output_tokens"] == sum(len(r.completion.token_ids) for r in results)
    assert len(span.attributes["gen_ai.response.finish_reasons"]) == 3


def test_a_failure_is_marked(demo, kit, spans):
    def broken(info):
        raise RuntimeError("no")

    with pytest.raises(CallbackError):
        submit(demo, request_of(kit, options={"on_step": broken})).result()
    (span,) = spans()
    assert (trace.StatusCode.ERROR, "CallbackError") == (span.status.status_code, span.attributes["error.type"])


def test_a_request_that_was_not_taken(demo, kit, spans, monkeypatch):
    def full(*arguments, **options):
        raise QueueFullError("full")

    monkeypatch.setattr(demo, "submit", full)
    with pytest.raises(QueueFullError):
        submit(demo, request_of(kit))
    assert ["QueueFullError"] == [span.attributes["error.type"] for span in spans()]


def test_a_dropped_handle_ends_its_span(demo, kit, spans):
    handle = submit(demo, request_of(kit, params=SamplingParams(max_tokens=1000, ignore_eos=True)))
    assert 1 == len(next(handle).token_ids)
    assert spans() == []
    num_tokens = 1 + len(next(handle).token_ids)
    del handle
    gc.collect()
    (span,) = spans()
    assert {
        "gen_ai.response.model": "demo/target",
        "gen_ai.response.finish_reasons": ("cancelled",),
        "gen_ai.usage.input_tokens": count_tokens(demo, request_of(kit)),
        "gen_ai.usage.output_tokens": num_tokens,
    }.items() <= dict(span.attributes).items()


def test_a_request_that_has_ended_unread_says_how(demo, kit, spans):
    """Nobody asked for its result; the true end, all tokens and the counts are there when the handle goes."""
    request = request_of(kit, options={"chain": ["demo/draft"]})
    read = submit(demo, request).result()[0]
    handle = submit(demo, request)
    while not handle._handle.ended:
        time.sleep(0.01)
    handle.close()
    seen, unseen = (dict(span.attributes) for span in spans())
    assert unseen["gen_ai.response.finish_reasons"] == (read.finish_reason,)
    assert unseen.keys() == seen.keys()
    for name in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "specrouter.speculative.chain"):
        assert unseen[name] == seen[name]


def test_a_stream_that_is_left_at_its_last_delta_says_what_it_told(demo, kit, spans):
    """Most readers leave there; the engine may not have counted the sample yet."""
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    for _ in range(10):
        with submit(demo, request_of(kit, params=params)) as handle:
            for delta in handle:
                if delta.finish_reason:
                    break
    found = [dict(span.attributes) for span in spans()]
    assert {("length",)} == {each["gen_ai.response.finish_reasons"] for each in found}
    assert {20} == {each["gen_ai.usage.output_tokens"] for each in found}


def test_a_request_that_is_refused_has_a_span(demo, kit, spans):
    """Before anything is queued: it says what was asked for, and why not."""
    with pytest.raises(InvalidParameterError, match="unknown option"):
        submit(demo, request_of(kit, options={"chian": []}))
    (span,) = spans()
    assert (trace.StatusCode.ERROR, "InvalidParameterError") == (span.status.status_code, span.attributes["error.type"])
    assert span.attributes["gen_ai.request.max_tokens"] == 20


def test_without_opentelemetry(demo, kit, spans, monkeypatch):
    monkeypatch.setattr(telemetry, "_INSTALLED", False)
    assert submit(demo, request_of(kit)).result()[0].completion.token_ids
    assert spans() == []
