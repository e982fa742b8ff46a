"""Structured prediction by a model without a chat template: its prompt is text, and the schema holds all the same."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import TextNode
from pydantic import BaseModel, Field

from llama_index.llms.specrouter.testing.structured import METHODS, Album, predict

ALBUM = '{"title":"Night Train","year":1962,"mood":"calm"}'
WRITER = {"engine_options": {"chat_template": ""}, "completion_to_prompt": lambda text: f"{text}<|assistant|>"}


@pytest.mark.parametrize("method", METHODS)
def test_a_class_is_predicted_from_text(scripted, method):
    """By all four methods, which agree; the prompt is what `predict` makes of it."""
    seen = []
    llm = scripted(lambda prompt: seen.append(prompt) or ALBUM, system_prompt="Be brief.", **WRITER)
    objects = predict(llm, method, Album)
    assert objects[-1] == Album(title="Night Train", year=1962, mood="calm")
    assert (len(objects) > 1) == ("stream" in method)
    assert set(seen) == {"Be brief.\n\nInvent an album about trains. Answer with JSON: title, year, mood.<|assistant|>"}


@pytest.mark.parametrize("method", METHODS)
def test_the_schema_holds_whatever_the_model_says(scripted, method):
    llm = scripted("Once upon a time", engine_options={"chat_template": ""})
    assert isinstance(predict(llm, method, Album, llm_kwargs={"max_tokens": 40})[-1], Album)


def test_messages_become_text(scripted):
    """As LlamaIndex writes them; so do those of a structured LLM."""
    seen = []
    llm = scripted(
        lambda prompt: seen.append(prompt) or '{"a":1}',
        messages_to_prompt=lambda messages: f"Q: {messages[-1].content}<|assistant|>",
        **WRITER,
    )
    prompt = ChatPromptTemplate([ChatMessage(role="user", content="Say {x}")])
    assert llm.structured_predict(Number, prompt, x="one") == Number(a=1)
    assert llm.as_structured_llm(Number).complete("Say two").raw == Number(a=1)
    assert asyncio.run(llm.as_structured_llm(Number).acomplete("Say two")).raw == Number(a=1)
    assert set(seen) == {"Q: Say one<|assistant|>", "Q: Say two<|assistant|>"}


def test_a_query_engine_with_a_class(scripted):
    llm = scripted('{"a":1}', **WRITER)
    engine = SummaryIndex([TextNode(text="One is a number.")]).as_query_engine(llm=llm, output_cls=Number)
    assert engine.query("Which?").response == Number(a=1)


def test_an_answer_that_is_cut_off(scripted):
    """The same words as in a chat."""
    llm = scripted(ALBUM, timeout=1e-9, **WRITER)
    with pytest.raises(ValueError, match="the timeout passed before the Album was complete"):
        llm.structured_predict(Album, PromptTemplate("Invent an album."))


class Number(BaseModel):
    a: int = Field(ge=0, le=9)
