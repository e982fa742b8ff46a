"""Cancelling in every way and at every moment frees the slot within one step and leaves everybody else alone."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from specrouter_llm import FinishReason, Handle, SamplingParams
from specrouter_llm.engine.request import Request, Sample
from specrouter_llm.errors import EngineClosedError, QueueFullError
from specrouter_llm.state.row import Row

LONG = SamplingParams(temperature=1.0, seed=7, max_tokens=400)
SHORT = LONG.replace(max_tokens=25)
CHAIN = {"chain": ["draft", "middle"], "windows": [3, 5]}


def drop(holder):
    """The last reference to the handle goes."""
    holder.pop()


def break_out(holder):
    """A for loop that is left after its first delta."""
    for _ in holder.pop():
        break


def cancel(holder):
    holder[0].cancel()


def close(holder):
    holder[0].close()


def aclose(holder):
    asyncio.run(holder[0].aclose())


def leave_with(holder):
    with holder[0]:
        pass


def leave_async_with(holder):
    async def leave():
        async with holder[0]:
            pass

    asyncio.run(leave())


def cancel_a_waiting_task(holder):
    """A task that waits for the result is cancelled."""

    async def wait_and_cancel():
        task = asyncio.create_task(holder[0].aresult())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(wait_and_cancel())


def time_out_a_waiting_task(holder):
    """`asyncio.wait_for` on the result gives up."""

    async def wait():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(holder[0].aresult(), 0.01)

    asyncio.run(wait())


WAYS = [
    drop,
    break_out,
    cancel,
    close,
    aclose,
    leave_with,
    leave_async_with,
    cancel_a_waiting_task,
    time_out_a_waiting_task,
]


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where a shell has told the process to ignore it, as for jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_interrupting_a_call_cancels_all_its_prompts(tools):
    """Ctrl-C in `generate`: shells and notebooks keep the traceback, and with it the handles, that nobody would cancel."""
    begun = threading.Event()

    def on_step(info):
        begun.set()

    def interrupt():
        begun.wait()
        signal.raise_signal(signal.SIGINT)  # handled by the main thread, which waits

    with tools.engine_of(tools.family(), max_batch=2) as engine:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt) as kept:
            engine.generate([[number] for number in range(1, 9)], LONG, on_step=on_step, ignore_eos=True)
        engine.generate([[9]], max_tokens=1)  # all that was cancelled before has ended when this has
        assert (0, 0) == (engine.stats.num_running, engine.stats.num_waiting)
        assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_every_way_frees_the_slot_within_one_step(tools, way, step):
    """Cancelled while step k ends, no step k + 1 is run for the request, and its slot goes to the next one."""
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        gate = tools.Gate(after=step)
        holder = [engine.stream([1, 2, 3], LONG, on_step=gate, **CHAIN)]
        gate.wait()
        way(holder)
        gate.open()
        following = engine.generate([[4, 5]], max_tokens=1)[0]
        assert FinishReason.LENGTH == following.finish_reason
        assert (step + 1, 2) == (engine.stats.num_steps, engine.stats.num_finished)
        if holder:
            completion = holder[0].result()[0]
            assert (FinishReason.CANCELLED, step) == (completion.finish_reason, completion.stats.num_target_steps)
        tools.at_rest(engine)


def test_what_was_committed_before_is_kept(tools):
    """A cancelled completion holds the first tokens of what it would have been."""
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        whole = engine.generate([[1, 2, 3]], LONG, speculation=False)[0].token_ids
        gate = tools.Gate(after=6)
        handle = engine.stream([1, 2, 3], LONG, on_step=gate, **CHAIN)
        gate.wait()
        handle.cancel()
        gate.open()
        deltas = list(handle)
        completion = handle.result()[0]
    assert whole[: len(completion.token_ids)] == completion.token_ids
    assert completion.token_ids == tuple(i for delta in deltas for i in delta.token_ids)
    assert 6 < len(completion.token_ids) < len(whole)
    assert FinishReason.CANCELLED == deltas[-1].finish_reason
    assert completion.error is None


def test_cancelled_before_the_first_token(tools):
    """Cancelled while the first forward runs: at most the token of that very step comes out."""
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        reached, go_on = threading.Event(), threading.Event()

        def hook(runner, spans):
            reached.set()
            assert go_on.wait(30)

        runner = tools.runner_of(engine, "target")
        runner.hook = hook
        handle = engine.submit([1, 2, 3], LONG)
        assert reached.wait(30)
        handle.cancel()
        go_on.set()
        completion = handle.result()[0]
        assert (FinishReason.CANCELLED, 1) == (completion.finish_reason, len(completion.token_ids))
        assert (1, 1) == (runner.num_forwards, engine.stats.num_steps)
        tools.at_rest(engine)


def test_cancelled_during_chunked_prefill(tools):
    """A long prompt that takes in chunks stops after the chunk that it is at; no token comes out."""
    prompt = [i % 29 for i in range(100)]
    with tools.engine_of(tools.family(), max_batch=2, prefill_chunk=8) as engine:
        runner = tools.runner_of(engine, "target")
        reached, go_on = threading.Event(), threading.Event()

        def hook(runner, spans):
            if runner.num_forwards == 3:
                reached.set()
                assert go_on.wait(30)

        runner.hook = hook
        handle = engine.submit(prompt, LONG, **CHAIN)
        assert reached.wait(30)
        handle.cancel()
        go_on.set()
        completion = handle.result()[0]
        assert (FinishReason.CANCELLED, ()) == (completion.finish_reason, completion.token_ids)
        assert (4, 0) == (runner.num_forwards, engine.stats.num_steps)
        tools.at_rest(engine)
        # What was taken in is reused by the next request with the same beginning.
        again = engine.generate([prompt], SHORT, **CHAIN)[0]
        assert 32 == again.usage.cached_tokens
        assert again.token_ids == engine.generate([prompt], SHORT, speculation=False)[0].token_ids


def test_cancelled_while_waiting_in_the_queue(tools):
    """A request that never got a slot ends without a token and without a step."""
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        gate = tools.Gate()
        first = engine.submit([1, 2, 3], SHORT, on_step=gate)
        gate.wait()
        waiting = [engine.submit([4, i], SHORT.replace(n=2)) for i in range(3)]
        assert (1, 6) == (engine.stats.num_running, engine.stats.num_waiting)
        waiting[0].cancel()
        waiting[2].cancel()
        gate.open()
        for handle in (waiting[0], waiting[2]):
            for completion in handle.result():
                assert (FinishReason.CANCELLED, (), "") == (
                    completion.finish_reason,
                    completion.token_ids,
                    completion.text,
                )
                assert (2, 0, 0) == (
                    completion.usage.prompt_tokens,
                    completion.usage.completion_tokens,
                    completion.stats.num_target_steps,
                )
        assert [25, 25] == [len(completion.token_ids) for completion in waiting[1].result()]
        assert 25 == len(first.result()[0].token_ids)
        tools.at_rest(engine)


@pytest.mark.parametrize("max_batch", [2, 4])
def test_all_samples_of_a_request_are_cancelled(tools, max_batch):
    """n = 4: running and waiting samples end together."""
    with tools.engine_of(tools.family(), max_batch=max_batch) as engine:
        gate = tools.Gate(after=3)
        handle = engine.submit([1, 2, 3], LONG.replace(n=4), on_step=gate, **CHAIN)
        gate.wait()
        handle.cancel()
        gate.open()
        completions = handle.result()
        assert [FinishReason.CANCELLED] * 4 == [completion.finish_reason for completion in completions]
        assert [0, 1, 2, 3] == [completion.index for completion in completions]
        assert engine.stats.num_steps <= 3
        tools.at_rest(engine)


def test_cancelling_what_has_ended_does_nothing(tools):
    """cancel() and close() after the end, twice, change neither the completion nor anybody else."""
    with tools.engine_of(tools.family(), max_batch=2) as engine:
        handle = engine.submit([1, 2, 3], SHORT)
        before = handle.result()
        handle.cancel()
        handle.close()
        handle.cancel()
        assert before == handle.result()
        assert [25] == [len(c.token_ids) for c in engine.generate([[1, 2, 3]], SHORT)]
        assert 2 == engine.stats.num_finished


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_batch_mates_are_unaffected(tools, step):
    """Mates of a cancelled request, running and waiting, say what they say in a run without it."""
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5, 3], [5, 8, 9]]
    with tools.engine_of(tools.family(), max_batch=4) as engine:
        expected = [c.token_ids for c in engine.generate(prompts, SHORT, **CHAIN)]
    with tools.engine_of(tools.family(), max_batch=3, prefill_chunk=16) as engine:
        gate = tools.Gate(after=step)
        victims = [
            engine.submit(prompts[0], LONG, on_step=gate, **CHAIN),
            engine.submit([i % 30 for i in range(200)], LONG, **CHAIN),
        ]
        mates = [engine.submit(prompt, SHORT, **CHAIN) for prompt in prompts]
        gate.wait()
        for victim in victims:
            victim.cancel()
        gate.open()
        assert expected == [handle.result()[0].token_ids for handle in mates]
        assert [FinishReason.CANCELLED] * 2 == [victim.result()[0].finish_reason for victim in victims]
        tools.at_rest(engine)


async def test_a_cancelled_agenerate_cancels_all_its_requests(tools):
    """Cancelling the task of agenerate() ends every request of the call, the waiting ones too."""
    with tools.engine_of(tools.family(), max_batch=2, max_queue=4) as engine:
        gate = tools.Gate()
        task = asyncio.create_task(engine.agenerate([[1, i] for i in range(12)], LONG, on_step=gate))
        await asyncio.to_thread(gate.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        assert [25] == [len(c.token_ids) for c in await engine.agenerate([[1, 2]], SHORT)]
        tools.at_rest(engine)


def test_cancelled_requests_leave_their_place_in_the_queue_at_once(tools):
    """Whoever comes next need not wait for the running step to end before the queue has room."""
    with tools.engine_of(tools.family(), max_batch=1, max_queue=2) as engine:
        gate = tools.Gate()
        running = engine.submit([1, 2], LONG, on_step=gate)
        gate.wait()
        waiting = [engine.submit([1, i], LONG) for i in range(2)]
        with pytest.raises(QueueFullError):
            engine.submit([1, 9], SHORT)
        for handle in (running, *waiting):
            handle.cancel()
        late = [engine.submit([1, i], SHORT) for i in range(2)]
        with pytest.raises(QueueFullError, match="2 samples are waiting"):
            engine.submit([1, 9], SHORT)
        gate.open()
        assert [25, 25] == [len(handle.result()[0].token_ids) for handle in late]
        tools.at_rest(engine)


async def test_an_async_for_that_is_left(tools):
    """Breaking out of `async for` and dropping the stream ends the request."""
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        gate = tools.Gate()
        async for _ in engine.astream([1, 2, 3], LONG, on_step=gate):
            break
        gate.open()
        await engine.agenerate([[4]], max_tokens=1)
        assert (2, 2) == (engine.stats.num_steps, engine.stats.num_finished)
        tools.at_rest(engine)


def open_when_closing(engine, gate):
    """Opens the gate once close() has told the worker to end and waits for it."""
    thread = engine._worker._thread
    join = thread.join
    thread.join = lambda: (gate.open(), join())


def test_closing_the_engine_ends_everything(tools):
    """close(): running, prefilling and waiting requests end as cancelled with what they have, and nobody hangs."""
    engine = tools.engine_of(tools.family(), max_batch=2, prefill_chunk=4)
    gate = tools.Gate(after=2)
    handles = [
        engine.submit([1, 2, 3], LONG, on_step=gate, **CHAIN),
        engine.submit([i % 30 for i in range(300)], LONG, **CHAIN),
        engine.submit([4, 5], LONG.replace(n=2)),
    ]
    thread = engine._worker._thread
    open_when_closing(engine, gate)
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(handle.result) for handle in handles]
        gate.wait()
        engine.close()
        completions = [completion for result in results for completion in result.result(30)]
    assert [FinishReason.CANCELLED] * 4 == [completion.finish_reason for completion in completions]
    assert 2 == completions[0].stats.num_target_steps
    assert [(), (), ()] == [completion.token_ids for completion in completions[1:]]
    assert not thread.is_alive()
    assert engine.closed
    tools.at_rest(engine)
    with pytest.raises(EngineClosedError, match="closed"):
        engine.submit([1], SHORT)


def test_leaving_the_engine_ends_a_stream(tools):
    """A stream that outlives `with engine` ends as cancelled."""
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        gate = tools.Gate()
        handle = engine.stream([1, 2, 3], LONG, on_step=gate)
        gate.wait()
        open_when_closing(engine, gate)
    deltas = list(handle)
    assert FinishReason.CANCELLED == deltas[-1].finish_reason
    assert handle.result()[0].token_ids == tuple(i for delta in deltas for i in delta.token_ids)


def test_closing_from_a_callback(tools):
    """close() in on_step, on the engine's own thread, ends all requests and does not deadlock."""
    engine = tools.engine_of(tools.family(), max_batch=2)
    handles = [engine.submit([1, 2], LONG, on_step=lambda info: engine.close()), engine.submit([1, 3], LONG)]
    assert [FinishReason.CANCELLED] * 2 == [handle.result()[0].finish_reason for handle in handles]
    engine._worker._thread.join(30)
    assert not engine._worker._thread.is_alive()


