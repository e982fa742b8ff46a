"""A call ends its request however it is left."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llama_index.llms.specrouter.calls import Call
from llama_index.llms.specrouter.testing.base import eventually


class Handle:
    """Counts how often it is cancelled."""

    cancelled = 0

    def cancel(self):
        self.cancelled += 1


def test_cancelled_while_it_starts():
    """The request is queued in a thread that cannot be stopped: it is cancelled as soon as it exists."""
    handle, loading = Handle(), threading.Event()

    def submit():
        loading.wait(30)
        return handle, None

    async def leave():
        task = asyncio.create_task(Call(submit, lambda result: {}).astart())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert handle.cancelled == 0
        loading.set()

    asyncio.run(leave())
    assert handle.cancelled == 1


def test_a_call_that_never_started():
    """There is nothing to cancel."""
    Call(lambda: (Handle(), None), lambda result: {}).cancel()


def test_an_error_at_the_start_is_raised_there():
    def submit():
        raise KeyError("no")

    with pytest.raises(KeyError):
        Call(submit, lambda result: {}).start()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_raw_prompt_is_cancelled_like_a_chat(scripted, asynchronous):
    llm = scripted("word " * 500, max_tokens=1000)
    prompt = "Q: Count<|assistant|>"

    async def leave():
        stream = await llm.astream_complete(prompt, formatted=True)
        await anext(stream)
        await stream.aclose()

    if asynchronous:
        asyncio.run(leave())
    else:
        stream = llm.stream_complete(prompt, formatted=True)
        next(stream)
        stream.close()
    assert eventually(lambda: llm.engine.stats.num_running == 0)
    assert llm.engine.stats.num_committed_tokens < 500
