"""One training document: a chat, which of its words a model should learn to say, and how to tell a right answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A chat that ends with an answer of the assistant."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Definitions, each `{"name": ..., "description": ..., "parameters": schema}`."""
    is_right: Callable[[str], bool] | None = None
    """Judges another text in place of the last answer; None compares it with that answer, white space aside."""

    @property
    def prompt(self) -> list[Message]:
        """Everything before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer as a model writes it."""
        return written(self.messages[-1])

    def accepts(self, text: str) -> bool:
        """Whether `text` is a right answer to the prompt."""
        if self.is_right is not None:
            return self.is_right(text)
        return " ".join(text.split()) == " ".join(self.answer.split())


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def result(content: str) -> Message:
    """What a tool returned."""
    return {"role": "tool", "content": content}


def calling(*calls: tuple[str, dict[str, Any]]) -> Message:
    """An answer that calls tools, each `(name, arguments)`."""
    functions = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions}


def written(message: Message) -> str:
    """The content of an answer as the chat template spells it, calls in the Hermes form."""
    calls = message.get("tool_calls", ())
    spelt = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls]
    return "\n".join(spelt) or str(message["content"])


_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)


def calls_in(text: str) -> list[dict[str, Any]]:
    """The calls that a text spells in the Hermes form; a malformed one is `{}`."""
    return [_json(call) for call in _CALL.findall(text)]


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def calls_equal(expected: Message) -> Callable[[str], bool]:
    """A judge: the same calls, names and arguments, and no other."""
    wanted = [call["function"] for call in expected["tool_calls"]]
    return lambda text: calls_in(text) == wanted


def last_number(text: str) -> str | None:
    """The last whole number of a text, as it stands there."""
    found = re.findall(r"-?\d+", text.replace(",", ""))
    return found[-1] if found else None


def number_is(value: int) -> Callable[[str], bool]:
    """A judge: the last number is `value`."""
    return lambda text: last_number(text) == str(value)


def contains(*words: str) -> Callable[[str], bool]:
    """A judge: every one of `words` occurs."""
    return lambda text: all(word in text for word in words)


def json_is(value: Any) -> Callable[[str], bool]:
    """A judge: the text is this JSON value."""

    def judge(text: str) -> bool:
        try:
            return bool(json.loads(text) == value)
        except json.JSONDecodeError:
            return False

    return judge
