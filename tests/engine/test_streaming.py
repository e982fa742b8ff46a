"""Streams: sync, async and whole results are views of the same tokens, from any thread and any event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from specrouter_llm import FinishReason, SamplingParams

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9, 3, 2, 3]]
SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=30)
CHAIN = {"chain": ["draft", "middle"], "windows": [3, 5]}


@pytest.fixture(scope="module")
def engine(tools, tokenizer):
    size = len(tokenizer)
    with tools.engine_of(tools.family(size), vocab_size=size, tokenizer=tokenizer, max_batch=3) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(engine):
    """What every prompt must give, by plain decoding, one at a time."""
    return [engine.generate([prompt], SAMPLED, speculation=False)[0] for prompt in PROMPTS]


def answer(completion):
    return completion.text, completion.token_ids, completion.finish_reason


def check_deltas(deltas, completion):
    """The deltas of one sample add up to its completion, and only the last one has a finish reason."""
    mine = [delta for delta in deltas if delta.index == completion.index]
    assert completion.text == "".join(delta.text for delta in mine)
    assert completion.token_ids == tuple(i for delta in mine for i in delta.token_ids)
    assert [None] * (len(mine) - 1) + [completion.finish_reason] == [delta.finish_reason for delta in mine]


@pytest.mark.parametrize("options", [{"speculation": False}, CHAIN])
def test_a_stream_adds_up_to_the_result(engine, plain, options):
    """Texts and token ids of the deltas, concatenated, are those of the completion and of generate()."""
    for prompt, expected in zip(PROMPTS, plain, strict=True):
        handle = engine.stream(prompt, SAMPLED, **options)
        deltas = list(handle)
        completion = handle.result()[0]
        check_deltas(deltas, completion)
        assert answer(expected) == answer(completion)
        assert answer(expected) == answer(engine.generate([prompt], SAMPLED, **options)[0])
        assert len(deltas) > 3


def test_a_delta_is_a_step(engine):
    """Each delta holds just what one step committed."""
    steps = []
    deltas = list(engine.stream(PROMPTS[0], SAMPLED, on_step=lambda info: steps.append(info.committed), **CHAIN))
    assert steps == [delta.token_ids for delta in deltas]
    assert max(map(len, steps)) > 1


def test_the_first_delta_comes_before_the_end(engine, tools):
    """The first tokens are delivered while the request still runs."""
    gate = tools.Gate(after=2)
    handle = engine.stream(PROMPTS[0], SAMPLED, on_step=gate, **CHAIN)
    first = next(handle)
    gate.wait()
    assert (None, False, 1) == (first.finish_reason, handle.done, engine.stats.num_running)
    gate.open()
    assert FinishReason.LENGTH == handle.result()[0].finish_reason
    assert handle.done


def test_several_samples_in_one_stream(engine):
    """n = 3: deltas of all samples come in one stream, told apart by index."""
    params = SAMPLED.replace(n=3)
    handle = engine.stream(PROMPTS[1], params, **CHAIN)
    deltas = list(handle)
    completions = handle.result()
    assert [0, 1, 2] == [completion.index for completion in completions]
    for completion in completions:
        check_deltas(deltas, completion)
    expected = engine.generate([PROMPTS[1]], params, speculation=False)
    assert [answer(c) for c in expected] == [answer(c) for c in completions]


@pytest.mark.parametrize("options", [{"speculation": False}, CHAIN])
def test_logprobs_of_every_delta(engine, options):
    """Logprobs come with their tokens: one per token, in order, the delta's own, equal to those of plain decoding."""
    params = SAMPLED.replace(logprobs=True, top_logprobs=3, repetition_penalty=1.2, top_k=20)
    handle = engine.stream(PROMPTS[1], params, **options)
    deltas = list(handle)
    completion = handle.result()[0]
    for delta in deltas:
        assert delta.token_ids == tuple(logprob.token_id for logprob in delta.logprobs)
    together = tuple(logprob for delta in deltas for logprob in delta.logprobs)
    assert completion.logprobs == together
    plain = engine.generate([PROMPTS[1]], params, speculation=False)[0]
    assert plain.logprobs == completion.logprobs
    assert all(len(logprob.top) == 3 for logprob in together)
    assert all(logprob.top[0][1] >= logprob.logprob for logprob in together)


