"""LangChain's cache: what it answers is what the model would have said, whole."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseLanguageModel

from langchain_specrouter import ChatSpecRouter, SpecRouterCancelledError, SpecRouterLLM

QUESTION = "go<|assistant|>"  # a text model is scripted to answer behind this mark
ANSWER = " ".join(map(str, range(400)))
BOTH = pytest.mark.parametrize("cls", [ChatSpecRouter, SpecRouterLLM])


@pytest.fixture
def engine(tools):
    """Says numbers, one token after the other."""
    with tools.scripted_engine(lambda prompt: ANSWER, seconds=0.001) as made:
        yield made


def text_of(model: BaseLanguageModel, **kwargs) -> str:
    answer = model.invoke(QUESTION, **kwargs)
    return answer if isinstance(answer, str) else answer.content


@BOTH
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (({}, {}), ({"stop": ["3"]}, {})),  # LangChain writes the call's None over a field of the key
        (({"max_tokens": 3}, {"max_tokens": None}), ({"max_tokens": 9}, {"max_tokens": None})),
        (({"stop": ["3"]}, {"stop": None}), ({"stop": ["5"]}, {"stop": None})),
        (({}, {}), ({}, {"max_tokens": 5})),
        (({}, {"stop": ["3"]}), ({}, {"stop": ["5"]})),
    ],
)
def test_other_settings_are_other_answers(engine, cls, one, other):
    """Whether a field, a call, or a call that leaves the field in force decides."""
    cache = InMemoryCache()
    models = [(cls(engine=engine, **{"max_tokens": 20, **fields}, cache=cache), call) for fields, call in (one, other)]
    plain = [text_of(model.model_copy(update={"cache": False}), **call) for model, call in models]
    assert plain[0] != plain[1]
    assert [text_of(model, **call) for model, call in models] == plain
    before = engine.stats
    assert [text_of(model, **call) for model, call in models] == plain
    assert engine.stats == before  # the cache has answered


def test_what_an_answer_does_not_depend_on_makes_no_other_key(engine):
    """BaseLLM leaves a call's arguments out, and of ours only those come in that decide."""
    cache = InMemoryCache()
    model = SpecRouterLLM(engine=engine, max_tokens=3, cache=cache)
    for call in ({}, {"timeout": 5}, {"on_step": lambda info: None}, {"temperature": None}):
        model.invoke(QUESTION, **call)
    assert len(cache._cache) == 1


def test_template_variables_of_the_model_stay_in_force(engine):
    """A call that gives none does not hide those of the field."""
    cache = InMemoryCache()
    models = [ChatSpecRouter(engine=engine, max_tokens=3, template_kwargs={"x": x}, cache=cache) for x in (1, 2)]
    for model in models:
        model.invoke(QUESTION, template_kwargs=None)
    assert len(cache._cache) == 2


@BOTH
def test_engines_of_the_same_name_do_not_share_answers(engine, tools, cls):
    """They may come from different folders; models on one engine do share."""
    cache = InMemoryCache()
    with tools.scripted_engine(lambda prompt: "something else") as namesake:
        first, second = (text_of(cls(engine=e, max_tokens=5, cache=cache)) for e in (engine, namesake))
        assert (first, second) == (
            text_of(cls(engine=engine, max_tokens=5)),
            text_of(cls(engine=namesake, max_tokens=5)),
        )
        assert first != second
    before = engine.stats
    assert text_of(cls(engine=engine, max_tokens=5, cache=cache)) == first
    assert engine.stats == before


# ---------------------------------------------------------------- answers that were cut off


def closed_soon(engine) -> None:
    """Another thread closes the engine as soon as it has committed a few tokens."""

    def close():
        end = time.monotonic() + 20
        while engine.stats.num_committed_tokens < 5 and time.monotonic() < end:
            time.sleep(0.002)
        engine.close()

    threading.Thread(target=close).start()


@BOTH
@pytest.mark.parametrize("how", ["invoke", "stream", "ainvoke", "astream"])
async def test_an_answer_that_others_cut_off_is_an_error(engine, cls, how):
    """And is not cached as if it were whole."""
    cache = InMemoryCache()
    model = cls(engine=engine, max_tokens=1000, cache=cache)

    async def astream():
        return [chunk async for chunk in model.astream(QUESTION)]

    calls = {
        "invoke": lambda: asyncio.to_thread(model.invoke, QUESTION),
        "stream": lambda: asyncio.to_thread(lambda: list(model.stream(QUESTION))),
        "ainvoke": lambda: model.ainvoke(QUESTION),
        "astream": astream,
    }
    closed_soon(engine)
    with pytest.raises(SpecRouterCancelledError, match="engine was closed") as info:
        await calls[how]()
    assert info.value.partial
    assert ANSWER.startswith(info.value.partial)
    assert not cache._cache
