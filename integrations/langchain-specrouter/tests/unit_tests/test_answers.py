"""Chunks of a stream merge to the message of the same answer, in every version of LangChain's content."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.utils.json import parse_partial_json

from langchain_specrouter.answers import delta_chunks, generation, last_chunks, token_usage, tool_calls, usage_metadata
from langchain_specrouter.malformed import marked, unmarked
from specrouter_llm import Completion, FinishReason, SpeculationStats, Timings, Usage
from specrouter_llm.chat import ChatDelta, ChatResult, ToolCall, ToolCallDelta
from specrouter_llm.chat.parser import ReplyParser
from specrouter_llm.chat.tool_formats import TOOL_FORMATS

STATS = SpeculationStats(6, 3, 2, 4, (1, 0, 0, 1), 4, 7, ())
COMPLETION = Completion(
    prompt_index=0,
    index=0,
    text="",
    token_ids=(1, 2),
    finish_reason=FinishReason.STOP,
    stop_reason=None,
    seed=0,
    guarantee="bitwise",
    usage=Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=3),
    stats=STATS,
    timings=Timings(0.0, 0.0, 0.0, 0.0, 1.0),
)
METADATA = {"model_name": "m", "model_provider": "specrouter", "finish_reason": "stop", "rate": 0.5}


def result_of(content="", reasoning="", calls=()):
    return ChatResult(
        content=content, reasoning=reasoning, tool_calls=calls, finish_reason="stop", completion=COMPLETION
    )


def merged(deltas, result) -> ChatGenerationChunk:
    chunks = [chunk for delta in deltas for chunk in delta_chunks(delta)]
    *chunks, whole = [*chunks, *last_chunks(result, dict(METADATA), {})]
    for chunk in reversed(chunks):
        whole = chunk + whole
    return whole


def delta(content="", reasoning="", calls=()):
    return ChatDelta(
        index=0, content=content, reasoning=reasoning, tool_calls=tuple(calls), finish_reason=None, token_ids=()
    )


@given(
    thoughts=st.lists(st.text(max_size=5), max_size=4),
    texts=st.lists(st.text(max_size=5), max_size=5),
    pieces=st.sampled_from([[], ['{"a": 1, ', '"b": "ü"}'], ["{", "}"], ['{"a": [1, {"b": null}]}']]),
)
def test_a_stream_is_its_message(thoughts, texts, pieces):
    """Property: however an answer is cut into deltas, the merged chunks say what the whole message says."""
    calls = (ToolCall(id="c", name="f", arguments="".join(pieces)),) if pieces else ()
    result = result_of("".join(texts), "".join(thoughts), calls)
    deltas = [
        *(delta(reasoning=thought) for thought in thoughts),
        *(delta(content=text) for text in texts),
        *(
            delta(calls=[ToolCallDelta(0, None if i else "c", None if i else "f", piece)])
            for i, piece in enumerate(pieces)
        ),
    ]
    streamed, whole = merged(deltas, result).message, generation(result, dict(METADATA), {}).message
    for name in ("content", "additional_kwargs", "tool_calls", "invalid_tool_calls", "usage_metadata"):
        assert getattr(streamed, name) == getattr(whole, name), name
    assert streamed.response_metadata == whole.response_metadata
    assert streamed.content_blocks == whole.content_blocks


CALLS = [
    '{"name": "f", "arguments": {"a": [1, {"b": "x\\\\\\"}"}], "c": null}}',
    '{"arguments": {"a": 1}, "name": "f"}',
    '{"name": "f", "arguments": "{\\"a\\": 1}"}',
    '{"name": "f", "arguments": {"a": 1,, }}',
    '{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}',
    '{"name": "f", "arguments": [1, 2]}',
    '{"arguments": {"a": 1}}',
    '{"name": "f"}',
    "f(1)",
    "",
]


@given(
    written=st.lists(st.sampled_from(CALLS), min_size=1, max_size=3),
    cut=st.integers(0, 300),
    size=st.integers(1, 20),
)
def test_a_streamed_call_is_as_valid_as_the_invoked_one(written, cut, size):
    """Property: wherever an answer ends within its calls, merged chunks and message agree on which of them can be run."""
    text = "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in written)[:cut]
    numbers = itertools.count()
    parser = ReplyParser(TOOL_FORMATS[0], ["f"], new_id=lambda: f"c{next(numbers)}")
    found = [*(parser.feed(text[i : i + size]) for i in range(0, len(text), size)), parser.finish()]
    deltas = [delta(pieces.content, calls=pieces.tool_calls) for pieces in found]
    result = result_of("".join(pieces.content for pieces in found), calls=parser.tool_calls)
    streamed, whole = merged(deltas, result).message, generation(result, {}, {}).message
    assert streamed.tool_calls == whole.tool_calls
    told = [(call["id"], call["name"], unmarked(call["args"])) for call in streamed.invalid_tool_calls]
    assert told == [(call["id"], call["name"], call["args"]) for call in whole.invalid_tool_calls]


@given(st.text() | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps), st.integers(0, 50))
def test_nothing_can_be_read_from_marked_arguments(arguments, cut):
    """Property: in whatever state of JSON a text ends; and the mark can be taken off again."""
    assert parse_partial_json(marked(arguments[:cut])) is None
    assert unmarked(marked(arguments[:cut])) == arguments[:cut]


def test_reasoning_is_one_block_before_the_text():
    deltas = [delta(reasoning="Let me "), delta(reasoning="think."), delta(content="It is "), delta(content="7.")]
    message = merged(deltas, result_of("It is 7.", "Let me think.")).message
    assert message.content == "It is 7."
    assert [(b["type"], b.get("reasoning") or b.get("text")) for b in message.content_blocks] == [
        ("reasoning", "Let me think."),
        ("text", "It is 7."),
    ]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (ToolCall("c", "f", '{"a": ', error="cut off"), "cut off"),
        (ToolCall("c", "f", '{"a": '), "not JSON"),
        (ToolCall("c", "f", "[1]"), "not a JSON object"),
        (ToolCall("c", "", "{}", error="no name"), "no name"),
    ],
)
def test_malformed_calls_say_what_is_wrong(call, error):
    valid, (invalid,) = tool_calls(result_of(calls=(call,)))
    assert valid == []
    assert error in invalid["error"]
    assert (invalid["name"], invalid["args"]) == (call.name or None, call.arguments)


def test_a_call_without_arguments():
    valid, _ = tool_calls(result_of(calls=(ToolCall("c", "f", ""),)))
    assert valid[0]["args"] == {}


def test_usage():
    result = replace(result_of(), reasoning_tokens=2)
    assert usage_metadata(result) == {
        "input_tokens": 5,
        "output_tokens": 7,
        "total_tokens": 12,
        "input_token_details": {"cache_read": 3},
        "output_token_details": {"reasoning": 2},
    }
    second = replace(COMPLETION, index=1)
    assert token_usage([COMPLETION, second]) == {"prompt_tokens": 5, "completion_tokens": 14, "total_tokens": 19}


def test_a_step_without_text_gives_no_chunk():
    assert delta_chunks(delta()) == []
