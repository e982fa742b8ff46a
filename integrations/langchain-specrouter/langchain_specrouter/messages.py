"""LangChain's messages as the plain chat (OpenAI form) that the engine's chat layer takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_specrouter.errors import SpecRouterInvalidPromptError
from langchain_specrouter.malformed import unmarked

# Blocks of an assistant's message that say again what its `tool_calls` and reasoning hold, or are not for the prompt.
_NOT_TEXT_OF_ASSISTANT = frozenset(
    {
        "function_call",
        "input_json_delta",
        "invalid_tool_call",
        "reasoning",
        "reasoning_content",
        "redacted_thinking",
        "thinking",
        "tool_call",
        "tool_call_chunk",
        "tool_use",
    }
)
_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (SystemMessage, "system"),
    (AIMessage, "assistant"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
_NAMED_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}
"""Roles of a `ChatMessage` that templates know under another name; further ones are between caller and template."""


def to_chat(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The messages in OpenAI form, text only.

    Raises SpecRouterInvalidPromptError for images, audio, files and other blocks that a text model cannot read, and for
    messages that are no turn of a conversation.
    """
    return [turn for i, message in enumerate(messages) for turn in _turns(message, f"messages[{i}]")]


def _turns(message: BaseMessage, where: str) -> list[dict[str, Any]]:
    """One message; its `tool_result` blocks (Anthropic's form) are turns of their own, before the rest of it."""
    results = [block for block in _blocks(message) if block.get("type") == "tool_result"]
    turns = [_tool_result(block, where) for block in results]
    if results and len(results) == len(_blocks(message)):
        return turns
    return [*turns, _turn(message, where)]


def _turn(message: BaseMessage, where: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": _role(message, where), "content": _text(message, where)}
    if message.name:
        turn["name"] = message.name
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage):
        if calls := _tool_calls(message):
            turn["tool_calls"] = calls
        if reasoning := _reasoning(message):
            turn["reasoning_content"] = reasoning
    return turn


def _role(message: BaseMessage, where: str) -> str:
    if isinstance(message, ChatMessage):
        return _NAMED_ROLES.get(message.role, message.role)
    role = next((role for kind, role in _ROLES if isinstance(message, kind)), None)
    if role is None:
        raise SpecRouterInvalidPromptError(f"{where} is a {type(message).__name__}, which is no turn of a conversation")
    return role


def _text(message: BaseMessage, where: str) -> str:
    if isinstance(message.content, str):
        return message.content
    skipped = {"tool_result", *(_NOT_TEXT_OF_ASSISTANT if isinstance(message, AIMessage) else ())}
    blocks = [block for block in _blocks(message) if block.get("type") not in skipped]
    return _joined(blocks, where)


def _blocks(message: BaseMessage) -> list[Mapping[str, Any]]:
    return [] if isinstance(message.content, str) else _parts(message.content)


def _parts(content: Sequence[str | Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]


def _joined(blocks: Iterable[Mapping[str, Any]], where: str) -> str:
    return "\n".join(_block_text(block, f"{where}.content[{i}]") for i, block in enumerate(blocks))


def _block_text(block: Mapping[str, Any], where: str) -> str:
    if block.get("type") in ("text", "text-plain") and isinstance(block.get("text"), str):
        return str(block["text"])
    if "json" in block:
        return json.dumps(block["json"], ensure_ascii=False)
    raise SpecRouterInvalidPromptError(
        f"{where} is of type {block.get('type')!r}; this model reads text only: leave images, audio and files out, or "
        "describe them in a block {'type': 'text', 'text': ...}"
    )


def _tool_result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content") or ""
    text = content if isinstance(content, str) else _joined(_parts(content), where)
    return {"role": "tool", "content": text, "tool_call_id": block.get("tool_use_id")}


def _tool_calls(message: AIMessage) -> list[dict[str, Any]]:
    """Calls of the message, those in Anthropic's `tool_use` blocks included, each id once; then the malformed ones."""
    calls = [(call["id"], call["name"], call["args"]) for call in message.tool_calls]
    malformed = [
        _call(call["id"], call["name"] or "", unmarked(call["args"] or "")) for call in message.invalid_tool_calls
    ]
    known = {id_ for id_, _, _ in calls} | {call["id"] for call in malformed}
    blocks = [block for block in _blocks(message) if block.get("type") == "tool_use" and block.get("id") not in known]
    calls += [(block.get("id"), str(block.get("name")), block.get("input") or {}) for block in blocks]
    return [*(_call(id_, name, json.dumps(args, ensure_ascii=False)) for id_, name, args in calls), *malformed]


def _call(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _reasoning(message: AIMessage) -> str:
    """What the model thought in that turn: templates that show it again do so under this name."""
    if isinstance(kept := message.additional_kwargs.get("reasoning_content"), str):
        return kept
    blocks = [block for block in _blocks(message) if block.get("type") == "reasoning"]
    return "".join(str(block.get("reasoning", "")) for block in blocks)
