"""LlamaIndex chat messages as the OpenAI form that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from specrouter_llm.errors import InvalidPromptError

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def to_openai(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """One dict with role, content and, where there are any, reasoning_content, tool_calls, tool_call_id and name for each
    message.

    Raises:
        InvalidPromptError: no messages, or a block that is not text.
    """
    if not messages:
        raise InvalidPromptError("there are no messages; give at least one, e.g. ChatMessage(role='user', content=...)")
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> dict[str, Any]:
    extra = message.additional_kwargs
    converted: dict[str, Any] = {"role": _ROLES[message.role], "content": _text(message.blocks)}
    if converted["role"] == "assistant" and (thoughts := _thoughts(message.blocks)):
        converted["reasoning_content"] = thoughts
    calls = [_call(block) for block in message.blocks if isinstance(block, ToolCallBlock)]
    calls = calls or [_foreign_call(call) for call in extra.get("tool_calls") or ()]
    if calls:
        converted["tool_calls"] = calls
    converted.update({key: extra[key] for key in ("tool_call_id", "name") if extra.get(key)})
    return converted


def _text(blocks: Iterable[ContentBlock]) -> str:
    """The text of a message, its text blocks on lines of their own as in `ChatMessage.content`."""
    texts: list[str] = []
    for block in blocks:
        match block:
            case TextBlock():
                texts.append(block.text)
            case CitableBlock():
                texts.append(_text(block.content))
            case CitationBlock():
                texts.append(_text([block.cited_content]))
            case ThinkingBlock() | ToolCallBlock() | CachePoint():
                continue  # thoughts and calls have places of their own, nothing is cached remotely
            case _:
                raise InvalidPromptError(
                    f"a message holds a block of type {block.block_type!r}, but this model reads text only; "
                    "describe it in a TextBlock instead"
                )
    return "\n".join(texts)


def _thoughts(blocks: Iterable[ContentBlock]) -> str:
    """What the model thought in that turn: templates that show it again, as in a tool loop, do so under this name."""
    return "".join(block.content or "" for block in blocks if isinstance(block, ThinkingBlock))


def _call(block: ToolCallBlock) -> dict[str, Any]:
    arguments = block.tool_kwargs if isinstance(block.tool_kwargs, str) else dumps(block.tool_kwargs)
    return openai_call(block.tool_call_id, block.tool_name, arguments)


def openai_call(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    """A tool call in the OpenAI form; `arguments` is JSON text."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def dumps(value: Any) -> str:
    """JSON text with characters as they are: models copy `ü` more often right than its escape."""
    return json.dumps(value, ensure_ascii=False)


def _foreign_call(call: Any) -> dict[str, Any]:
    """A call in `additional_kwargs["tool_calls"]`, which other integrations fill with dicts or with OpenAI's objects."""
    read = _reader(call)
    function = read("function")
    if function is None:
        raise InvalidPromptError(f"a tool call has no 'function': {call!r}; use a ToolCallBlock")
    field = _reader(function)
    arguments = field("arguments")
    return openai_call(
        read("id"), str(field("name")), arguments if isinstance(arguments, str) else dumps(arguments or {})
    )


def _reader(value: Any) -> Callable[[str], Any]:
    return value.get if isinstance(value, Mapping) else lambda name: getattr(value, name, None)