def test_logprobs_of_tokens_that_a_stop_cut_away_are_not_reported(engine, plain):
    """A stop id in mid-run leaves as many logprobs as tokens."""
    for at in range(1, 12):
        token_id = plain[0].token_ids[at]
        count = plain[0].token_ids.index(token_id) + 1
        params = SAMPLED.replace(logprobs=True, stop_token_ids=[token_id])
        completion = engine.generate([PROMPTS[0]], params, **CHAIN)[0]
        assert plain[0].token_ids[:count] == tuple(logprob.token_id for logprob in completion.logprobs)


def test_no_logprobs_unless_asked_for(engine):
    """Without logprobs=True there are none, in deltas or completions, whatever a batch mate asked for."""
    other = engine.submit(PROMPTS[1], SAMPLED.replace(logprobs=True))
    handle = engine.stream(PROMPTS[0], SAMPLED)
    assert {None} == {delta.logprobs for delta in handle}
    assert handle.result()[0].logprobs is None
    assert 30 == len(other.result()[0].logprobs)


def test_result_after_partial_iteration(engine, plain):
    """result() after some deltas is the whole completion, and iteration is over then."""
    handle = engine.stream(PROMPTS[0], SAMPLED, **CHAIN)
    next(handle)
    next(handle)
    assert answer(plain[0]) == answer(handle.result()[0])
    assert [] == list(handle)
    assert answer(plain[0]) == answer(handle.result()[0])


def test_a_handle_in_a_with_block(engine, tools, plain):
    """Leaving the block early cancels the request, leaving it late does no harm."""
    with engine.stream(PROMPTS[0], SAMPLED, **CHAIN) as handle:
        completion = handle.result()[0]
    assert answer(plain[0]) == answer(completion)
    gate = tools.Gate()
    with engine.stream(PROMPTS[0], SAMPLED.replace(max_tokens=400), on_step=gate) as handle:
        gate.wait()
    gate.open()
    completion = handle.result()[0]
    assert (FinishReason.CANCELLED, 1) == (completion.finish_reason, len(completion.token_ids))
    tools.at_rest(engine)


def test_an_exception_in_a_with_block_cancels(engine, tools):
    """An exception that leaves the block goes through and ends the request."""
    gate = tools.Gate()

    def consume():
        with engine.stream(PROMPTS[0], SAMPLED.replace(max_tokens=400), on_step=gate) as handle:
            kept.append(handle)
            gate.wait()
            raise KeyError("the caller's")

    kept = []
    with pytest.raises(KeyError, match="the caller's"):
        consume()
    gate.open()
    assert FinishReason.CANCELLED == kept[0].result()[0].finish_reason


async def test_async_iteration(engine, plain):
    """`async for` gives the same deltas; aresult() and agenerate() the same completions."""
    handle = engine.astream(PROMPTS[0], SAMPLED, **CHAIN)
    deltas = [delta async for delta in handle]
    completion = (await handle.aresult())[0]
    check_deltas(deltas, completion)
    assert answer(plain[0]) == answer(completion)
    assert [] == [delta async for delta in handle]
    assert [answer(c) for c in plain] == [answer(c) for c in await engine.agenerate(PROMPTS, SAMPLED, **CHAIN)]


async def test_async_result_after_partial_iteration(engine, plain):
    """aresult() after some deltas is the whole completion."""
    async with engine.astream(PROMPTS[2], SAMPLED, **CHAIN) as handle:
        await anext(handle)
        await anext(handle)
        assert answer(plain[2]) == answer((await handle.aresult())[0])


async def test_what_an_abandoned_wait_leaves_can_be_read(engine, tools, plain):
    """Whoever waits for the end lets the text wait too; given up, none of it is missing."""
    gate = tools.Gate(after=4)
    handle = engine.stream(PROMPTS[0], SAMPLED, on_step=gate, **CHAIN)
    waiting = asyncio.create_task(handle.aresult())
    await asyncio.to_thread(gate.wait)
    waiting.cancel()
    gate.open()
    deltas = [delta async for delta in handle]
    completion = (await handle.aresult())[0]
    check_deltas(deltas, completion)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert completion.text
    assert plain[0].text.startswith(completion.text)


