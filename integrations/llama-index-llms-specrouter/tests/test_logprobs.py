"""Log-probabilities are told to whom asks for them, in LlamaIndex's form: a list for each token, that of the answer first."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.base.llms.types import ChatMessage

from llama_index.llms.specrouter import SpecRouterLLM

QUESTION = "Sam buys 3 boxes of stickers. Each box holds 8. How many?"
MESSAGES = [ChatMessage(role="user", content=QUESTION)]


@pytest.fixture
def llm(demo_engine):
    return SpecRouterLLM(engine=demo_engine, max_tokens=12)


def check(logprobs, text, per_token):
    assert [len(token) for token in logprobs] == [per_token] * 12
    assert "".join(token[0].token for token in logprobs) == text
    assert bytes(byte for token in logprobs for byte in token[0].bytes).decode() == text
    for token in logprobs:
        assert [p.logprob for p in token] == sorted((p.logprob for p in token), reverse=True)  # greedy
        assert len({p.token for p in token}) == per_token


@pytest.mark.parametrize(("tops", "per_token"), [(0, 1), (1, 1), (3, 3)])
def test_every_endpoint(llm, tops, per_token):
    asked = {"logprobs": True, "top_logprobs": tops}
    chat, text = llm.chat(MESSAGES, **asked), llm.complete(QUESTION, **asked)
    check(chat.logprobs, chat.message.content, per_token)
    assert text.logprobs == chat.logprobs
    raw = llm.complete("Once upon a time", formatted=True, **asked)
    check(raw.logprobs, raw.text, per_token)

    async def streamed(stream):
        return [response async for response in await stream]

    assert asyncio.run(llm.achat(MESSAGES, **asked)).logprobs == chat.logprobs
    assert asyncio.run(llm.acomplete(QUESTION, **asked)).logprobs == chat.logprobs
    for responses in (
        list(llm.stream_chat(MESSAGES, **asked)),
        list(llm.stream_complete(QUESTION, **asked)),
        asyncio.run(streamed(llm.astream_chat(MESSAGES, **asked))),
        asyncio.run(streamed(llm.astream_complete(QUESTION, **asked))),
    ):
        assert {response.logprobs is None for response in responses[:-1]} == {True}
        assert responses[-1].logprobs == chat.logprobs


def test_the_chosen_token_comes_first(llm):
    """Also when it was an unlikely one, which is then not among the likeliest."""
    response = llm.chat(MESSAGES, temperature=3.0, seed=1, logprobs=True, top_logprobs=2)
    assert {len(token) for token in response.logprobs} == {2, 3}
    assert "".join(token[0].token for token in response.logprobs).startswith(response.message.content)


def test_nothing_unless_asked_for(llm):
    assert llm.chat(MESSAGES).logprobs is None
    assert llm.complete(QUESTION).logprobs is None
