"""The raw text of an answer, split into content, reasoning and tool calls as it arrives.

Characters are taken in one by one, so the result cannot depend on how the text was cut into pieces:

    text ──"<think>"──> reasoning ──"</think>"──> text ──begin──> gap ──"{"──> call ──"}"──> text
                                                                    └──────────┴─malformed─> broken ──end──> text

In formats with a name before the JSON object, the name comes before the gap. White space directly before and after a
marker belongs to the marker.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from specrouter_llm.chat.call_reader import CallReader, MalformedCall
from specrouter_llm.chat.tool_formats import ToolFormat
from specrouter_llm.chat.values import ToolCall, ToolCallDelta

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a piece of raw text made final."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class ReplyParser:
    """Reads the text of one sample."""

    def __init__(
        self,
        tool_format: ToolFormat | None = None,
        tool_names: Collection[str] = (),
        *,
        may_think: bool = False,
        thinking: bool = False,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`tool_format` None finds no calls; without a begin marker only calls of `tool_names` count.

        `may_think`: the answer may begin with a think block; `thinking`: the prompt has already opened it.
        """
        self.tool_calls: tuple[ToolCall, ...] = ()
        self._format = tool_format
        self._names = frozenset(tool_names)
        self._new_id = new_id
        self._state: Callable[[str], None] = self._reasoning if thinking else self._text
        self._may_think = may_think and not thinking
        self._at_start = True
        """Whether nothing but white space and calls has come since the answer began."""
        self._skip_space = thinking
        self._space: list[str] = []
        """White space before a marker, perhaps."""
        self._held = ""
        """The beginning of a marker, perhaps, or of a name before its end."""
        self._rest: list[str] = []
        """What follows the mistake in a malformed call."""
        self._call = _OpenCall(CallReader("name"))
        self._in_list = False
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._deltas: dict[int, ToolCallDelta] = {}

    def feed(self, text: str) -> Pieces:
        """Take in the next piece of raw text; return what it made final."""
        for char in text:
            self._state(char)
        return self._take()

    def finish(self) -> Pieces:
        """The rest, when there is no more text. A call that is not complete is a malformed one."""
        if self._state == self._call_text and self._call.tentative:
            self._release_call()
        elif self._state in (self._call_text, self._name):
            self._break("the text ended within the call", self._held)
        elif self._state == self._gap and not (self._in_list and self.tool_calls):
            self._break("the text ended within the call")
        if self._state == self._broken:
            self._close_broken("".join(self._rest))
        elif not self._half_an_end():
            self._emit("".join(self._space) + self._held)
        self._space, self._held = [], ""
        return self._take()

    def _half_an_end(self) -> bool:
        """Whether the text was cut within the end marker of a call."""
        end = self._format.end if self._format is not None else ""
        return bool(self._held and self.tool_calls and self._skip_space and end.startswith(self._held))

    # ---------------------------------------------------------------- text and reasoning

    def _text(self, char: str) -> None:
        marker = self._marker_after(char, self._text_markers())
        if marker is None:
            return
        if marker == THINK:
            self._state, self._skip_space = self._reasoning, True
        elif self._format is not None and marker == self._format.end:
            self._skip_space = True
        else:
            bare = marker == "{"
            self._open("".join(self._space) if bare else "", tentative=bare)
            if bare:
                self._call_text("{")
        self._space = []

    def _text_markers(self) -> tuple[str, ...]:
        markers = [THINK] if self._may_think and self._at_start and not self.tool_calls else []
        if self._format is not None:
            markers += [marker for marker in (self._format.begin, self._format.end) if marker]
            if self._format.bare and self._at_start:
                markers.append("{")
        return tuple(markers)

    def _reasoning(self, char: str) -> None:
        if self._marker_after(char, (END_THINK,)) is not None:
            self._state, self._space = self._text, []
            self._may_think, self._skip_space = False, True

    def _marker_after(self, char: str, markers: tuple[str, ...]) -> str | None:
        """The marker that `char` completes. Text that cannot become part of one is emitted, the rest is held."""
        if char.isspace() and not self._held and (markers or self._skip_space):
            if not self._skip_space:
                self._space.append(char)
            return None
        self._held += char
        if self._held in markers:
            marker, self._held = self._held, ""
            return marker
        free = _num_free(self._held, markers)
        if free:
            self._skip_space = False
            self._emit("".join(self._space) + self._held[:free])
            self._space, self._held = list(self._held[free:]), ""
            while self._space and not self._space[-1].isspace():
                self._held = self._space.pop() + self._held
        return None

    def _emit(self, text: str) -> None:
        if not text:
            return
        if self._state == self._reasoning:
            self._thoughts.append(text)
            return
        self._content.append(text)
        self._at_start = self._at_start and not text.strip()

    # ---------------------------------------------------------------- calls

    def _open(self, before: str = "", *, tentative: bool = False) -> None:
        assert self._format is not None
        self._call = _OpenCall(CallReader(self._format.name_key), before, tentative)
        self._state = self._call_text if tentative else self._name if self._format.name_end else self._gap

    def _name(self, char: str) -> None:
        """Between a begin marker and the end of the name, where the name stands before the JSON object."""
        assert self._format is not None
        self._held += char
        if self._held.endswith(self._format.name_end):
            name = self._held.removesuffix(self._format.name_end).strip()
            if name:
                self._call = _OpenCall(CallReader(self._format.name_key, name))
                self._state, self._held = self._gap, ""
        elif char in "{\n" and self._held.strip():
            self._break(f"expected a name and {self._format.name_end}", self._held)

    def _gap(self, char: str) -> None:
        """Between a begin marker and the JSON object, and between the objects of a list."""
        assert self._format is not None
        if char.isspace():
            return
        if char == "{":
            self._state = self._call_text
            self._call_text(char)
        elif char == "[" and self._format.layout == "list" and not self._in_list:
            self._in_list = True
        elif char == "]" and self._in_list:
            self._end_calls()
        elif char != "," or not self._in_list:
            self._break(f"expected a JSON object, got {char!r}", char)

    def _call_text(self, char: str) -> None:
        call, reader = self._call, self._call.reader
        try:
            reader.feed(char)
        except MalformedCall as error:
            self._malformed(str(error))
            return
        if call.tentative:
            if not reader.may_be_call_of(self._names):
                self._release_call()
                return
            call.tentative = not (reader.recognised or reader.done)
        if reader.recognised or reader.done:
            self._pass_on()
        if reader.done:
            self._finish_call()
            self._next_call()

    def _malformed(self, reason: str) -> None:
        call = self._call
        if call.tentative:
            self._release_call()
            return
        self._break(reason)
        if call.reader.done:  # the object is whole, but no call
            self._close_broken("")
            self._next_call()

    def _next_call(self) -> None:
        if self._in_list:
            self._open()
        else:
            self._end_calls()

    def _end_calls(self) -> None:
        self._state, self._in_list, self._skip_space = self._text, False, True

    def _release_call(self) -> None:
        """What looked like a call is content: JSON of another kind."""
        self._state = self._text
        self._emit(self._call.before + self._call.reader.raw)
        self._at_start = False

    def _break(self, reason: str, rest: str = "") -> None:
        self._call.error = reason
        self._state, self._held, self._rest = self._broken, "", list(rest)

    def _broken(self, char: str) -> None:
        """Everything up to the end marker belongs to the malformed call; without one, everything."""
        self._rest.append(char)
        end = self._format.end if self._format is not None else ""
        if char == end[-1:] and "".join(self._rest[-len(end) :]) == end:
            self._close_broken("".join(self._rest[: -len(end)]))
            self._end_calls()

    def _close_broken(self, rest: str) -> None:
        self._call.reader.give_up(rest)
        self._pass_on()
        self._finish_call()
        self._rest = []

    def _pass_on(self) -> None:
        """The new text of the arguments as a delta; name and id with the first."""
        call, index = self._call, len(self.tool_calls)
        piece = call.reader.take()
        if not call.announced:
            call.announced, call.id = True, self._new_id()
            self._deltas[index] = ToolCallDelta(index, call.id, call.reader.name or "", piece)
        elif piece:
            last = self._deltas.get(index, ToolCallDelta(index, None, None, ""))
            self._deltas[index] = replace(last, arguments=last.arguments + piece)

    def _finish_call(self) -> None:
        call = self._call
        self.tool_calls += (ToolCall(call.id, call.reader.name or "", call.reader.arguments, call.error),)

    def _take(self) -> Pieces:
        pieces = Pieces("".join(self._content), "".join(self._thoughts), tuple(self._deltas.values()))
        self._content, self._thoughts, self._deltas = [], [], {}
        return pieces


class _OpenCall:
    """The call that is being read."""

    def __init__(self, reader: CallReader, before: str = "", tentative: bool = False) -> None:
        self.reader = reader
        self.before = before
        """White space before a call without a begin marker."""
        self.tentative = tentative
        """It may still turn out to be content."""
        self.announced = False
        """Whether the first delta is out."""
        self.id = ""
        self.error: str | None = None


def _num_free(held: str, markers: tuple[str, ...]) -> int:
    """Characters at the beginning of a text that are neither part of a marker to come nor white space before one."""
    for start in range(len(held) if markers else 0):
        body = held[start:].lstrip()
        if not body or any(marker.startswith(body) for marker in markers):
            return start
    return len(held)
