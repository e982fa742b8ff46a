"""`SpecRouterLLM`, the text model: LangChain has no standard tests for these, so here is our mirror of them."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelTimeoutError
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableLambda

from langchain_specrouter import SpecRouterInvalidRequestError, SpecRouterLLM, SpecRouterStatsHandler
from specrouter_llm.errors import InvalidPromptError

PROMPT = "Once upon a time"


@pytest.fixture
def llm(demo_engine):
    return SpecRouterLLM(engine=demo_engine, max_tokens=16)


def without_clock(info):
    speculation = {key: value for key, value in info["speculative_decoding"].items() if key != "route"}
    return {**{key: value for key, value in info.items() if key != "timings"}, "speculative_decoding": speculation}


@pytest.mark.parametrize("params", [{}, {"temperature": 0.9, "seed": 4}], ids=["greedy", "sampled"])
async def test_all_ways_give_one_text(llm, params):
    text = llm.invoke(PROMPT, **params)
    assert text
    assert "".join(llm.stream(PROMPT, **params)) == text
    assert await llm.ainvoke(PROMPT, **params) == text
    assert "".join([piece async for piece in llm.astream(PROMPT, **params)]) == text
    assert llm.batch([PROMPT] * 3, **params) == [text] * 3
    assert await llm.abatch([PROMPT] * 3, **params) == [text] * 3


class Handler(BaseCallbackHandler):
    def __init__(self):
        self.tokens, self.results, self.errors = [], [], []

    def on_llm_new_token(self, token, *, chunk=None, **kwargs):
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, **kwargs):
        self.results.append(response)

    def on_llm_error(self, error, **kwargs):
        self.errors.append(error)


def test_what_handlers_see_of_a_stream_and_of_a_call(llm):
    """One call of on_llm_new_token for every chunk, and the same information at the end."""
    llm = llm.bind(chain=["demo/draft"])  # so that what is told of drafting is the same both times
    llm.invoke(PROMPT)  # fills the prefix cache
    streamed, called, stats = Handler(), Handler(), SpecRouterStatsHandler()
    text = "".join(llm.stream(PROMPT, {"callbacks": [streamed, stats]}))
    llm.invoke(PROMPT, {"callbacks": [called, stats]})
    assert "".join(streamed.tokens) == text
    assert len(streamed.tokens) > 1
    infos = [handler.results[0].generations[0][0].generation_info for handler in (streamed, called)]
    assert without_clock(infos[0]) == without_clock(infos[1])
    usage = infos[0]["usage_metadata"]
    assert usage["total_tokens"] == usage["input_tokens"] + 16
    assert infos[0]["finish_reason"] == "length"
    told = called.results[0].llm_output["token_usage"]
    assert told == {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": 16,
        "total_tokens": usage["total_tokens"],
    }
    assert (stats.by_model["demo/target"].num_calls, stats.by_model["demo/target"].num_output_tokens) == (2, 32)


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch", "abatch", "generate"])
async def test_with_streaming_every_call_hands_its_tokens_to_handlers(llm, how):
    streaming, seen = SpecRouterLLM(engine=llm.engine, max_tokens=16, streaming=True), Handler()
    config = {"callbacks": [seen]}
    calls = {
        "invoke": lambda: asyncio.to_thread(streaming.invoke, PROMPT, config),
        "ainvoke": lambda: streaming.ainvoke(PROMPT, config),
        "batch": lambda: asyncio.to_thread(streaming.batch, [PROMPT], config),
        "abatch": lambda: streaming.abatch([PROMPT], config),
        "generate": lambda: asyncio.to_thread(streaming.generate, [PROMPT], None, [seen]),
    }
    await calls[how]()
    (result,), (plain,) = seen.results, llm.generate([PROMPT]).generations
    assert "".join(seen.tokens) == result.generations[0][0].text == plain[0].text
    assert len(seen.tokens) > 1
    assert result.llm_output == llm.generate([PROMPT]).llm_output
    assert result.generations[0][0].generation_info.keys() == plain[0].generation_info.keys()


async def test_streaming_is_for_one_answer_to_one_prompt(llm):
    streaming = SpecRouterLLM(engine=llm.engine, max_tokens=4, streaming=True)
    with pytest.raises(SpecRouterInvalidRequestError, match=r"streaming=True .* call batch\(\)"):
        streaming.generate([PROMPT, "The end"])
    with pytest.raises(SpecRouterInvalidRequestError, match=r"streaming=True .* call batch\(\)"):
        await streaming.agenerate([PROMPT, "The end"])
    assert len(streaming.generate([PROMPT, "The end"], stream=False).generations) == 2
    with pytest.raises(SpecRouterInvalidRequestError, match=r"streaming=True .* n > 1"):
        streaming.generate([PROMPT], n=2, temperature=1.0)


def test_several_answers_count_their_prompt_once(llm):
    result = llm.generate([PROMPT, "The end"], n=2, temperature=1.0, seed=1)
    assert [len(answers) for answers in result.generations] == [2, 2]
    prompts = [llm.get_num_tokens(prompt) for prompt in (PROMPT, "The end")]
    assert result.llm_output["token_usage"]["prompt_tokens"] == sum(prompts)


BAD = "word " * 3000


@pytest.mark.parametrize("config", [None, {"max_concurrency": 2}, {"max_concurrency": 1}], ids=str)
@pytest.mark.parametrize("how", ["batch", "abatch", "batch_as_completed"])
def test_a_bad_prompt_of_a_batch_spoils_no_other(llm, config, how):
    """One outcome for each input, whatever its neighbours and however many run at once."""
    prompts = [PROMPT, BAD, "The end"]
    batches = {
        "batch": lambda: llm.batch(prompts, config, return_exceptions=True),
        "abatch": lambda: asyncio.run(llm.abatch(prompts, config, return_exceptions=True)),
        "batch_as_completed": lambda: [
            answer for _, answer in sorted(llm.batch_as_completed(prompts, config, return_exceptions=True))
        ],
    }
    good, bad, fine = batches[how]()
    assert (good, fine) == (llm.invoke(PROMPT), llm.invoke("The end"))
    assert isinstance(bad, ContextOverflowError)


def test_a_late_answer_of_a_batch_costs_no_other(tools):
    script = {"say yes": "yes", "count": " ".join(map(str, range(400)))}
    with tools.scripted_engine(lambda prompt: script[prompt], seconds=0.01) as engine:
        llm = SpecRouterLLM(engine=engine, max_tokens=400, timeout=1)
        answers = llm.batch(["say yes<|assistant|>", "count<|assistant|>"], return_exceptions=True)
    assert answers[0] == "yes"
    assert isinstance(answers[1], ModelTimeoutError)


async def test_the_first_error_of_a_batch_is_raised(llm):
    prompts = [PROMPT, "", BAD]
    with pytest.raises(InvalidPromptError):
        llm.batch(prompts)
    with pytest.raises(InvalidPromptError):
        await llm.abatch(prompts)


def test_retries_and_fallbacks_are_for_what_has_failed(llm):
    prompts = [PROMPT, BAD]
    with_fallback = llm.with_fallbacks([RunnableLambda(lambda prompt: "too long")])
    assert with_fallback.batch(prompts) == [llm.invoke(PROMPT), "too long"]
    tried = Handler()
    retried = llm.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    assert retried.batch(prompts, {"callbacks": [tried]}, return_exceptions=True)[0] == llm.invoke(PROMPT)
    assert len(tried.results) == 1
    assert len(tried.errors) == 2


def test_each_prompt_of_a_batch_has_its_own_run_and_its_place_in_the_cache(demo_engine):
    llm, seen = SpecRouterLLM(engine=demo_engine, max_tokens=8, cache=InMemoryCache()), [Handler() for _ in range(3)]
    configs = [{"callbacks": [handler]} for handler in seen]
    good, _, fine = llm.batch([PROMPT, BAD, "The end"], configs, return_exceptions=True)
    assert [[result.generations[0][0].text for result in handler.results] for handler in seen] == [[good], [], [fine]]
    assert [len(handler.errors) for handler in seen] == [0, 1, 0]
    done = demo_engine.stats
    assert llm.batch([PROMPT, "The end"]) == [good, fine]
    assert demo_engine.stats == done  # the cache has answered


def test_all_prompts_are_in_the_engine_before_the_first_is_answered(tools):
    gate = threading.Event()
    engine = tools.scripted_engine(lambda prompt: "", gate=gate)
    most = []

    def watch():
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if (count := engine.stats.num_running + engine.stats.num_waiting) == 64:
                break
            time.sleep(0.005)
        most.append(count)
        gate.set()

    thread = threading.Thread(target=watch)
    thread.start()
    with engine:
        SpecRouterLLM(engine=engine, max_tokens=2).batch(["hi"] * 64)
    thread.join()
    assert most == [64]


async def test_cancelling_frees_the_engine(tools):
    engine = tools.scripted_engine(lambda prompt: "", seconds=0.002)
    llm = SpecRouterLLM(engine=engine, max_tokens=1000, ignore_eos=True)
    with engine:
        stream = llm.stream("go")
        next(stream)
        stream.close()
        assert tools.settled(engine)
        for call in (lambda: llm.ainvoke("go"), lambda: llm.abatch(["go"] * 3)):
            task = asyncio.ensure_future(call())
            while not engine.stats.num_running:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(tools.settled, engine)
        with pytest.raises(ModelTimeoutError):
            llm.invoke("go", timeout=0.1)


@pytest.mark.parametrize("how", ["ainvoke", "astream"])
async def test_the_event_loop_is_never_blocked(tools, monkeypatch, how):
    """Encoding is made slow here, as that of a long document is; a task that ticks every millisecond goes on ticking."""
    slow = 0.4
    engine = tools.scripted_engine(lambda prompt: "")
    encode = engine.tokenizer.encode
    monkeypatch.setattr(engine.tokenizer, "encode", lambda *a, **k: time.sleep(slow) or encode(*a, **k))
    llm = SpecRouterLLM(engine=engine, max_tokens=2)
    gaps = [0.0]

    async def tick():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - before)

    async def stream():
        return [piece async for piece in llm.astream("go")]

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0.01)  # it has begun
    with engine:
        await {"ainvoke": lambda: llm.ainvoke("go"), "astream": stream}[how]()
    ticking.cancel()
    assert max(gaps) < slow / 2


@pytest.mark.parametrize(("prompt", "error"), [("", InvalidPromptError), ("word " * 3000, ContextOverflowError)])
def test_bad_prompts(llm, prompt, error):
    with pytest.raises(error):
        llm.invoke(prompt)
    with pytest.raises(error):
        list(llm.stream(prompt))


def test_another_model_for_one_call():
    llm = SpecRouterLLM(model="demo", max_tokens=3, engine_kwargs={"progress": False})
    (answer,) = llm.generate([PROMPT], model="demo/draft").generations[0]
    assert answer.generation_info["model_name"] == "demo/draft"
    llm.close()
    assert not llm._engines
