"""`ChatSpecRouter` on real engines: one answer in four ways, metadata once, batches, cancellation, errors."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import time

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelTimeoutError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.runnables import RunnableLambda

from langchain_specrouter import (
    ChatSpecRouter,
    SpecRouterInvalidPromptError,
    SpecRouterInvalidRequestError,
    SpecRouterLLM,
    SpecRouterModelNotFoundError,
    SpecRouterStatsHandler,
)
from specrouter_llm.errors import EngineClosedError, SpecRouterError

QUESTION = "Sam buys 3 boxes of stickers. Each box holds 8. How many?"
ENDLESS = "one two three four " * 200


def joined(chunks):
    chunks = list(chunks)
    return sum(chunks[1:], start=chunks[0])


def told(message):
    """All of a message but its id and the clock."""
    plain = message.model_dump(exclude={"id", "type", "tool_call_chunks", "chunk_position", "response_metadata"})
    metadata = {key: value for key, value in message.response_metadata.items() if key != "timings"}
    speculation = {key: value for key, value in metadata["speculative_decoding"].items() if key != "route"}
    return {**plain, "response_metadata": {**metadata, "speculative_decoding": speculation}}


# ---------------------------------------------------------------- one answer, four ways


@pytest.mark.parametrize("params", [{}, {"temperature": 0.9, "seed": 5}], ids=["greedy", "sampled"])
async def test_all_four_ways_give_one_answer(demo, params):
    params = {**params, "chain": ["demo/draft"]}  # so that what is told of drafting is the same too
    demo.invoke(QUESTION)  # fills the prefix cache, which usage tells about
    invoked = told(demo.invoke(QUESTION, **params))
    assert told(joined(demo.stream(QUESTION, **params))) == invoked
    assert told(await demo.ainvoke(QUESTION, **params)) == invoked
    assert told(joined([chunk async for chunk in demo.astream(QUESTION, **params)])) == invoked


@pytest.mark.parametrize("chain", [["ngram"], ["demo/draft"], ["demo/draft", "demo/middle"], None])
def test_the_chain_changes_speed_not_the_answer(demo, chain):
    plain = demo.invoke(QUESTION, speculation=False)
    assert plain.response_metadata["speculative_decoding"]["num_draft_tokens"] == 0
    drafted = demo.invoke(QUESTION, chain=chain)
    assert drafted.content == plain.content
    if chain is not None:  # else the engine chooses, and may do without
        assert drafted.response_metadata["speculative_decoding"]["num_draft_tokens"] > 0


def test_metadata_is_on_the_last_chunk_and_only_there(demo):
    *chunks, last = demo.stream(QUESTION)
    assert all(not chunk.response_metadata and chunk.usage_metadata is None for chunk in chunks)
    assert all(chunk.chunk_position is None for chunk in chunks)
    assert last.chunk_position == "last"
    assert last.usage_metadata["output_tokens"] == 20
    metadata = last.response_metadata
    assert (metadata["model_name"], metadata["model_provider"]) == ("demo/target", "specrouter")
    assert metadata["finish_reason"] == "length"
    speculation = metadata["speculative_decoding"]
    assert speculation["num_accepted_draft_tokens"] == sum(
        n * c for n, c in enumerate(speculation["acceptance_histogram"])
    )
    assert json.loads(json.dumps(metadata)) == metadata


def test_every_chunk_is_a_step(demo):
    """Tokens that one target forward commits arrive together."""
    options = {"chain": ["demo/draft"]}
    chunks = [chunk for chunk in demo.stream(QUESTION, **options) if chunk.content]
    steps = joined(demo.stream(QUESTION, **options)).response_metadata["speculative_decoding"]["num_target_steps"]
    assert 1 < len(chunks) <= steps < 20


def test_what_statistics_tell(demo):
    off = demo.invoke(QUESTION, stats="off").response_metadata
    assert set(off) == {"model_name", "model_provider", "finish_reason"}
    seen, options = [], {"stats": "detailed", "chain": ["demo/draft"]}
    detailed = demo.invoke(QUESTION, on_step=seen.append, **options).response_metadata["speculative_decoding"]
    assert [step["step"] for step in detailed["steps"]] == list(range(detailed["num_target_steps"]))
    assert sum(step["committed"] for step in detailed["steps"]) == 20
    assert len(seen) == detailed["num_target_steps"]
    streamed = joined(demo.stream(QUESTION, **options)).response_metadata["speculative_decoding"]["steps"]
    assert [step["committed"] for step in streamed] == [step["committed"] for step in detailed["steps"]]


async def test_where_statistics_are_put(demo_engine):
    class Handler(BaseCallbackHandler):
        events = ()

        def on_custom_event(self, name, data, **kwargs):
            self.events = (*self.events, (name, data["model_name"], data["num_target_steps"]))

    # One chain: left to itself the router may have found a better one by the second answer, which takes fewer steps.
    sinks = {"additional_kwargs", "custom_event"}
    model = ChatSpecRouter(engine=demo_engine, max_tokens=8, chain=["demo/draft"], stats_sinks=sinks)
    handler = Handler()
    message = (RunnableLambda(lambda text: text) | model).invoke("hi", {"callbacks": [handler]})
    steps = message.additional_kwargs["speculative_decoding"]["num_target_steps"]
    assert "speculative_decoding" not in message.response_metadata
    event = ("specrouter.speculative_decoding", "demo/target", steps)
    assert handler.events == (event,)
    await (RunnableLambda(lambda text: text) | model).ainvoke("hi", {"callbacks": [handler]})
    assert handler.events == (event, event)
    assert model.invoke("hi").content == message.content  # no surrounding run: nothing is sent, nothing fails


def test_several_answers_to_one_prompt(demo):
    result = demo.generate([[HumanMessage(QUESTION)]], n=3, temperature=2.0, seed=2)  # the model is sure of this one
    texts = [answer.text for answer in result.generations[0]]
    assert len(texts) == 3
    assert len(set(texts)) > 1
    assert demo.invoke(QUESTION, temperature=2.0, seed=2).content == texts[0]


# ---------------------------------------------------------------- callbacks


class Tokens(BaseCallbackHandler):
    def __init__(self):
        self.chunks = []

    def on_llm_new_token(self, token, *, chunk=None, **kwargs):
        self.chunks.append((token, chunk))


@pytest.mark.parametrize("stream", ["stream", "invoke", "v3"])
def test_handlers_see_every_chunk_once(demo_engine, stream):
    model = ChatSpecRouter(engine=demo_engine, max_tokens=20, streaming=True)
    tokens, usage, stats = Tokens(), UsageMetadataCallbackHandler(), SpecRouterStatsHandler()
    config = {"callbacks": [tokens, usage, stats]}
    if stream == "stream":
        text = "".join(chunk.text for chunk in model.stream(QUESTION, config))
    elif stream == "invoke":
        text = model.invoke(QUESTION, config).content
    else:
        text = model.stream_events(QUESTION, config, version="v3").output.text
    assert "".join(token for token, _ in tokens.chunks) == text
    assert all(chunk is not None for _, chunk in tokens.chunks)
    assert usage.usage_metadata["demo/target"]["output_tokens"] == 20
    assert (stats.by_model["demo/target"].num_calls, stats.by_model["demo/target"].num_output_tokens) == (1, 20)


async def test_events_of_a_stream(demo):
    kinds = [event["event"] async for event in demo.astream_events(QUESTION, version="v2")]
    assert (kinds[0], kinds[-1]) == ("on_chat_model_start", "on_chat_model_end")
    assert kinds.count("on_chat_model_stream") > 1


def test_langchains_cache_answers_the_second_time(demo_engine):
    """And tells apart what an answer depends on."""
    model = ChatSpecRouter(engine=demo_engine, max_tokens=8, cache=InMemoryCache())
    first = model.invoke(QUESTION)
    committed = demo_engine.stats
    assert model.invoke(QUESTION).content == first.content
    assert demo_engine.stats == committed
    model.invoke(QUESTION, temperature=1.0, seed=1)
    assert demo_engine.stats != committed


# ---------------------------------------------------------------- cancellation and the event loop


def test_leaving_a_stream_frees_the_engine(scripted, tools):
    model = scripted(ENDLESS, engine={"seconds": 0.002}, max_tokens=1000)
    stream = model.stream("go")
    next(stream)
    assert model.engine.stats.num_running == 1
    stream.close()
    assert tools.settled(model.engine)


async def test_leaving_an_async_stream_frees_the_engine(scripted, tools):
    model = scripted(ENDLESS, engine={"seconds": 0.002}, max_tokens=1000)
    async for _ in (stream := model.astream("go")):
        break
    await stream.aclose()
    assert await asyncio.to_thread(tools.settled, model.engine)


@pytest.mark.parametrize("how", ["ainvoke", "astream", "abatch"])
async def test_cancelling_a_task_frees_the_engine(scripted, tools, how):
    model = scripted(ENDLESS, engine={"seconds": 0.002}, max_tokens=1000)

    async def stream():
        async for _ in model.astream("go"):
            pass

    calls = {"ainvoke": lambda: model.ainvoke("go"), "astream": stream, "abatch": lambda: model.abatch(["go"] * 5)}
    task = asyncio.ensure_future(calls[how]())
    while not model.engine.stats.num_running:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(tools.settled, model.engine)


async def test_cancelling_a_task_that_is_still_encoding_frees_the_engine(scripted, tools, monkeypatch):
    """The thread that encodes goes on; what it submits has no owner any more and ends."""
    model = scripted(ENDLESS, engine={"seconds": 0.002}, max_tokens=1000)
    encoding, encode = threading.Event(), model.engine.tokenizer.encode_chat
    submitted = threading.Event()

    def slow(*args, **kwargs):
        encoding.set()
        time.sleep(0.2)
        submitted.set()
        return encode(*args, **kwargs)

    monkeypatch.setattr(model.engine.tokenizer, "encode_chat", slow)
    task = asyncio.ensure_future(model.ainvoke("go"))
    await asyncio.to_thread(encoding.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(submitted.wait)
    await asyncio.sleep(0.1)
    assert await asyncio.to_thread(tools.settled, model.engine, 1.0)


def test_an_interrupted_invoke_frees_the_engine(scripted, tools):
    """Control-C while waiting: the handler raises it in the waiting thread."""
    model = scripted(ENDLESS, engine={"seconds": 0.002}, max_tokens=1000, streaming=True)

    class Interrupt(BaseCallbackHandler):
        raise_error = True
        run_inline = True

        def on_llm_new_token(self, token, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.invoke("go", {"callbacks": [Interrupt()]})
    assert tools.settled(model.engine)


@pytest.mark.parametrize("how", ["ainvoke", "astream", "abatch"])
async def test_the_event_loop_is_never_blocked(tools, monkeypatch, how):
    """Loading, encoding and decoding are made slow here; a task that ticks every millisecond goes on ticking."""
    slow = 0.4
    engine = tools.scripted_engine(lambda prompt: "yes", seconds=slow)
    encode = engine.tokenizer.encode_chat
    monkeypatch.setattr(engine.tokenizer, "encode_chat", lambda *a, **k: time.sleep(slow) or encode(*a, **k))
    monkeypatch.setattr("langchain_specrouter.settings.shared_engine", lambda *a, **k: time.sleep(slow) or engine)
    model = ChatSpecRouter(model="slow", max_tokens=2)
    gaps = [0.0]

    async def tick():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - before)

    async def stream():
        return [chunk async for chunk in model.astream("go")]

    calls = {"ainvoke": lambda: model.ainvoke("go"), "astream": stream, "abatch": lambda: model.abatch(["go"] * 2)}
    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0.01)  # it has begun
    start = time.perf_counter()
    await calls[how]()
    took = time.perf_counter() - start
    ticking.cancel()
    engine.close()
    assert took > 3 * slow
    assert max(gaps) < slow / 2  # on an idle machine a few milliseconds


# ---------------------------------------------------------------- engines


def test_models_share_an_engine_that_is_made_once():
    fields = {"model": "demo", "max_tokens": 4, "engine_kwargs": {"progress": False, "max_batch": 3}}
    models = [ChatSpecRouter(**fields) for _ in range(6)]
    engines = []
    threads = [threading.Thread(target=lambda m=m: engines.append(m.load()._engine_of("demo", None))) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(engine) for engine in engines}) == 1
    assert models[0].profile["max_input_tokens"] == engines[0].max_context
    models[0].close()
    assert engines[0].closed
    assert models[1].invoke("hi").usage_metadata["output_tokens"] > 0  # made anew
    models[1].close()


def test_an_engine_of_ones_own_is_left_open(demo_engine):
    model = ChatSpecRouter(engine=demo_engine)
    assert (model.model, model.profile["max_input_tokens"]) == ("demo/target", demo_engine.max_context)
    model.close()
    assert not demo_engine.closed
    with pytest.raises(ValueError, match="the given engine serves 'demo/target'"):
        ChatSpecRouter(engine=demo_engine, model="other")
    with pytest.raises(ValueError, match="leave them out"):
        ChatSpecRouter(engine=demo_engine, drafts=["demo/draft"])


def test_a_copy_with_other_engine_options_has_another_engine():
    model = ChatSpecRouter(model="demo", max_tokens=2, engine_kwargs={"progress": False, "max_batch": 2}).load()
    other = model.model_copy(update={"engine_kwargs": {"progress": False, "max_batch": 3}})
    assert [made._engine_of("demo", None).config.max_batch for made in (model, other)] == [2, 3]
    other.close()
    assert not model._engine_of("demo", None).closed
    model.close()


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_loaded_model_can_be_copied(copied):
    """A deep copy shares the engine; a pickled model describes it, and would load it when it is used."""
    loaded = ChatSpecRouter(model="demo", max_tokens=4, engine_kwargs={"progress": False}).load()
    assert copied(loaded).invoke(QUESTION).content == loaded.invoke(QUESTION).content
    assert copied(loaded)._engine_of("demo", None) is loaded._engine_of("demo", None)
    loaded.close()


@pytest.mark.parametrize("cls", [ChatSpecRouter, SpecRouterLLM])
def test_an_engine_of_ones_own_is_shared_by_copies_and_cannot_be_pickled(cls, demo_engine):
    """Its name, which a pickled model would load, says nothing about its weights."""
    model = cls(engine=demo_engine, max_tokens=4)
    for copied in (copy.copy(model), copy.deepcopy(model), model.model_copy(), copy.deepcopy(model.bind(seed=1)).bound):
        assert copied.engine is demo_engine
        assert copied == model
    for whole in (model, model.bind(seed=1), RunnableLambda(str) | model):
        with pytest.raises(TypeError, match=r"engine=.* cannot be pickled.*model="):
            pickle.dumps(whole)


def test_drafts_for_one_call_do_not_go_with_an_engine_of_ones_own(demo):
    with pytest.raises(SpecRouterInvalidRequestError, match="drafts make an engine"):
        demo.invoke("hi", drafts=["demo/draft"])


def test_a_closed_engine_says_so(scripted):
    model = scripted("yes")
    model.engine.close()
    with pytest.raises(EngineClosedError):
        model.invoke("hi")


def test_a_model_that_does_not_exist():
    with pytest.raises(SpecRouterModelNotFoundError):
        ChatSpecRouter(model="./no/such/folder").invoke("hi")


def test_counting_tokens(demo):
    """Counts are those of the prompt that is sent, tools included."""

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    messages = [SystemMessage("be brief"), HumanMessage(QUESTION)]
    counted = demo.get_num_tokens_from_messages(messages)
    assert counted == demo.invoke(messages).usage_metadata["input_tokens"]
    with_tools = demo.get_num_tokens_from_messages(messages, tools=[add])
    assert with_tools == demo.bind_tools([add]).invoke(messages).usage_metadata["input_tokens"] > counted
    assert demo.engine.tokenizer.decode(demo.get_token_ids(QUESTION)) == QUESTION
    assert demo.get_num_tokens("") == 0


@pytest.mark.parametrize("strategy", ["first", "last"])
def test_a_history_is_trimmed_to_nothing_where_nothing_fits(demo, strategy):
    """LangChain asks for the length of no messages, which is no prompt."""
    history = [HumanMessage("A question? " * 12), AIMessage("An answer. " * 12)]
    rest = trim_messages(history, max_tokens=2, strategy=strategy, token_counter=demo, allow_partial=True)
    assert rest == []
    assert demo.get_num_tokens_from_messages([], tools=[]) == 0


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("messages", "kwargs", "error", "match"),
    [
        ([], {}, SpecRouterInvalidPromptError, "empty"),
        ([HumanMessage([{"type": "image", "url": "u"}])], {}, SpecRouterInvalidPromptError, "text only"),
        ("word " * 3000, {}, ContextOverflowError, "context is 2048"),
        ("hi", {"temperature": 1e9}, SpecRouterInvalidRequestError, "temperature"),
        ("hi", {"chain": ["nobody"]}, SpecRouterInvalidRequestError, "nobody"),
        ("hi", {"stats": "all"}, SpecRouterInvalidRequestError, "stats must be one of off"),
        ("hi", {"tool_choice": "add"}, SpecRouterInvalidRequestError, "no tools were given"),
    ],
)
async def test_bad_input_is_an_error_in_all_four_ways(demo, messages, kwargs, error, match):
    async def astream():
        return [chunk async for chunk in demo.astream(messages, **kwargs)]

    for call in (lambda: demo.invoke(messages, **kwargs), lambda: list(demo.stream(messages, **kwargs))):
        with pytest.raises(error, match=match) as info:
            call()
        assert isinstance(info.value, SpecRouterError)
    for task in (demo.ainvoke(messages, **kwargs), astream()):
        with pytest.raises(error, match=match):
            await task
    assert demo.engine.stats.num_waiting == 0


def test_a_timeout_is_langchains_timeout(scripted):
    model = scripted(ENDLESS, engine={"seconds": 0.01}, max_tokens=1000, timeout=0.2)
    with pytest.raises(ModelTimeoutError, match=r"timeout=0\.2") as info:
        model.invoke("go")
    assert ENDLESS.startswith(info.value.partial)
    assert info.value.partial
    with pytest.raises(TimeoutError):
        list(model.stream("go"))


def test_a_failing_callback_is_the_requests_error(demo):
    def fail(info):
        raise ZeroDivisionError("mine")

    with pytest.raises(SpecRouterError, match="mine"):
        demo.invoke(QUESTION, on_step=fail)


def test_a_tool_result_may_be_the_last_message(demo):
    call = {"name": "add", "args": {"a": 1}, "id": "c1"}
    messages = [HumanMessage("What is 1 + 2"), AIMessage("", tool_calls=[call]), ToolMessage("3", tool_call_id="c1")]
    assert isinstance(demo.invoke(messages), AIMessage)
