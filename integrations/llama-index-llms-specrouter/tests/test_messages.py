"""Messages and tool choices on their way to the chat template."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import FunctionTool

from llama_index.llms.specrouter.messages import to_openai
from llama_index.llms.specrouter.requests import Arguments, named_choice, tool_specs
from specrouter_llm.errors import InvalidParameterError, InvalidPromptError

CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"city": "Zürich"}'}}


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("chatbot", "assistant"),
        ("model", "assistant"),
        ("tool", "tool"),
        ("function", "tool"),
    ],
)
def test_roles(role, expected):
    """Every role of LlamaIndex has one of the four that templates know."""
    assert to_openai([ChatMessage(role=role, content="x")]) == [{"role": expected, "content": "x"}]


def test_blocks_that_are_text():
    """Texts stand on lines of their own; thoughts and cache marks are not among them."""
    blocks = [
        ThinkingBlock(content="hmm"),
        TextBlock(text="one"),
        CachePoint(cache_control=CacheControl(type="ephemeral")),
        CitableBlock(title="t", source="s", content=[TextBlock(text="two")]),
    ]
    assert to_openai([ChatMessage(role="user", blocks=blocks)]) == [{"role": "user", "content": "one\ntwo"}]


def test_thoughts_of_the_assistant():
    """They go where templates look for them; which turns show them again is up to the template."""
    blocks = [
        ThinkingBlock(content="I must "),
        TextBlock(text="Let me see."),
        ThinkingBlock(content="add."),
        ThinkingBlock(),
    ]
    said = {"role": "assistant", "content": "Let me see."}
    assert to_openai([ChatMessage(role="assistant", blocks=blocks)]) == [{**said, "reasoning_content": "I must add."}]
    assert to_openai([ChatMessage(role="assistant", blocks=blocks[1:2])]) == [said]
    assert "reasoning_content" not in to_openai([ChatMessage(role="user", blocks=blocks)])[0]


@pytest.mark.parametrize("block", [ImageBlock(image=b"x"), AudioBlock(audio=b"x")])
def test_blocks_that_are_not_text(block):
    """The error names the block and says what to do."""
    with pytest.raises(InvalidPromptError, match=rf"{block.block_type}.*TextBlock"):
        to_openai([ChatMessage(role="user", blocks=[block])])


@pytest.mark.parametrize(
    "message",
    [
        ChatMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="call_1", tool_name="add", tool_kwargs={"city": "Zürich"})],
        ),
        ChatMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="call_1", tool_name="add", tool_kwargs='{"city": "Zürich"}')],
            additional_kwargs={"tool_calls": [{"id": "of another one"}]},
        ),
        ChatMessage(role="assistant", additional_kwargs={"tool_calls": [CALL]}),
        ChatMessage(
            role="assistant",
            additional_kwargs={
                "tool_calls": [
                    SimpleNamespace(id="call_1", function=SimpleNamespace(name="add", arguments='{"city": "Zürich"}'))
                ]
            },
        ),
    ],
    ids=["block", "block with text", "dict", "object"],
)
def test_calls_in_history(message):
    """A call in a block, or as other integrations keep it; blocks count where there are both."""
    assert to_openai([message]) == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]


def test_result_of_a_call():
    """The id says which call it answers."""
    message = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "call_1", "name": "add"})
    assert to_openai([message]) == [{"role": "tool", "content": "3", "tool_call_id": "call_1", "name": "add"}]


def test_a_call_without_function():
    with pytest.raises(InvalidPromptError, match="ToolCallBlock"):
        to_openai([ChatMessage(role="assistant", additional_kwargs={"tool_calls": [{"id": "1"}]})])


@pytest.mark.parametrize(
    ("choice", "required", "expected"),
    [
        (None, False, None),
        (None, True, "required"),
        ("any", False, "required"),
        ("auto", True, "auto"),
        ("none", False, "none"),
        ("add", False, "add"),
        ({"type": "function", "function": {"name": "add"}}, False, "add"),
    ],
)
def test_tool_choice(choice, required, expected):
    """All spellings of a choice; one that is given counts more than `tool_required`."""
    assert named_choice(choice, ["add"], required=required) == expected


@pytest.mark.parametrize(("choice", "required", "names"), [("divide", False, ["add"]), (None, True, [])])
def test_impossible_tool_choice(choice, required, names):
    with pytest.raises(InvalidParameterError, match="tool"):
        named_choice(choice, names, required=required)


def test_tools_of_one_name():
    tool = FunctionTool.from_defaults(lambda: 1, name="f", description="f")
    with pytest.raises(InvalidParameterError, match="same name"):
        tool_specs([tool, tool])


def test_arguments_are_sorted():
    """What changes the answer, what changes the speed, and what belongs to the chat; None is "not given"."""
    arguments = Arguments.sort(
        {"temperature": 0.5, "chain": ["ngram"], "template_kwargs": {"a": 1}, "top_p": None},
        {"temperature": None, "max_tokens": 7, "timeout": 3, "tools": []},
    )
    assert (arguments.params.temperature, arguments.params.max_tokens, arguments.params.top_p) == (0.5, 7, 1.0)
    assert arguments.options == {"chain": ["ngram"], "timeout": 3}
    assert arguments.chat == {"template_kwargs": {"a": 1}, "tools": []}
