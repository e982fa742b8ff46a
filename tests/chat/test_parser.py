"""The incremental parser: one result for every way to cut the text, nothing lost, no markers in the content."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.chat.parser import ReplyParser
from specrouter_llm.chat.tool_formats import GENERIC, TOOL_FORMATS
from specrouter_llm.chat.values import ToolCall

HERMES, MISTRAL_ARGS, MISTRAL, LLAMA = TOOL_FORMATS
NAMES = ("f", "g")
CALL = '{"name": "f", "arguments": {"x": [1, "}</tool_call>\\""], "y": {"z": null}}}'
ARGUMENTS = '{"x": [1, "}</tool_call>\\""], "y": {"z": null}}'


def read(pieces, tool_format, **options):
    """(content, reasoning, calls) of a text given in pieces; checks that the deltas add up to the calls."""
    numbers = itertools.count()
    parser = ReplyParser(tool_format, NAMES, new_id=lambda: f"call_{next(numbers)}", **options)
    found = [*(parser.feed(piece) for piece in pieces), parser.finish()]
    added = {}
    for delta in itertools.chain.from_iterable(piece.tool_calls for piece in found):
        if delta.index not in added:
            added[delta.index] = [delta.id, delta.name, delta.arguments]
            assert delta.id is not None
        else:
            assert (delta.id, delta.name) == (None, None)
            added[delta.index][2] += delta.arguments
    assert list(added.values()) == [[call.id, call.name, call.arguments] for call in parser.tool_calls]
    return "".join(p.content for p in found), "".join(p.reasoning for p in found), parser.tool_calls


def call(number, name="f", arguments=ARGUMENTS, error=None):
    return ToolCall(f"call_{number}", name, arguments, error)


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<tool", "_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "f[ARGS]{}",
        "<|python_tag|>",
        CALL, '{"name": "f", "parameters": {}}', '{"name": "q", "arguments": {}}', '{"arguments": {"a": 1}, "name": "g"}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"name": "f", "arguments": {"a": ]}}', "{", "}", "[", "]", ",", '"',
        "\\", "\n", " ", "text", "<", "é", '{"name": ', "12", '"f"',
    ]
)  # fmt: skip


@given(
    text=st.lists(FRAGMENTS, max_size=12).map("".join),
    cuts=st.lists(st.integers(0, 400), max_size=30),
    tool_format=st.sampled_from([*TOOL_FORMATS, GENERIC, None]),
    thinking=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_cuts_do_not_matter(text, cuts, tool_format, thinking):
    """Every way to cut a text gives the result of parsing it at once."""
    whole = read([text], tool_format, thinking=thinking, may_think=True)
    places = sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]
    assert whole == read(pieces, tool_format, thinking=thinking, may_think=True)
    assert whole == read(text, tool_format, thinking=thinking, may_think=True)


@given(text=st.lists(FRAGMENTS, max_size=12).map("".join), tool_format=st.sampled_from([*TOOL_FORMATS, GENERIC]))
@settings(max_examples=400, deadline=None)
def test_calls_without_error_are_valid(text, tool_format):
    """A call is either a name and a JSON object, or has an error."""
    for made in read([text], tool_format)[2]:
        assert made.error or (made.name and isinstance(json.loads(made.arguments), dict))


@given(text=st.lists(FRAGMENTS, max_size=12).map("".join))
def test_without_a_format_everything_is_content(text):
    assert (text, "", ()) == read(text, None)


@given(text=st.lists(FRAGMENTS, max_size=12).map("".join), tool_format=st.sampled_from(TOOL_FORMATS))
@settings(max_examples=200, deadline=None)
def test_content_holds_no_whole_marker(text, tool_format):
    """Begin and end markers never reach the content (where JSON is taken for a call without one, it is itself again)."""
    content = read([text], tool_format)[0]
    assert not tool_format.begin or tool_format.begin not in content or tool_format.bare
    assert not tool_format.end or tool_format.end not in content


@pytest.mark.parametrize(
    ("tool_format", "text", "content", "calls"),
    [
        (HERMES, f"Hm.\n\n<tool_call>\n{CALL}\n</tool_call>", "Hm.", [call(0)]),
        (HERMES, f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n", "", [call(0), call(1)]),
        (HERMES, f"<tool_call>\n{CALL}\n</tool_c", "", [call(0)]),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [call(0, arguments="{}")]),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [call(0, arguments='{"a": 1}')]),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', "", [call(0, arguments='{"a": 1}')]),
        (HERMES, "a < b <tool", "a < b <tool", []),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [call(0), call(1)]),
        (MISTRAL, f"[TOOL_CALLS][{CALL}", "", [call(0)]),
        (MISTRAL_ARGS, '[TOOL_CALLS]f[ARGS]{"a": 1}', "", [call(0, arguments='{"a": 1}')]),
        (
            MISTRAL_ARGS,
            "So.[TOOL_CALLS] f [ARGS] {}[TOOL_CALLS]g[ARGS]{}\n",
            "So.",
            [call(0, "f", "{}"), call(1, "g", "{}")],
        ),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [call(0, arguments='{"a": 1}')]),
        (LLAMA, '<|python_tag|>{"name": "x", "parameters": {}}', "", [call(0, "x", "{}")]),
        (LLAMA, '{"name": "x", "parameters": {}}', '{"name": "x", "parameters": {}}', []),
        (LLAMA, ' {"x": 1} and', ' {"x": 1} and', []),
        (LLAMA, 'So: {"name": "f", "parameters": {}}', 'So: {"name": "f", "parameters": {}}', []),
        (GENERIC, f"{CALL}\n{CALL}", "", [call(0), call(1)]),
    ],
)
def test_formats(tool_format, text, content, calls):
    assert (content, "", tuple(calls)) == read(text, tool_format)


@pytest.mark.parametrize(
    ("text", "content", "name", "arguments", "error"),
    [
        ("<tool_call>what</tool_call> then", "then", "", "what", "expected a JSON object"),
        ('<tool_call>{"name": "f", "arguments": 12}</tool_call>', "", "f", '{"name": "f", "arguments": 12}', "object"),
        ('<tool_call>{"name": "f", "arguments": {"a": 1', "", "f", '{"a": 1', "ended within"),
        ('<tool_call>{"name": "f", "arguments": {"a": ]}}</tool_call>!', "!", "f", '{"a": ]}}', "unexpected ']'"),
        ('<tool_call>{"arguments": {}}</tool_call>', "", "", '{"arguments": {}}', "no 'name'"),
        ("<tool_call>", "", "", "", "ended within"),
    ],
)
def test_malformed_calls_are_kept(text, content, name, arguments, error):
    """What is wrong with a call is said, and what was written is kept."""
    found, _, calls = read(text, HERMES)
    assert (content, 1) == (found, len(calls))
    assert (name, arguments) == (calls[0].name, calls[0].arguments)
    assert error in (calls[0].error or "")


@pytest.mark.parametrize(
    ("text", "name", "arguments", "error"),
    [
        ("[TOOL_CALLS]f", "", "f", "ended within"),
        ("[TOOL_CALLS][ARGS]{}", "", "[ARGS]{}", "expected a name"),
        ('[TOOL_CALLS][{"name": "f"}]', "", '[{"name": "f"}]', "expected a name"),
        ("[TOOL_CALLS]f[ARGS]", "f", "", "ended within"),
        ("[TOOL_CALLS]f[ARGS]no", "f", "no", "expected a JSON object"),
        ('[TOOL_CALLS]f[ARGS]{"a": 1', "f", '{"a": 1', "ended within"),
        ('[TOOL_CALLS]f[ARGS]{"a": ]} so', "f", '{"a": ]} so', "unexpected ']'"),
        ('[TOOL_CALLS]f[ARGS]{"a": x}', "f", '{"a": x}', "cannot be read as JSON"),
    ],
)
def test_malformed_calls_with_a_name_of_their_own(text, name, arguments, error):
    found, _, calls = read(text, MISTRAL_ARGS)
    assert ("", 1) == (found, len(calls))
    assert (name, arguments) == (calls[0].name, calls[0].arguments)
    assert error in (calls[0].error or "")


@pytest.mark.parametrize(
    ("text", "options", "content", "reasoning"),
    [
        ("<think>\nHm <tool_call>\n</think>\n\nYes.", {"may_think": True}, "Yes.", "Hm <tool_call>"),
        ("Hm.\n</think>\n\nYes.", {"thinking": True}, "Yes.", "Hm."),
        ("Hm. <", {"thinking": True}, "", "Hm. <"),
        ("Yes. <think>", {"may_think": True}, "Yes. <think>", ""),
        ("<think>\n</think>", {"may_think": False}, "<think>\n</think>", ""),
    ],
)
def test_reasoning(text, options, content, reasoning):
    assert (content, reasoning, ()) == read(text, HERMES, **options)


def test_a_call_after_reasoning():
    found = read(f"Hm.</think>\n\n<tool_call>\n{CALL}\n</tool_call>", HERMES, thinking=True)
    assert ("", "Hm.", (call(0),)) == found


def test_plain_text_is_passed_on_at_once():
    """Nothing is held back where no marker can come; white space at the end is, where one can."""
    assert "a \n" == ReplyParser(None).feed("a \n").content
    assert "a" == ReplyParser(HERMES).feed("a \n<tool").content


def test_json_that_is_no_call_streams():
    """An object whose first key or name rules a call out is passed on as content, not held to its end."""
    for text in ('{"answer":', '{"name": "nobody",'):
        assert text == "".join(ReplyParser(GENERIC, NAMES).feed(text).content)


def test_arguments_stream():
    """Pieces of the arguments are passed on before the call is complete."""
    parser = ReplyParser(HERMES, NAMES)
    seen = [parser.feed(char).tool_calls for char in f"<tool_call>{CALL}"]
    assert len([deltas for deltas in seen if deltas]) == len(ARGUMENTS)


@pytest.mark.parametrize("tool_format", [*TOOL_FORMATS, GENERIC, None], ids=lambda f: f.name if f else "none")
@pytest.mark.parametrize(
    "before", ["", "x", "<tool_call>", "<tool_call>no", '[TOOL_CALLS]f[ARGS]{"a": ', "x<|python_tag|>"]
)
def test_long_white_space_takes_linear_time(tool_format, before):
    """Twenty times as much of it takes about twenty times as long, wherever it is; quadratic would be four hundred."""

    def seconds(size):
        parser, text = ReplyParser(tool_format, NAMES), before + " " * size
        started = time.process_time()
        parser.feed(text)
        parser.finish()
        return time.process_time() - started

    once = min(seconds(5_000) for _ in range(3))
    assert seconds(100_000) < max(100 * once, 0.5)
