"""Frozen values of a chat: what streams and results are made of."""

from __future__ import annotations

from dataclasses import dataclass

from specrouter_llm.types import Completion


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model made. It is the caller who runs it."""

    id: str
    name: str
    """"" for a malformed call that names nothing."""
    arguments: str
    """JSON text of an object; of a malformed call, what the model wrote."""
    error: str | None = None
    """What is wrong with a malformed call."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a streamed call: the pieces' `arguments` add up to the call's."""

    index: int
    """Which of the sample's calls this belongs to."""
    id: str | None
    """Set on the first piece of a call, None on the others; so is `name`."""
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of a streamed answer: what one step made final."""

    index: int
    """Which of the request's n samples this belongs to."""
    content: str
    reasoning: str
    tool_calls: tuple[ToolCallDelta, ...]
    finish_reason: str | None
    """Set on the last delta of a sample."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatResult:
    """One finished answer."""

    content: str
    reasoning: str
    """What the model thought before it answered; "" for models that do not."""
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    """"stop", "length", "tool_calls", "cancelled" or "timeout"."""
    completion: Completion
    reasoning_tokens: int = 0
    """Tokens of the completion that were spent on `reasoning`."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an engine's target is and can do."""

    name: str
    context_length: int
    """Prompt and answer together, in tokens."""
    supports_tools: bool
    """Whether the chat template shows tools to the model."""
    supports_reasoning: bool
    chain: str
    """The models and free drafters of the engine, lowest level first: "ngram, small -> target"."""
