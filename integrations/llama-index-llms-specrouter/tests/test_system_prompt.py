"""`system_prompt` and `query_wrapper_prompt`, fields of every LLM: where they reach the model, and that they do so once."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

PROMPTS = {"system_prompt": "Be brief.", "query_wrapper_prompt": PromptTemplate("Q: {query_str}")}


def shown(prompt):
    """What the model says: the prompt it was given, its marks in brackets."""
    return prompt.replace("<|", "[").replace("|>", "]")


def completions(llm, prompt, **kwargs):
    """From all four endpoints."""

    async def streamed():
        return [response.text async for response in await llm.astream_complete(prompt, **kwargs)][-1]

    return {
        str(llm.complete(prompt, **kwargs)),
        str(asyncio.run(llm.acomplete(prompt, **kwargs))),
        [response.text for response in llm.stream_complete(prompt, **kwargs)][-1],
        asyncio.run(streamed()),
    }


def test_a_completion_has_both(scripted):
    """As messages: what the system says, and the wrapped prompt of the user."""
    llm = scripted(shown, **PROMPTS)
    assert completions(llm, "Hello") == {"[system]Be brief.[end][user]Q: Hello[end][assistant]"}


def test_a_formatted_prompt_has_neither(scripted):
    """LlamaIndex formats with them itself, and says so."""
    llm = scripted(shown, **PROMPTS)
    assert completions(llm, "Hello<|assistant|>", formatted=True) == {"Hello[assistant]"}


def test_without_a_template_they_are_text(scripted):
    """In front of the wrapped prompt, which may be the model's own form of a turn."""
    wrapper = PromptTemplate("<|user|>{query_str}<|assistant|>")
    llm = scripted(shown, engine_options={"chat_template": ""}, system_prompt="Be brief.", query_wrapper_prompt=wrapper)
    assert completions(llm, "Hello") == {"Be brief.\n\n[user]Hello[assistant]"}


def test_completion_to_prompt_formats_them_too(scripted):
    """Its answer is what the model gets: nothing is put in front of a prompt that may begin with a mark."""
    llm = scripted(shown, completion_to_prompt=lambda text: f"<|user|>{text}<|assistant|>", **PROMPTS)
    assert completions(llm, "Hello") == {"[user]Be brief.\n\nQ: Hello[assistant]"}


@pytest.mark.parametrize("fields", [PROMPTS, {"system_prompt": "Be brief."}])
def test_a_prediction_has_the_system_prompt_once(scripted, fields):
    """LlamaIndex puts it in front of the messages of a prompt template."""
    assert scripted(shown, **fields).predict(PromptTemplate("Hello")) == (
        "[system]Be brief.[end][user]Hello[end][assistant]"
    )


class Number(BaseModel):
    a: int


def test_a_structured_prediction_has_the_system_prompt_once(scripted):
    seen = []
    llm = scripted(lambda prompt: seen.append(shown(prompt)) or '{"a":1}', **PROMPTS)
    llm.structured_predict(Number, PromptTemplate("Hello"))
    llm.as_structured_llm(Number).complete("Hello")
    assert set(seen) == {"[system]Be brief.[end][user]Hello[end][assistant]"}


def test_a_chat_is_what_it_says(scripted):
    """Who gives messages gives all of them: agents, chat engines and `predict` have put in what the system says."""
    answer = scripted(shown, **PROMPTS).chat([ChatMessage(role="user", content="Hello")])
    assert answer.message.content == "[user]Hello[end][assistant]"
