"""Every kind of message becomes a turn in OpenAI's form; what is not text is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_specrouter.malformed import marked
from langchain_specrouter.messages import to_chat
from specrouter_llm.errors import InvalidPromptError

CALL = {"name": "add", "args": {"a": 1, "b": "zwei"}, "id": "c1", "type": "tool_call"}
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "zwei"}'}}


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        (SystemMessage("be kind"), {"role": "system", "content": "be kind"}),
        (HumanMessage("hi", name="ann"), {"role": "user", "content": "hi", "name": "ann"}),
        (ChatMessage("x", role="developer"), {"role": "system", "content": "x"}),
        (ChatMessage("x", role="human"), {"role": "user", "content": "x"}),
        (ChatMessage("x", role="ai"), {"role": "assistant", "content": "x"}),
        (ChatMessage("x", role="function"), {"role": "tool", "content": "x"}),
        (ChatMessage("x", role="tool"), {"role": "tool", "content": "x"}),
        (ChatMessage("x", role="critic"), {"role": "critic", "content": "x"}),
        (AIMessage(""), {"role": "assistant", "content": ""}),
        (AIMessage("", tool_calls=[CALL]), {"role": "assistant", "content": "", "tool_calls": [SENT_CALL]}),
        (
            ToolMessage("3", tool_call_id="c1", name="add", status="error"),
            {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
        ),
        (FunctionMessage("3", name="add"), {"role": "tool", "content": "3", "name": "add"}),
        (HumanMessage(["a", {"type": "text", "text": "b"}]), {"role": "user", "content": "a\nb"}),
        (HumanMessage([{"json": {"x": "ü"}}]), {"role": "user", "content": '{"x": "ü"}'}),
    ],
)
def test_turns(message, turn):
    assert to_chat([message]) == [turn]


def test_calls_without_an_id_are_all_sent():
    calls = [{**CALL, "id": None}, {**CALL, "name": "sub", "id": None}]
    (turn,) = to_chat([AIMessage("", tool_calls=calls)])
    assert [call["function"]["name"] for call in turn["tool_calls"]] == ["add", "sub"]


@pytest.mark.parametrize("arguments", ['{"a": 1,, }', '{"a": "x', "[1]", ""])
@pytest.mark.parametrize("merged", [False, True], ids=["invoked", "merged chunks"])
def test_malformed_calls_are_shown_as_they_were_written(arguments, merged):
    """A tool message that says what is wrong refers to them. What marks them in chunks is not for the model."""
    invalid = {"name": "add", "args": marked(arguments) if merged else arguments, "id": "c2", "error": None}
    (turn,) = to_chat([AIMessage("", tool_calls=[CALL], invalid_tool_calls=[invalid])])
    sent = {"id": "c2", "type": "function", "function": {"name": "add", "arguments": arguments}}
    assert turn["tool_calls"] == [SENT_CALL, sent]
    nameless = AIMessage("", invalid_tool_calls=[{**invalid, "name": None}])
    assert to_chat([nameless])[0]["tool_calls"][0]["function"] == {"name": "", "arguments": arguments}


@pytest.mark.parametrize(
    ("content", "text"), [("3", "3"), (["3", {"type": "text", "text": "apples"}], "3\napples"), (None, "")]
)
def test_a_tool_result_among_the_users_blocks(content, text):
    message = HumanMessage([{"type": "tool_result", "tool_use_id": "c1", "content": content}])
    assert to_chat([message]) == [{"role": "tool", "content": text, "tool_call_id": "c1"}]


def test_an_answer_can_be_sent_back_in_every_output_version():
    """Reasoning and calls are not repeated in the text, however the message stores them."""
    kept = AIMessage("Let me see.", tool_calls=[CALL], additional_kwargs={"reasoning_content": "hm"})
    blocks = AIMessage(
        [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Let me see."}, CALL], tool_calls=[CALL]
    )
    anthropic = AIMessage(
        [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "c1", "name": "add", "input": CALL["args"]},
        ]
    )
    turn = {"role": "assistant", "content": "Let me see.", "tool_calls": [SENT_CALL], "reasoning_content": "hm"}
    assert to_chat([kept]) == [turn]
    assert to_chat([blocks]) == [turn]
    assert to_chat([anthropic]) == [{key: value for key, value in turn.items() if key != "reasoning_content"}]


def test_anthropic_tool_results_are_turns_of_their_own():
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3"}]}
    sent = {"role": "tool", "content": "3", "tool_call_id": "c1"}
    assert to_chat([HumanMessage([result])]) == [sent]
    with_text = HumanMessage([result, {"type": "text", "text": "go on"}])
    assert to_chat([with_text]) == [sent, {"role": "user", "content": "go on"}]


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "file", "video", "input_audio"])
@pytest.mark.parametrize("make", [HumanMessage, AIMessage, lambda content: ToolMessage(content, tool_call_id="1")])
def test_what_is_not_text_is_refused(kind, make):
    with pytest.raises(
        InvalidPromptError, match=rf"messages\[0\]\.content\[0\] is of type '{kind}'.*text only"
    ) as info:
        to_chat([make([{"type": kind, "url": "https://example.org/x"}])])
    assert isinstance(info.value, ModelInvalidRequestError)


def test_a_message_that_is_no_turn_is_refused():
    with pytest.raises(InvalidPromptError, match=r"messages\[1\] is a RemoveMessage"):
        to_chat([HumanMessage("hi"), RemoveMessage(id="1")])


@given(st.lists(st.text(), max_size=4), st.dictionaries(st.text(), st.integers() | st.text(), max_size=3))
def test_text_and_arguments_survive(texts, arguments):
    """Property: no text and no argument is changed on its way."""
    human = HumanMessage([{"type": "text", "text": text} for text in texts])
    answer = AIMessage("", tool_calls=[{"name": "f", "args": arguments, "id": "1"}])
    sent_human, sent_answer = to_chat([human, answer])
    assert sent_human["content"] == "\n".join(texts)
    assert json.loads(sent_answer["tool_calls"][0]["function"]["arguments"]) == arguments
