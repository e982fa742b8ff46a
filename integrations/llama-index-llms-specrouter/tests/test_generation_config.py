"""What a model recommends acts where neither the fields nor the call say otherwise."""

from __future__ import annotations

import json
import shutil

import pytest
from llama_index.core.base.llms.types import ChatMessage

from llama_index.llms.specrouter import SpecRouterLLM
from specrouter_llm import SpecRouter
from specrouter_llm.pool.demo import demo_folder

MODEL = {"temperature": 0.9, "top_p": 0.95, "top_k": 20}
ASKED = [ChatMessage(role="user", content="Tell me a short story.")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Of an embedded model with recommendations."""
    folder = tmp_path_factory.mktemp("models") / "says"
    shutil.copytree(demo_folder("draft"), folder)
    file = folder / "generation_config.json"
    said = {"do_sample": True, "repetition_penalty": 1.2, **MODEL}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with SpecRouter.from_pretrained(folder, policy="off", progress=False) as engine:
        yield engine


def test_no_field_fills_in_a_value():
    """But max_tokens, which no model says: an empty call says nothing, and None is not said."""
    assert SpecRouterLLM("demo")._arguments({}).params.model_fields_set == {"max_tokens"}
    assert SpecRouterLLM("demo", temperature=0)._arguments({"top_p": None, "top_k": 3}).params.model_fields_set == {
        "max_tokens",
        "temperature",
        "top_k",
    }


@pytest.mark.parametrize("formatted", [None, False, True], ids=["chat", "complete", "raw"])
def test_what_the_model_recommends_acts(engine, formatted):
    """As if it had been said; a field and an argument of a call go before it, a temperature of 0 keeps the penalty."""

    def ask(llm, **call):
        if formatted is None:
            return str(llm.chat(ASKED, **call).message.content)
        return str(llm.complete("Once upon a time", formatted=formatted, **call))

    llm = SpecRouterLLM(engine=engine, max_tokens=24, seed=3)
    sampled = ask(llm)
    assert sampled == ask(
        SpecRouterLLM(engine=engine, max_tokens=24, seed=3, **MODEL, additional_kwargs={"repetition_penalty": 1.2})
    )
    greedy = ask(llm, temperature=0)
    assert greedy == ask(SpecRouterLLM(engine=engine, max_tokens=24, temperature=0), repetition_penalty=1.2)
    others = (ask(llm, temperature=0, repetition_penalty=1.0), ask(llm, seed=4))
    assert len({sampled, greedy, *others}) == 4


def test_an_event_shows_no_temperature_that_does_not_act(engine):
    assert "temperature" not in SpecRouterLLM(engine=engine).to_payload()
    assert SpecRouterLLM(engine=engine, temperature=0).to_payload()["temperature"] == 0
