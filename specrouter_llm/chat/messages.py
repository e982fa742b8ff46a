"""From messages as callers keep them to messages that a chat template can render."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from specrouter_llm.chat.tool_formats import ToolFormat
from specrouter_llm.errors import InvalidPromptError

T = TypeVar("T")
Message = dict[str, Any]


def template_messages(messages: Sequence[Mapping[str, Any]], *, short_ids: bool = False) -> list[Message]:
    """The messages in the form that templates expect: a content always, the arguments of tool calls as objects.

    With `short_ids` the ids of calls become nine letters and digits, which some templates insist on.

    Raises InvalidPromptError for an empty chat and for malformed tool calls; content is checked by the tokenizer.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidPromptError(f"messages must be a list of dicts, got {type(messages).__name__}")
    if not messages:
        raise InvalidPromptError("the chat is empty; give at least one message")
    plain = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return [_with_short_ids(message) for message in plain] if short_ids else plain


def explain_tools(messages: list[Message], tools: Sequence[Any], tool_format: ToolFormat) -> list[Message]:
    """The messages for a template that knows no tools: definitions, calls and results as ordinary text."""
    plain = [_as_text(message, tool_format) for message in messages]
    if not tools:
        return plain
    definitions = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    call = _written({"name": "<name>", "arguments": {"<argument>": "<value>"}}, tool_format)
    text = f"You can call these functions:\n{definitions}\nTo call one, answer with nothing but {call}"
    return [{"role": "system", "content": text}, *plain]


def rendered(messages: list[Message], render: Callable[[list[Message]], T]) -> T:
    """`render(messages)`; where a strict template refuses them, of the closest form that it takes.

    Some templates want the roles to alternate, some know no system role. Raises the first InvalidPromptError.
    """
    try:
        return render(messages)
    except InvalidPromptError as refusal:
        for rewrite in (_merged, _without_system):
            messages, before = rewrite(messages), messages
            if messages == before:
                continue
            try:
                return render(messages)
            except InvalidPromptError:
                continue
        raise refusal


def _message(message: Mapping[str, Any], where: str) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidPromptError(f"{where} must be a dict with 'role' and 'content', got {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise InvalidPromptError(f"{where} has the role {message.get('role')!r}; use system, user, assistant or tool")
    plain = {key: value for key, value in message.items() if value is not None}
    if message.get("role") in ("assistant", "tool"):
        plain.setdefault("content", "")
    calls = plain.pop("tool_calls", None)
    if calls:
        if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
            raise InvalidPromptError(f"{where}['tool_calls'] must be a list, got {type(calls).__name__}")
        plain["tool_calls"] = [_call(call, f"{where}['tool_calls'][{i}]") for i, call in enumerate(calls)]
    return plain


def _call(call: Any, where: str) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidPromptError(
            f'{where} must be {{"id": ..., "type": "function", "function": {{"name": ..., "arguments": ...}}}}'
        )
    plain = {"type": "function", "function": {"name": function["name"], "arguments": _arguments(function)}}
    return {"id": call["id"], **plain} if call.get("id") is not None else plain


def _with_short_ids(message: Message) -> Message:
    short = dict(message)
    if "tool_call_id" in short:
        short["tool_call_id"] = _short_id(short["tool_call_id"])
    if "tool_calls" in short:
        short["tool_calls"] = [{**call, "id": _short_id(call.get("id"))} for call in short["tool_calls"]]
    return short


def _short_id(call_id: Any) -> str:
    return hashlib.sha256(str(call_id).encode()).hexdigest()[:9]


def _as_text(message: Message, tool_format: ToolFormat) -> Message:
    if message.get("role") == "tool":
        name = message.get("name", "the function")
        return {"role": "user", "content": _joined([{"content": f"Result of {name}:"}, message])}
    if "tool_calls" not in message:
        return message
    calls = [{"content": _written(call["function"], tool_format)} for call in message["tool_calls"]]
    return {"role": message["role"], "content": _joined([message, *calls])}


def _written(function: Mapping[str, Any], tool_format: ToolFormat) -> str:
    call = {tool_format.name_key: function["name"], tool_format.arguments_key: function["arguments"]}
    return json.dumps(call, ensure_ascii=False)


def _arguments(function: Mapping[str, Any]) -> Any:
    """As an object where they are one: templates write them as JSON, and would quote text a second time."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return arguments if arguments is not None else {}
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        return arguments  # a malformed call of the model's own: shown to it as it wrote it
    return parsed if isinstance(parsed, dict) else arguments


def _merged(messages: list[Message]) -> list[Message]:
    """One system message, first, and no two neighbours of one role (calls and tool results stay apart)."""
    system = [message for message in messages if message["role"] in ("system", "developer")]
    merged = [{"role": "system", "content": _joined(system)}] if system else []
    for message in messages:
        if message["role"] in ("system", "developer"):
            continue
        last = merged[-1] if merged else None
        if last is not None and message["role"] == last["role"] != "tool" and not _calls(message, last):
            merged[-1] = {**last, "content": _joined([last, message])}
        else:
            merged.append(message)
    return merged


def _without_system(messages: list[Message]) -> list[Message]:
    """The system message as the beginning of the first user message."""
    if len(messages) < 2 or (messages[0]["role"], messages[1]["role"]) != ("system", "user"):
        return messages
    return [{**messages[1], "content": _joined(messages[:2])}, *messages[2:]]


def _calls(*messages: Message) -> bool:
    return any("tool_calls" in message for message in messages)


def _joined(messages: Sequence[Message]) -> Any:
    """The contents as paragraphs of one text, or as one list of parts where one of them is a list."""
    contents = [message.get("content", "") for message in messages]
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(content for content in contents if content)
    parts: list[Any] = []
    for content in contents:
        parts += [content] if isinstance(content, str) else content
    return parts
