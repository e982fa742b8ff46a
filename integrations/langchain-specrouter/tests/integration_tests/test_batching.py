"""Batches of `ChatSpecRouter`: one continuous batch in the engine, separate runs in LangChain."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from langchain_specrouter import SpecRouterInvalidPromptError, SpecRouterStatsHandler


def questions(count):
    return [f"What is {i} plus {i + 1}?" for i in range(count)]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
def test_a_batch_gives_what_single_calls_give(demo, params):
    asked = questions(64)
    alone = [demo.invoke(question, max_tokens=8, **params).content for question in asked]
    assert [answer.content for answer in demo.batch(asked, max_tokens=8, **params)] == alone


def waiting_at_once(engine, gate):
    """How many requests had reached the engine when nothing had been answered."""
    most, end = 0, time.monotonic() + 20
    while time.monotonic() < end:
        stats = engine.stats
        most = max(most, stats.num_running + stats.num_waiting)
        if most == 64:
            break
        time.sleep(0.005)
    gate.set()
    return most


@pytest.mark.parametrize("how", ["batch", "batch_as_completed", "bound", "generate", "abatch", "agenerate"])
def test_all_inputs_are_in_the_engine_before_the_first_is_answered(scripted, how):
    """One continuous batch: 64 inputs are 64 requests at once, whatever the number of cores."""
    gate = threading.Event()
    model = scripted("yes", engine={"gate": gate, "max_batch": 8})
    asked = questions(64)
    calls = {
        "batch": lambda: model.batch(asked),
        "batch_as_completed": lambda: [answer for _, answer in sorted(model.batch_as_completed(asked))],
        "bound": lambda: model.bind(max_tokens=9).batch(asked),
        "generate": lambda: [a[0].message for a in model.generate([[HumanMessage(q)] for q in asked]).generations],
        "abatch": lambda: asyncio.run(model.abatch(asked)),
        "agenerate": lambda: [
            a[0].message for a in asyncio.run(model.agenerate([[HumanMessage(q)] for q in asked])).generations
        ],
    }
    seen = []
    watcher = threading.Thread(target=lambda: seen.append(waiting_at_once(model.engine, gate)))
    watcher.start()
    answers = calls[how]()
    watcher.join()
    assert seen == [64]
    assert [answer.content for answer in answers] == ["yes"] * 64


def test_max_concurrency_is_kept(scripted):
    gate = threading.Event()
    model = scripted("yes", engine={"gate": gate})
    thread = threading.Thread(target=model.batch, args=(questions(20), {"max_concurrency": 3}))
    thread.start()
    time.sleep(0.2)
    stats = model.engine.stats
    gate.set()
    thread.join()
    assert stats.num_running + stats.num_waiting == 3


def test_runs_of_a_batch_are_separate(demo):
    """Each input has its own run, tags and result; an error stays where it belongs."""
    stats = [SpecRouterStatsHandler() for _ in range(3)]
    inputs = ["hi", [], "hello"]
    configs = [{"callbacks": [handler]} for handler in stats]
    good, bad, fine = demo.batch(inputs, configs, return_exceptions=True)
    assert isinstance(good, AIMessage)
    assert isinstance(bad, SpecRouterInvalidPromptError)
    assert isinstance(fine, AIMessage)
    assert [len(handler.by_model) for handler in stats] == [1, 0, 1]
    result = demo.generate([[HumanMessage("hi")], [HumanMessage("hello")]], callbacks=[stats[1]])
    assert [answers[0].message.content for answers in result.generations] == [good.content, fine.content]
    assert stats[1].by_model["demo/target"].num_calls == 2
    assert len({info.run_id for info in result.run}) == 2


def test_an_empty_batch(demo):
    assert demo.batch([]) == []
    assert list(demo.batch_as_completed([])) == []
