"""Streams that are left again and again: the engine has all its slots back, and none of the requests goes on."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.base.llms.types import ChatMessage

from llama_index.llms.specrouter import SpecRouterLLM
from llama_index.llms.specrouter.testing.base import eventually

QUESTION = "Sam buys 3 boxes of stickers. Each box holds 8. How many?"
TOKENS_OF_ONE = 40
"""More than a stream that is left at once commits on average: the rest of its 400 are not computed."""

COUNTS = pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])


@pytest.fixture
def llm(demo_engine):
    """Checks at the end that its engine is idle."""
    before = demo_engine.stats
    yield SpecRouterLLM(engine=demo_engine, max_tokens=400, additional_kwargs={"ignore_eos": True})
    assert eventually(lambda: (demo_engine.stats.num_running, demo_engine.stats.num_waiting) == (0, 0))
    stats = demo_engine.stats
    assert stats.num_free_slots + stats.num_cached_slots == demo_engine.config.max_batch
    requests = stats.num_finished - before.num_finished
    assert stats.num_committed_tokens - before.num_committed_tokens <= TOKENS_OF_ONE * max(requests, 1)


def message(i):
    return [ChatMessage(role="user", content=f"{i}: {QUESTION}")]


@COUNTS
def test_streams_that_are_left(llm, count):
    """Closed after the first response, dropped after it, or never begun; chats and completions."""
    for i in range(count):
        stream = llm.stream_chat(message(i)) if i % 2 else llm.stream_complete(f"{i}: {QUESTION}")
        if i % 3:
            next(stream)
        if i % 3 == 1:
            stream.close()
    del stream


@COUNTS
def test_async_streams_that_are_left(llm, count):
    """Ten at a time, each closed after its first response or cancelled with its task, early or late."""

    async def leave(i):
        stream = await llm.astream_chat(message(i))
        await anext(stream)
        await stream.aclose()

    async def cancel(i):
        async def consume():
            async for _ in await llm.astream_complete(f"{i}: {QUESTION}"):
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.002 * (i % 7))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def run():
        for start in range(0, count, 10):
            await asyncio.gather(*((cancel if i % 2 else leave)(i) for i in range(start, start + 10)))

    asyncio.run(run())
