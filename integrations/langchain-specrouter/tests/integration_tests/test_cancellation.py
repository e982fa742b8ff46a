"""Streams that are left again and again: the engine has all its slots back, and none of the requests goes on."""

from __future__ import annotations

import asyncio

import pytest

from langchain_specrouter import ChatSpecRouter, SpecRouterLLM

QUESTION = "Sam buys 3 boxes of stickers. Each box holds 8. How many?"
LONG = {"max_tokens": 400, "ignore_eos": True}
TOKENS_OF_ONE = 40
"""More than a stream that is left at once commits on average: the rest of its 400 are not computed."""

COUNTS = pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
MODELS = pytest.mark.parametrize("cls", [ChatSpecRouter, SpecRouterLLM])


def assert_idle(engine, tools, tokens_before, count):
    assert tools.settled(engine)
    stats = engine.stats
    assert stats.num_free_slots + stats.num_cached_slots == engine.config.max_batch
    assert stats.num_committed_tokens - tokens_before < TOKENS_OF_ONE * count


@COUNTS
@MODELS
def test_streams_that_are_left(demo_engine, tools, cls, count):
    """Closed after the first chunk, dropped after it, or never begun."""
    model, before = cls(engine=demo_engine, **LONG), demo_engine.stats.num_committed_tokens
    for i in range(count):
        stream = model.stream(f"{i}: {QUESTION}")
        if i % 3:
            next(stream)
        if i % 3 == 1:
            stream.close()
    del stream
    assert_idle(demo_engine, tools, before, count)


@COUNTS
@MODELS
async def test_async_streams_that_are_left(demo_engine, tools, cls, count):
    """Ten at a time, each closed after its first chunk or cancelled with its task, early or late."""
    model, before = cls(engine=demo_engine, **LONG), demo_engine.stats.num_committed_tokens

    async def leave(i):
        stream = model.astream(f"{i}: {QUESTION}")
        await anext(stream)
        await stream.aclose()

    async def cancel(i):
        async def consume():
            async for _ in model.astream(f"{i}: {QUESTION}"):
                pass

        task = asyncio.ensure_future(consume())
        await asyncio.sleep(0.002 * (i % 7))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for start in range(0, count, 10):
        await asyncio.gather(*((cancel if i % 2 else leave)(i) for i in range(start, start + 10)))
    assert await asyncio.to_thread(tools.settled, demo_engine)
    assert_idle(demo_engine, tools, before, count)
