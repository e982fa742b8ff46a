"""What a model recommends acts where neither the fields nor the call say otherwise."""

from __future__ import annotations

import json
import shutil

import pytest

from langchain_specrouter import ChatSpecRouter, SpecRouterLLM
from specrouter_llm import SpecRouter
from specrouter_llm.chat import close_shared
from specrouter_llm.pool.demo import demo_folder

MODEL = {"temperature": 0.9, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.2}
QUESTION = "Tell me a short story."
BOTH = pytest.mark.parametrize("cls", [ChatSpecRouter, SpecRouterLLM])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An embedded model with recommendations."""
    folder = tmp_path_factory.mktemp("models") / "says"
    shutil.copytree(demo_folder("draft"), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": True, **MODEL}))
    return str(folder)


@pytest.fixture(scope="module")
def engine(folder):
    with SpecRouter.from_pretrained(folder, policy="off", progress=False) as engine:
        yield engine


def text_of(model, **call):
    answer = model.invoke(QUESTION, **call)
    return answer if isinstance(answer, str) else answer.text


@BOTH
def test_no_field_fills_in_a_value(cls):
    """An empty call says nothing; None is not said, neither as a field nor in a call."""
    assert cls(model="demo")._call(None, {}).params.model_fields_set == set()
    assert cls(model="demo", temperature=None)._call(None, {"top_p": None}).params.model_fields_set == set()
    assert cls(model="demo", top_k=3)._call(None, {"seed": 1}).params.model_fields_set == {"top_k", "seed"}


@BOTH
def test_what_the_model_recommends_acts(engine, cls):
    """As if it had been said; a field and an argument of a call go before it, a temperature of 0 keeps the penalty."""
    model = cls(engine=engine, max_tokens=24, seed=3)
    sampled = text_of(model)
    assert sampled == text_of(cls(engine=engine, max_tokens=24, seed=3, **MODEL))
    greedy = text_of(model, temperature=0)
    plain = {"temperature": 0, "repetition_penalty": 1.0}
    assert greedy == text_of(cls(engine=engine, max_tokens=24, temperature=0, repetition_penalty=1.2))
    assert len({sampled, greedy, text_of(model, **plain), text_of(model, seed=4)}) == 4
    assert text_of(cls(engine=engine, max_tokens=24, **plain)) == text_of(model, **plain)


@BOTH
def test_it_can_be_ignored(folder, engine, cls):
    """By an option of the engine, which makes another engine and another key of LangChain's cache."""
    options = {"policy": "off", "engine_kwargs": {"progress": False}}
    says = cls(model=folder, max_tokens=24, seed=3, **options)
    options["engine_kwargs"] = {"progress": False, "generation_config": "ignore"}
    ignores = cls(model=folder, max_tokens=24, seed=3, **options)
    plain = {"temperature": 0, "repetition_penalty": 1.0}
    assert text_of(ignores) == text_of(cls(engine=engine, max_tokens=24, **plain)) != text_of(says)
    assert says._identifying_params != ignores._identifying_params
    close_shared()


@BOTH
def test_several_answers_need_no_temperature_of_their_own(engine, demo_engine, cls):
    model = cls(engine=engine, max_tokens=24, seed=1, n=3)
    asked = [QUESTION] if cls is SpecRouterLLM else [[("user", QUESTION)]]
    generate = model.generate if cls is SpecRouterLLM else lambda asked: model.generate(_messages(asked))
    assert len({generation.text for generation in generate(asked).generations[0]}) == 3
    with pytest.raises(Exception, match="n > 1 with temperature 0"):
        cls(engine=demo_engine, n=3).invoke(QUESTION)


def _messages(asked):
    from langchain_core.messages import convert_to_messages

    return [convert_to_messages(messages) for messages in asked]


@BOTH
def test_a_trace_shows_no_temperature_that_does_not_act(engine, cls):
    assert "ls_temperature" not in cls(engine=engine)._get_ls_params()
    assert cls(engine=engine, temperature=0.0)._get_ls_params()["ls_temperature"] == 0.0
