"""What a caller asks of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specrouter_llm.sampling.params import SamplingParams
    from specrouter_llm.sampling.structured import StructuredOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One chat to be answered. `submit` checks it."""

    messages: Sequence[Mapping[str, Any]]
    """In OpenAI's form: role, content (text, or a list of text parts), tool_calls, tool_call_id, name."""
    tools: Sequence[Mapping[str, Any]] = ()
    """In OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}."""
    tool_choice: str | None = None
    """"auto", "none", "required" or the name of a tool; None is "auto" if there are tools."""
    parallel_tool_calls: bool = True
    """Whether an answer may hold several calls."""
    response_format: StructuredOutput | Mapping[str, Any] | None = None
    """A grammar, or OpenAI's {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}.
    Together with tools an answer is either calls or this."""
    params: SamplingParams | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword options of `SpecRouter.submit`: chain, windows, speculation, draft_sources, prediction, timeout, on_step."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the chat template, such as enable_thinking."""
