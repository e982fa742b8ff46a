"""Tool calls: forced, chosen, streamed, malformed, and inside of an agent."""

from __future__ import annotations

import sys

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_specrouter import ChatSpecRouter


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It is sunny in {city}."


class Report(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=20)
    sunny: bool


def joined(chunks):
    chunks = list(chunks)
    return sum(chunks[1:], start=chunks[0])


def blocks_of(message):
    """All that blocks say, without what identifies them."""
    return [{k: v for k, v in block.items() if k not in ("id", "index")} for block in message.content_blocks]


def calls_of(message):
    return [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 11}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("choice", ["any", "add", "weather"])
def test_a_forced_call_is_well_formed_even_from_a_weak_model(demo_engine, choice, params):
    """Whatever the prompt: the right tool, all arguments, of the right types."""
    model = ChatSpecRouter(engine=demo_engine, max_tokens=60, **params)
    message = model.bind_tools([add, weather], tool_choice=choice, parallel_tool_calls=False).invoke("Hello!")
    (call,) = message.tool_calls
    assert choice in ("any", call["name"])
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert not message.invalid_tool_calls
    if call["name"] == "add":
        assert {name: type(value) for name, value in call["args"].items()} == {"a": int, "b": int}
    else:
        assert set(call["args"]) == {"city"}


def test_none_forbids_calls(scripted, tools):
    model = scripted(tools.tool_text("add", a=1, b=2), max_tokens=40)
    assert model.bind_tools([add]).invoke("1 + 2?").tool_calls
    assert not model.bind_tools([add], tool_choice="none").invoke("1 + 2?").tool_calls


async def test_a_streamed_call_is_the_invoked_one(scripted, tools):
    text = "Let me see.\n" + tools.tool_text("add", a=1, b=2) + "\n" + tools.tool_text("weather", city="Zürich 你好")
    model = scripted(text, max_tokens=120).bind_tools([add, weather])
    invoked = model.invoke("go")
    assert calls_of(invoked) == [("add", {"a": 1, "b": 2}), ("weather", {"city": "Zürich 你好"})]
    assert len({call["id"] for call in invoked.tool_calls}) == 2
    chunks = list(model.stream("go"))
    streamed = joined(chunks)
    assert calls_of(streamed) == calls_of(invoked)
    assert streamed.content == invoked.content
    assert "tool_call" not in streamed.content
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert len(pieces) > 4  # arguments arrive as they are written
    assert [(piece["index"], piece["name"]) for piece in pieces if piece["name"]] == [(0, "add"), (1, "weather")]
    assert all(piece["id"] is None for piece in pieces if not piece["name"])
    assert calls_of(joined([chunk async for chunk in model.astream("go")])) == calls_of(invoked)
    assert calls_of(await model.ainvoke("go")) == calls_of(invoked)


def test_calls_are_blocks_of_their_own_in_v1(scripted, tools):
    model = scripted(tools.tool_text("add", a=1, b=2), max_tokens=60, output_version="v1").bind_tools([add])
    for message in (model.invoke("go"), joined(model.stream("go")), model.stream_events("go", version="v3").output):
        blocks = [block for block in message.content_blocks if block["type"] == "tool_call"]
        assert [(block["name"], block["args"]) for block in blocks] == [("add", {"a": 1, "b": 2})]


@pytest.mark.parametrize("thoughts", ["", "<think>\nI have to add them.\n</think>\n\n"])
@pytest.mark.parametrize("said", ["", "Let me see what the two of them come to.\n"])
@pytest.mark.parametrize("num_calls", [1, 2])
@pytest.mark.parametrize("drafted", [False, True], ids=["token by token", "many tokens in a step"])
async def test_blocks_of_a_stream_are_those_of_the_answer_in_v1(
    scripted, tools, monkeypatch, thoughts, said, num_calls, drafted
):
    """Text, thoughts and every call, also where one step ends the one and begins the other."""
    monkeypatch.setitem(sys.modules, "llguidance", None)  # with it a call begins a step
    text = thoughts + said + "\n".join(tools.tool_text("add", a=i, b=2) for i in range(num_calls))
    model = scripted(text, max_tokens=120, output_version="v1", engine={"chat_template": tools.THINKING})
    drafts = {"chain": ["ngram"], "windows": [16], "prediction": text} if drafted else {"speculation": False}
    bound = model.bind_tools([add], **drafts)
    chunks = [chunk async for chunk in bound.astream("go")]
    invoked = blocks_of(bound.invoke("go"))
    assert [block["type"] for block in invoked] == [
        *(["reasoning"] if thoughts else []),
        *(["text"] if said else []),
        *["tool_call"] * num_calls,
    ]
    for message in (joined(bound.stream("go")), joined(chunks), bound.stream_events("go", version="v3").output):
        assert blocks_of(message) == invoked


