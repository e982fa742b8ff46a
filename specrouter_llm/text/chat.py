"""Chats as callers give them: checked, and brought into the plain form that chat templates understand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from specrouter_llm.errors import InvalidPromptError

KNOWN_ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})


def plain_messages(messages: Any, control_names: Iterable[str]) -> list[dict[str, Any]]:
    """The messages as new dicts of plain JSON values: a content of text parts joined to text, None values left out.

    Raises InvalidPromptError for an empty chat, a message that is not a mapping with a proper role, and content that
    is not text. `control_names` are the control tokens that no role may spell.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidPromptError(f"a chat must be a list of messages, got {type(messages).__name__}")
    if not messages:
        raise InvalidPromptError("the chat is empty; give at least one message")
    control_roles = {_bare(name) for name in control_names} - KNOWN_ROLES
    return [_plain_message(message, f"messages[{i}]", control_roles) for i, message in enumerate(messages)]


def plain_json(value: Any, where: str, forbidden_key: Callable[[str], bool] = lambda key: False) -> Any:
    """A copy of `value` made of dict, list, str, int, float, bool and None only; mappings and sequences are converted.

    Raises InvalidPromptError for anything else (a template could print text out of it that nobody has checked), for
    text that is not valid Unicode, and for keys that are `forbidden_key`.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _valid_text(value, where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or forbidden_key(_valid_text(key, where)):
                raise InvalidPromptError(f"{where} has the key {key!r}; keys must be text without control tokens")
        return {key: plain_json(item, f"{where}[{key!r}]", forbidden_key) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain_json(item, f"{where}[{i}]", forbidden_key) for i, item in enumerate(value)]
    raise InvalidPromptError(
        f"{where} is a {type(value).__name__}; only JSON values (dict, list, text, ...) are allowed"
    )


def _plain_message(message: Any, where: str, control_roles: set[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidPromptError(f"{where} must be a dict with 'role' and 'content', got {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not re.fullmatch("[a-z_]+", role) or role in control_roles:
        # Templates build control tokens out of roles ('<|' + role + '|>'): a role must not smuggle one in.
        known = ", ".join(sorted(KNOWN_ROLES))
        raise InvalidPromptError(f"{where} has the role {role!r}; use one of {known}, or a lower-case name like them")
    plain = {key: item for key, item in message.items() if item is not None}
    if "content" in plain:
        plain["content"] = _text_of(plain["content"], f"{where}['content']")
    elif role != "assistant":  # an assistant's message may consist of tool calls alone
        raise InvalidPromptError(f"{where} (role {role!r}) has no content")
    return plain


def _text_of(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise InvalidPromptError(f"{where} must be text or a list of text parts, got {type(content).__name__}")
    return "".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidPromptError(
        f"{where} is of type {kind!r}; this engine reads text only: leave images, audio and files out, or describe "
        "them in a part {'type': 'text', 'text': ...}"
    )


def _valid_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPromptError(f"{where} is not valid Unicode: {error}") from None
    return text


def _bare(name: str) -> str:
    """`<|im_end|>` as a role would spell it: `im_end`."""
    return re.sub("^[^a-z]+|[^a-z]+$", "", name.lower())