def _rss_anon_kib():
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def _alive():
    """Objects of the engine's that belong to requests."""
    gc.collect()
    return sum(type(thing) in (Request, Sample, Row, Handle) for thing in gc.get_objects())


GROWTH_KIB = 6144  # measured 0.2 to 2.5 MiB, a plateau; a leak of one noise row per stream would be 31 MiB


def test_a_thousand_cancelled_streams(tools):
    """Before the first token, during prefill, in mid-answer, n > 1: no slot, thread, object or memory is lost."""
    size = 4096
    table = torch.randn(64, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    functions = {name: lambda context: table[context[-1] % 64] for name in ("draft", "middle", "target")}
    long_prompt = [i % 60 for i in range(90)]
    with tools.engine_of(functions, vocab_size=size, max_batch=4, prefill_chunk=16) as engine:
        target = tools.runner_of(engine, "target")

        def before_the_first_token(number):
            engine.stream([1, 2, number % 50], LONG, **CHAIN)  # dropped at once

        def during_prefill(number):
            in_prefill = threading.Event()
            target.hook = lambda runner, spans: (in_prefill.set(), handle.cancel()) if not spans[0].num_logits else None
            handle = engine.submit([number % 60, *long_prompt], LONG, **CHAIN)
            completion = handle.result()[0]
            target.hook = None
            assert in_prefill.is_set()
            assert (FinishReason.CANCELLED, ()) == (completion.finish_reason, completion.token_ids)

        def in_mid_answer(number):
            for count, _ in enumerate(engine.stream([3, number % 50], LONG, **CHAIN)):
                if count == number % 3:
                    break

        def several_samples(number):
            with engine.stream([4, number % 50], LONG.replace(n=3), **CHAIN) as handle:
                if number % 2:
                    next(handle)

        async def cancelled_task(number):
            task = asyncio.create_task(anext(engine.astream([5, number % 50], LONG, **CHAIN)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        ways = [
            before_the_first_token,
            during_prefill,
            in_mid_answer,
            several_samples,
            lambda number: asyncio.run(cancelled_task(number)),
        ]

        def cancel_many(count):
            for number in range(count):
                ways[number % len(ways)](number)
            engine.generate([[9]], max_tokens=1)  # all that was cancelled before has ended when this has

        cancel_many(500)
        alive, memory, threads = _alive(), _rss_anon_kib(), threading.active_count()
        finished = engine.stats.num_finished
        cancel_many(1000)
        assert _alive() - alive < 20  # the worker may still hold the last request
        assert threads >= threading.active_count()
        growth = _rss_anon_kib() - memory
        assert growth < GROWTH_KIB, f"{growth} KiB more after 1,000 cancelled streams"
        assert finished + 1000 + 2 * 200 + 1 == engine.stats.num_finished
        tools.at_rest(engine)
        plain = engine.generate([[1, 2, 3]], SHORT, speculation=False)[0].token_ids
        assert plain == engine.generate([[1, 2, 3]], SHORT, **CHAIN)[0].token_ids