async def test_many_streams_in_one_event_loop(engine, plain):
    """Streams that run side by side in one loop do not mix."""

    async def consume(prompt):
        return [delta async for delta in engine.astream(prompt, SAMPLED, **CHAIN)]

    streams = await asyncio.gather(*(consume(prompt) for prompt in PROMPTS * 3))
    for expected, deltas in zip(plain * 3, streams, strict=True):
        check_deltas(deltas, expected)


def test_several_event_loops_and_threads_at_once(engine, plain):
    """Event loops in four threads, blocking iteration in four others, all on one engine, all at once."""
    barrier = threading.Barrier(8)

    async def consume(prompt):
        barrier.wait(30)
        return [delta async for delta in engine.astream(prompt, SAMPLED, **CHAIN)]

    def in_a_loop(index):
        return asyncio.run(consume(PROMPTS[index]))

    def blocking(index):
        barrier.wait(30)
        return list(engine.stream(PROMPTS[index], SAMPLED, **CHAIN))

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(work, i) for i in range(4) for work in (in_a_loop, blocking)]
        for i, stream in enumerate(streams):
            check_deltas(stream.result(60), plain[i // 2])


async def test_the_event_loop_is_not_blocked(tools):
    """Every forward of the model waits for a tick of the event loop: a loop that was blocked would never end this."""
    tick = threading.Semaphore(0)
    forwards = []

    def slow(runner, spans):
        assert tick.acquire(timeout=20)
        forwards.append(len(spans))

    async def tick_on():
        while True:
            tick.release()
            await asyncio.sleep(0.001)

    with tools.engine_of(tools.family(), max_batch=2) as engine:
        tools.runner_of(engine, "target").hook = slow
        ticking = asyncio.create_task(tick_on())
        deltas = [delta async for delta in engine.astream([1, 2], max_tokens=12, speculation=False)]
        completions = await engine.agenerate([[1, 2], [3]], max_tokens=12, speculation=False)
        result = await engine.submit([1, 2], max_tokens=12, speculation=False).aresult()
        ticking.cancel()
        for _ in range(8):
            tick.release()
    assert completions[0].token_ids == tuple(i for delta in deltas for i in delta.token_ids)
    assert completions[0].token_ids == result[0].token_ids
    assert len(forwards) >= 36


def test_a_consumer_whose_event_loop_is_gone_does_not_stop_the_engine(engine, tools, plain):
    """A loop that is closed while it waits for a delta leaves the worker unharmed."""
    gate = tools.Gate()

    async def leave():
        handle = engine.astream(PROMPTS[0], SAMPLED.replace(max_tokens=400), on_step=gate)
        await anext(handle)
        waiting = asyncio.ensure_future(anext(handle))
        await asyncio.sleep(0)
        return handle, waiting

    loop = asyncio.new_event_loop()
    handle, waiting = loop.run_until_complete(leave())
    loop.close()
    gate.open()
    assert answer(plain[1]) == answer(engine.generate([PROMPTS[1]], SAMPLED, **CHAIN)[0])
    handle.cancel()
    assert FinishReason.CANCELLED == handle.result()[0].finish_reason
    waiting._log_destroy_pending = False
    tools.at_rest(engine)


def test_a_stream_keeps_its_engine_alive(tools):
    """An engine that nobody holds but its stream runs until the stream ends, then its thread goes."""
    engine = tools.engine_of(tools.family(), max_batch=1)
    thread = engine._worker._thread
    expected = engine.generate([[1, 2]], max_tokens=20)[0].token_ids
    handle = engine.stream([1, 2], max_tokens=20)
    del engine
    gc.collect()
    assert expected == tuple(i for delta in handle for i in delta.token_ids)
    assert thread.is_alive()
    del handle
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_timings_and_guarantee_are_reported(engine):
    """Times are of the right order and consistent, and the completion says what its sameness rests on."""
    completion = engine.generate([PROMPTS[0]], SAMPLED, **CHAIN)[0]
    timings = completion.timings
    assert min(timings.queue_s, timings.prefill_s) >= 0
    assert timings.decode_s > 0
    assert timings.queue_s + timings.prefill_s == pytest.approx(timings.time_to_first_token_s)
    assert (len(completion.token_ids) - 1) / timings.decode_s == pytest.approx(timings.tokens_per_second)
    assert engine.guarantee == completion.guarantee == "bitwise"
