"""One tool call as it is written: a JSON object read character by character, its arguments passed on at once."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

ARGUMENT_KEYS = ("arguments", "parameters")
"""How models call the arguments. Formats write one of them; both are understood."""
_SPACE = " \t\r\n"


class MalformedCall(Exception):
    """The text is no call; the message says why."""


class ObjectScanner:
    """Finds the values of a JSON object's own keys. Inside of a value only quotes and brackets are looked at."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        """Finished values as they were written."""
        self.key: str | None = None
        """The key whose value is being read."""
        self.done = False
        self._expected = "{"
        self._token: list[str] = []
        """The key or value so far."""
        self._in_string = False
        self._escaped = False
        self._brackets: list[str] = []

    def feed(self, char: str) -> str:
        """Take in the next character; return it if it belongs to the value of `key`, else "".

        Raises MalformedCall where no object can go on like this.
        """
        if self._expected == "value":
            return self._value(char)
        if self._expected == "key":
            self._key(char)
        elif char not in _SPACE:
            self._punctuation(char)
        return ""

    @property
    def at_value_start(self) -> bool:
        """Whether the last character was the first of a value that has more than one."""
        return len(self._token) == 1

    def _punctuation(self, char: str) -> None:
        if char == "}" and self._expected in ("first key", "comma"):
            self.done = True
            return
        follows = {
            ("{", "{"): "first key",
            ("first key", '"'): "key",
            ("next key", '"'): "key",
            ("colon", ":"): "value",
            ("comma", ","): "next key",
        }.get((self._expected, char))
        if follows is None or self.done:
            raise MalformedCall(f"unexpected {char!r} in the call's JSON object")
        self._expected = follows
        if follows == "key":
            self._token, self._in_string = ['"'], True

    def _key(self, char: str) -> None:
        self._token.append(char)
        self._track(char)
        if not self._in_string:
            self.key = str(_loads("".join(self._token), "a key"))
            if self.key in self.values:
                raise MalformedCall(f"the call's JSON object has the key {self.key!r} twice")
            self._token, self._expected = [], "colon"

    def _value(self, char: str) -> str:
        if not self._token and char in _SPACE:
            return ""
        if not self._in_string and not self._brackets and (char in _SPACE or char in ",}"):  # the end of a bare word
            self._close_value()
            self.feed(char)
            return ""
        self._token.append(char)
        self._track(char)
        if not self._in_string and not self._brackets and char in '"}]':
            self._close_value()
        return char

    def _track(self, char: str) -> None:
        if self._in_string:
            if self._escaped or char == "\\":
                self._escaped = not self._escaped
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._brackets.append("}" if char == "{" else "]")
        elif char in "}]" and (not self._brackets or self._brackets.pop() != char):
            raise MalformedCall(f"unexpected {char!r} in the call's JSON object")

    def _close_value(self) -> None:
        if not self._token:
            raise MalformedCall(f"the key {self.key!r} has no value")
        assert self.key is not None
        self.values[self.key] = "".join(self._token)
        self._token, self._expected = [], "comma"


class CallReader:
    """Reads one call: `name` and `arguments` grow while the text arrives."""

    def __init__(self, name_key: str, name: str | None = None) -> None:
        """With a `name` the object is the arguments; else it holds the name, under `name_key`, and the arguments."""
        self.name = name
        self.recognised = False
        """Whether the text so far has a name and the beginning of its arguments."""
        self._name_key = name_key
        self._all_arguments = name is not None
        self._scanner = ObjectScanner()
        self._raw: list[str] = []
        self._arguments: list[str] = []
        self._num_taken = 0
        """Pieces of the arguments that were passed on."""
        self._num_read = 0
        """Characters of the raw text up to the end of the arguments."""

    @property
    def done(self) -> bool:
        return self._scanner.done

    @property
    def raw(self) -> str:
        """All that was read."""
        return "".join(self._raw)

    @property
    def arguments(self) -> str:
        """As far as they may be passed on."""
        return "".join(self._arguments)

    def take(self) -> str:
        """The arguments' text that is new since the last time."""
        taken, self._num_taken = self._num_taken, len(self._arguments)
        return "".join(self._arguments[taken:])

    def may_be_call_of(self, names: Collection[str]) -> bool:
        """Whether an object that no marker has announced still looks like a call of one of these tools."""
        key = self._scanner.key
        return (key is None or key in (self._name_key, *ARGUMENT_KEYS)) and (self.name is None or self.name in names)

    def give_up(self, rest: str) -> None:
        """Makes a malformed call's arguments of all that was written and not passed on, and of what followed."""
        if self.recognised:
            self._arguments.append(self.raw[self._num_read :] + rest)
        else:
            self._arguments = [(self.raw + rest).strip()]

    def feed(self, char: str) -> None:
        """Take in the next character. Raises MalformedCall."""
        self._raw.append(char)
        scanner = self._scanner
        of_value = scanner.feed(char)
        if self._all_arguments:
            self._take_argument(char)
            if scanner.done:
                _loads(self.raw, "the arguments")
            return
        if self.name is None and self._name_key in scanner.values:
            self._read_name(scanner.values[self._name_key])
        begins = self.name is not None and of_value == "{" and scanner.at_value_start
        if scanner.key in ARGUMENT_KEYS and of_value and (self.recognised or begins):
            self._take_argument(of_value)
        if scanner.done:
            self._finish()

    def _take_argument(self, text: str) -> None:
        self.recognised = True
        self._arguments.append(text)
        self._num_read = len(self._raw)

    def _finish(self) -> None:
        if self.name is None:
            raise MalformedCall(f"the call has no {self._name_key!r}")
        given = [self._scanner.values[key] for key in ARGUMENT_KEYS if key in self._scanner.values]
        if len(given) > 1:
            raise MalformedCall("the call has both arguments and parameters")
        written = given[0] if given else "{}"
        value = _loads(written, "the arguments")
        if isinstance(value, str):  # JSON inside of JSON, as OpenAI's interface has it
            written, value = value, _loads(value, "the arguments")
        if value is None:
            written, value = "{}", {}
        if not isinstance(value, dict):
            raise MalformedCall(f"the arguments must be a JSON object, got {written}")
        if not self.recognised:
            self._arguments = [written]

    def _read_name(self, written: str) -> None:
        name = _loads(written, "the name")
        if not isinstance(name, str) or not name:
            raise MalformedCall(f"the name of a call must be text, got {written}")
        self.name = name


def _loads(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedCall(f"{what} of the call cannot be read as JSON: {error}") from None
