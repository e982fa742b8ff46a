"""How models write tool calls. One table for the grammar that forces a call and for the parser that reads it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls: a JSON object each, or a name and a JSON object."""

    name: str
    begin: str = ""
    """The text, often a token of its own, that announces a call, or the list of calls; "" for none."""
    end: str = ""
    """The text behind each call; "" for none."""
    begin_is_optional: bool = False
    """Whether calls come without `begin` too; forced ones do."""
    gap: str = ""
    """White space between the markers and the JSON."""
    layout: Literal["repeated", "list", "single"] = "repeated"
    """Calls one after the other, a JSON list of them, or one per answer."""
    separator: str = ""
    """Between two calls."""
    name_end: str = ""
    """The text behind a name that stands before the arguments; "" for names within the JSON object."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    short_ids: bool = False
    """Whether templates insist on ids of nine letters and digits."""

    @property
    def markers(self) -> tuple[str, ...]:
        """All of its markers."""
        return tuple(marker for marker in (self.begin, self.name_end, self.end) if marker)

    @property
    def bare(self) -> bool:
        """Whether a JSON object at the beginning of an answer may be a call."""
        return not self.begin or self.begin_is_optional


# The gap of Mistral's list is "" or " ", depending on the version of its tokenizer.
TOOL_FORMATS = (
    ToolFormat("hermes", begin="<tool_call>", end="</tool_call>", gap="\n", separator="\n"),
    ToolFormat("mistral args", begin="[TOOL_CALLS]", name_end="[ARGS]", short_ids=True),
    ToolFormat("mistral", begin="[TOOL_CALLS]", layout="list", separator=", ", short_ids=True),
    ToolFormat("llama3", begin="<|python_tag|>", begin_is_optional=True, layout="single", arguments_key="parameters"),
)
GENERIC = ToolFormat("json", separator="\n")
"""For models without a format of their own: nothing but the JSON object."""


def detect(template: str, added_tokens: Collection[str]) -> ToolFormat:
    """The format of a model, known by its markers in the chat template, or else in the vocabulary."""
    for source in (template, added_tokens):
        for known in TOOL_FORMATS:
            if all(marker in source for marker in (known.begin, known.name_end) if marker):
                return known
    return GENERIC
