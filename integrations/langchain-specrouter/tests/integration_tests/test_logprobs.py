"""Log-probabilities are told to whom asks for them, in OpenAI's form."""

from __future__ import annotations

import json

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage

from langchain_specrouter import ChatSpecRouter, SpecRouterLLM

QUESTION = "Sam buys 3 boxes of stickers. Each box holds 8. How many?"


def check(told, text, tops):
    """One entry per token; they spell the answer, and the top ones are sorted."""
    assert json.loads(json.dumps(told)) == told
    entries = told["content"]
    assert len(entries) == 12
    assert "".join(entry["token"] for entry in entries) == text
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == text
    for entry in entries:
        top = entry["top_logprobs"]
        assert len(top) == tops
        assert entry["logprob"] <= 0
        assert [t["logprob"] for t in top] == sorted((t["logprob"] for t in top), reverse=True)
        plain = {key: entry[key] for key in ("token", "bytes", "logprob")}
        assert top == [] or plain == top[0]  # greedy: the likeliest was chosen


@pytest.mark.parametrize("streaming", [None, True])
@pytest.mark.parametrize("tops", [0, 3])
async def test_messages(demo_engine, streaming, tops):
    """Of every way to ask; a stream's are on its last chunk, once."""
    model = ChatSpecRouter(engine=demo_engine, max_tokens=12, streaming=streaming, logprobs=True, top_logprobs=tops)
    message = model.invoke(QUESTION)
    check(message.response_metadata["logprobs"], message.content, tops)
    assert (await model.ainvoke(QUESTION)).response_metadata["logprobs"] == message.response_metadata["logprobs"]
    for chunks in ([*model.stream(QUESTION)], [chunk async for chunk in model.astream(QUESTION)]):
        assert ["logprobs" in chunk.response_metadata for chunk in chunks[:-1]] == [False] * (len(chunks) - 1)
        assert chunks[-1].response_metadata["logprobs"] == message.response_metadata["logprobs"]


def test_of_each_of_several_answers(demo_engine):
    model = ChatSpecRouter(engine=demo_engine, temperature=2.0, seed=2, max_tokens=12)
    (answers,) = model.generate([[HumanMessage(QUESTION)]], n=3, logprobs=True).generations
    for answer in answers:
        told = answer.message.response_metadata["logprobs"]["content"]
        assert "".join(entry["token"] for entry in told).startswith(answer.text)


class Infos(BaseCallbackHandler):
    def __init__(self):
        self.seen = []

    def on_llm_end(self, response, **kwargs):
        self.seen.append(response.generations[0][0])


async def test_texts(demo_engine):
    llm, infos = SpecRouterLLM(engine=demo_engine, max_tokens=12, logprobs=True, top_logprobs=2), Infos()
    config = {"callbacks": [infos]}
    llm.invoke("Once upon a time", config)
    list(llm.stream("Once upon a time", config))
    await llm.ainvoke("Once upon a time", config)
    assert [chunk async for chunk in llm.astream("Once upon a time", config)]
    first, *others = [generation.generation_info["logprobs"] for generation in infos.seen]
    check(first, infos.seen[0].text, 2)
    assert others == [first] * 3


def test_nothing_unless_asked_for(demo_engine):
    infos = Infos()
    assert "logprobs" not in ChatSpecRouter(engine=demo_engine, max_tokens=3).invoke("hi").response_metadata
    SpecRouterLLM(engine=demo_engine, max_tokens=3).invoke("hi", {"callbacks": [infos]})
    assert "logprobs" not in infos.seen[0].generation_info
