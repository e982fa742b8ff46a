"""Calls that the engine itself would have to answer, and engines, handles and processes that several use at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from specrouter_llm import FinishReason, SamplingParams
from specrouter_llm.errors import CallbackError, EngineClosedError, ReentrantCallError, SpecRouterError

LONG = SamplingParams(max_tokens=400)
SHORT = SamplingParams(max_tokens=8)


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine, handle: engine.target_logits([1, 2]),
        lambda engine, handle: engine.generate([[1, 2]], SHORT),
        lambda engine, handle: asyncio.run(engine.agenerate([[1, 2]], SHORT)),
        lambda engine, handle: handle.result(),
        lambda engine, handle: list(handle),
    ],
    ids=["target_logits", "generate", "agenerate", "result", "iteration"],
)
def test_a_callback_that_waits_for_the_engine_fails_and_hangs_nobody(tools, ask):
    """It runs in the engine's thread: nobody else could ever answer."""
    engine = tools.engine_of(tools.family(), max_batch=2)
    other, handles = engine.submit([1, 3], LONG), []

    def on_step(info):
        while not handles:
            time.sleep(0.001)
        ask(engine, handles[0])

    handles.append(engine.submit([1, 2], LONG, on_step=on_step))
    (completion,) = _within(handles[0].result)
    assert isinstance(completion.error, CallbackError)
    assert "on_step" in str(completion.error)
    assert "another thread" in str(completion.error)
    assert _within(other.result)[0].finish_reason is FinishReason.LENGTH
    _within(engine.close)


def test_a_refused_wait_ends_nothing(tools):
    """A callback that looks for another request's result, and lives with not getting it."""
    with tools.engine_of(tools.family(), max_batch=2) as engine:
        other, refused = engine.submit([1, 3], LONG), []

        def on_step(info):
            try:
                other.result()
            except ReentrantCallError as error:
                refused.append(error)

        assert engine.submit([1, 2], SHORT, on_step=on_step).result()[0].finish_reason is FinishReason.LENGTH
        assert refused
        assert other.result()[0].finish_reason is FinishReason.LENGTH


def test_what_a_callback_may_ask(tools):
    """Nothing that waits."""
    engine = tools.engine_of(tools.family(), max_batch=2)
    asked = []

    def on_step(info):
        asked.append((engine.stats.num_running, engine.closed))
        if len(asked) == 1:
            asked.append(engine.submit([4, 5], SHORT))

    engine.generate([[1, 2]], SHORT, on_step=on_step)
    assert asked[0] == (1, False)
    assert len(_within(asked[1].result)[0].token_ids) == 8
    engine.close()


@pytest.mark.parametrize("token_ids", [[], [-3], [10**9], [1, 32], "text", [5] * 600])
def test_logits_of_what_is_no_context(tools, token_ids):
    with tools.engine_of(tools.family()) as engine, pytest.raises(SpecRouterError):
        engine.target_logits(token_ids)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda ids: list(np.array(ids))])
def test_logits_of_a_whole_context(tools, kind):
    """In any kind of whole numbers."""
    ids = [5] * 512
    with tools.engine_of(tools.family(), max_context=512) as engine:
        assert torch.equal(engine.target_logits(kind(ids)), engine.target_logits(ids))


def test_close_waits_also_for_one_that_another_thread_has_begun(tools):
    engine = tools.engine_of(tools.family(), max_batch=1)
    gate = tools.Gate()
    handle = engine.submit([1, 2], LONG, on_step=gate)
    gate.wait()
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for closer in closers:
        closer.start()
        time.sleep(0.05)
    assert engine.closed
    assert all(closer.is_alive() for closer in closers)
    gate.open()
    for closer in closers:
        closer.join(10)
    assert not engine._worker._thread.is_alive()
    assert handle.result()[0].finish_reason is FinishReason.CANCELLED


def test_leaving_an_engine_that_a_callback_has_closed_waits_for_its_end(tools):
    with tools.engine_of(tools.family()) as engine:
        (completion,) = engine.generate([[1, 2]], LONG, on_step=lambda info: engine.close())
    assert completion.finish_reason is FinishReason.CANCELLED
    assert not engine._worker._thread.is_alive()


def test_a_process_ends_well_after_a_callback_has_closed_its_engine():
    """Nobody joins the thread but the end of the process."""
    code = (
        "from specrouter_llm import SpecRouter\n"
        "engine = SpecRouter.from_pretrained('demo', policy='fixed', progress=False)\n"
        "handle = engine.submit('Once upon a time', max_tokens=30, on_step=lambda info: engine.close())\n"
        "print(handle.result()[0].finish_reason.value)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "cancelled"), run.stderr


@pytest.mark.parametrize("first", ["result", "next"])
def test_two_threads_that_wait_for_one_request_both_get_it(tools, first):
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        gate = tools.Gate()
        handle = engine.submit([1, 2], SHORT, on_step=gate)
        gate.wait()
        found = []
        wait = [handle.result, handle.result if first == "result" else lambda: (list(handle), handle.result())[1]]
        waiting = [threading.Thread(target=lambda call=call: found.append(call())) for call in wait]
        for thread in waiting:
            thread.start()
        time.sleep(0.05)
        gate.open()
        for thread in waiting:
            thread.join(10)
        assert len(found) == 2
        assert found[0] == found[1]


async def test_two_tasks_that_wait_for_one_request_both_get_it(tools):
    with tools.engine_of(tools.family()) as engine:
        handle = engine.submit([1, 2], SHORT)
        first, second = await asyncio.wait_for(asyncio.gather(handle.aresult(), handle.aresult()), 10)
        assert first == second


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_that_the_engine_stayed_behind(tools):
    with tools.engine_of(tools.family()) as engine:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for call in (lambda: engine.generate([[1, 2]], SHORT), lambda: engine.target_logits([1, 2])):
                    try:
                        call()
                    except EngineClosedError as error:
                        os.write(writer, f"{error}\n".encode())
                engine.close()
                os.write(writer, b"closed")
            finally:
                os._exit(0)
        os.close(writer)
        told = _within(os.fdopen(reader).read)
        os.waitpid(child, 0)
        assert told.count("fork") == 2
        assert told.endswith("closed")
        assert len(engine.generate([[1, 2]], SHORT)[0].token_ids) == 8


def _within(call):
    """What the call returns or raises; fails if it hangs."""
    found = []

    def run():
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it hangs"
    value, error = found[0]
    if error is not None:
        raise error
    return value