def test_a_malformed_call_is_reported_not_raised(scripted, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)  # with it there would be no such call
    model = scripted('<tool_call>\n{"name": "add", "arguments": {"a": 1,, }}\n</tool_call>', max_tokens=60)
    message = model.bind_tools([add]).invoke("go")
    assert not message.tool_calls
    (call,) = message.invalid_tool_calls
    assert call["error"]


def test_a_model_is_shown_its_malformed_call(scripted, tools, monkeypatch):
    """Beside the message that says what is wrong with it, whether it came whole or in chunks."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    prompts = set()

    def script(prompt):
        prompts.add(prompt)
        return '<tool_call>\n{"name": "add", "arguments": {"a": 1,, }}\n</tool_call>'

    model = scripted(script, max_tokens=60, engine={"chat_template": tools.THINKING}).bind_tools([add])
    for message in (model.invoke("go"), joined(model.stream("go"))):
        told = ToolMessage("not JSON", tool_call_id=message.invalid_tool_calls[0]["id"], status="error")
        model.invoke([HumanMessage("go"), message, told])
    _, shown = sorted(prompts, key=len)
    assert "<tool_call>" in shown
    assert "not JSON" in shown


@pytest.mark.parametrize(
    "written",
    [
        '{"name": "weather", "arguments": {"city": "Par',
        '{"name": "weather", "arguments": {"city": "Paris"}',
        '{"name": "add", "arguments": [1, 2]}\n</tool_call>',
        '{"arguments": {"city": "Paris"}}\n</tool_call>',
    ],
    ids=["cut within", "cut behind", "a list", "no name"],
)
@pytest.mark.parametrize("output_version", ["v0", "v1"])
async def test_a_malformed_call_is_never_run(scripted, monkeypatch, written, output_version):
    """Neither from an answer nor from its merged chunks, which LangChain reads as if they were not complete yet."""
    monkeypatch.setitem(sys.modules, "llguidance", None)  # with it there would be no such call
    model = scripted(f"<tool_call>\n{written}", max_tokens=60, output_version=output_version)
    bound = model.bind_tools([add, weather])
    chunks = [chunk async for chunk in bound.astream("go")]
    messages = [bound.invoke("go"), joined(bound.stream("go")), joined(chunks)]
    messages.append(bound.stream_events("go", version="v3").output)
    for message in messages:
        assert not message.tool_calls
        assert [call["name"] for call in message.invalid_tool_calls] == [messages[0].invalid_tool_calls[0]["name"]]
    agent = create_agent(model, tools=[add, weather])
    streamed = agent.stream({"messages": [HumanMessage("go")]}, stream_mode="messages")
    assert {about["langgraph_node"] for _, about in streamed} == {"model"}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_an_agent_calls_a_tool_and_answers(scripted, tools, asynchronous):
    def script(prompt):
        return "It is sunny." if "<|tool|>" in prompt else tools.tool_text("weather", city="Paris")

    agent = create_agent(scripted(script, max_tokens=60), tools=[weather, add])
    asked = {"messages": [HumanMessage("How is the weather in Paris?")]}
    answered = (await agent.ainvoke(asked) if asynchronous else agent.invoke(asked))["messages"]
    assert [type(message).__name__ for message in answered] == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert isinstance(answered[2], ToolMessage)
    assert answered[2].content == "It is sunny in Paris."
    assert answered[3].content == "It is sunny."


@pytest.mark.parametrize("strategy", [Report, ToolStrategy(Report), ProviderStrategy(Report)])
def test_an_agent_with_tools_and_a_response_format(scripted, tools, strategy):
    """The grammar is "a call or the final JSON": both in one agent."""

    def script(prompt):
        if "<|tool|>" not in prompt:
            return tools.tool_text("weather", city="Paris")
        if isinstance(strategy, ToolStrategy):
            return tools.tool_text("Report", city="Paris", sunny=True)
        return '{"city": "Paris", "sunny": true}'

    agent = create_agent(scripted(script, max_tokens=60), tools=[weather], response_format=strategy)
    result = agent.invoke({"messages": [HumanMessage("How is the weather in Paris?")]})
    assert result["structured_response"] == Report(city="Paris", sunny=True)


def test_an_agent_streams_tokens(scripted, tools):
    def script(prompt):
        return "It is sunny there today." if "<|tool|>" in prompt else tools.tool_text("weather", city="Paris")

    agent = create_agent(scripted(script, max_tokens=60), tools=[weather])
    pieces = agent.stream({"messages": [HumanMessage("Paris?")]}, stream_mode="messages")
    texts = [chunk.text for chunk, about in pieces if about["langgraph_node"] == "model" and chunk.text]
    assert len(texts) > 1
    assert "".join(texts) == "It is sunny there today."
