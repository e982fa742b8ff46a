"""How the target of an engine writes: its format of tool calls and its way to think, known by its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specrouter_llm.chat.parser import END_THINK, THINK
from specrouter_llm.chat.tool_formats import GENERIC, ToolFormat, detect

if TYPE_CHECKING:
    from specrouter_llm.text.tokenizer import Tokenizer

_PROMPT_TAIL = 8
"""Tokens at the end of a prompt in which a think block is opened or closed."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """A model's own conventions."""

    tool_format: ToolFormat
    shows_tools: bool
    """Whether the template shows tools to the model."""
    thinks: bool
    """Whether the template knows think blocks."""
    token_ids: Mapping[str, int]
    """Ids of the vocabulary's added tokens."""

    @classmethod
    def of(cls, tokenizer: Tokenizer | None) -> Dialect:
        """The dialect of a tokenizer's chat template."""
        template = (tokenizer.chat_template if tokenizer is not None else None) or ""
        token_ids = tokenizer.added_tokens if tokenizer is not None else {}
        shows_tools = "tools" in template
        tool_format = detect(template, token_ids) if shows_tools else GENERIC
        return cls(tool_format, shows_tools, END_THINK in template, token_ids)

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the parser looks for, and that must not be swallowed where they are special tokens."""
        return tuple(marker for marker in (*self.tool_format.markers, THINK, END_THINK) if marker in self.token_ids)


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a prompt says about the answer's think block."""

    opened: bool
    """The prompt's last words open it."""
    expected: bool
    """The answer holds one, or the rest of one."""

    @classmethod
    def after(cls, prompt_ids: Sequence[int], tokenizer: Tokenizer | None, dialect: Dialect) -> Thinking:
        if tokenizer is None or not dialect.thinks:
            return cls(opened=False, expected=False)
        tail = tokenizer.keeping((THINK, END_THINK)).decode(prompt_ids[-_PROMPT_TAIL:]).rstrip()
        return cls(opened=tail.endswith(THINK), expected=not tail.endswith(END_THINK))
