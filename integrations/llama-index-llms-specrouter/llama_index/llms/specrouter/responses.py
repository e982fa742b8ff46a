"""What the engine answers, as LlamaIndex responses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

from llama_index.llms.specrouter.messages import openai_call
from specrouter_llm import chat

if TYPE_CHECKING:
    from specrouter_llm.text.tokenizer import Tokenizer


class Answer:
    """A streamed answer so far: text and calls accumulate, as LlamaIndex wants them in every response."""

    def __init__(self) -> None:
        self._content = ""
        self._reasoning = ""
        self._calls: dict[int, chat.ToolCall] = {}

    def add(self, delta: chat.ChatDelta) -> ChatResponse:
        """The response for one more piece."""
        self._content += delta.content
        self._reasoning += delta.reasoning
        for piece in delta.tool_calls:
            known = self._calls.get(piece.index)
            self._calls[piece.index] = chat.ToolCall(
                id=(known.id if known else piece.id) or "",
                name=(known.name if known else piece.name) or "",
                arguments=(known.arguments if known else "") + piece.arguments,
            )
        return ChatResponse(
            message=_message(self._content, self._reasoning, self._calls.values()),
            delta=delta.content,
            additional_kwargs={"thinking_delta": delta.reasoning} if delta.reasoning else {},
        )


def final_response(
    result: chat.ChatResult,
    raw: dict[str, Any],
    logprobs: list[list[LogProb]] | None,
    last: ChatResponse | None,
) -> ChatResponse:
    """The whole answer, with the delta of the `last` piece if it was streamed."""
    return ChatResponse(
        message=_message(result.content, result.reasoning, result.tool_calls, result.reasoning_tokens),
        delta=None if last is None else last.delta,
        additional_kwargs={} if last is None else last.additional_kwargs,
        raw=raw,
        logprobs=logprobs,
    )


def token_logprobs(result: chat.ChatResult, tokenizer: Tokenizer | None) -> list[list[LogProb]] | None:
    """For each token of the answer its own, then those of the likeliest others; None unless they were asked for."""
    told = chat.logprobs(result.completion, tokenizer)
    return None if told is None else [_own_first(entry) for entry in told["content"]]


def as_completion(response: ChatResponse) -> CompletionResponse:
    """The same answer from a completion endpoint."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def raw_dict(result: chat.ChatResult, model: str) -> dict[str, Any]:
    """`raw` of a final response: plain JSON types, counts under the names that LlamaIndex's counters read."""
    counts = chat.usage(result.completion, result.reasoning_tokens)
    metadata = chat.metadata(result.completion, model, finish_reason=result.finish_reason)
    return {
        "usage": {
            "prompt_tokens": counts["input_tokens"],
            "completion_tokens": counts["output_tokens"],
            "total_tokens": counts["total_tokens"],
            "prompt_tokens_details": {"cached_tokens": counts["cached_tokens"]},
            "completion_tokens_details": {"reasoning_tokens": counts["reasoning_tokens"]},
        },
        "model": metadata["model_name"],
        **{key: metadata[key] for key in ("finish_reason", "speculative_decoding", "timings")},
    }


def first_call_only(response: ChatResponse) -> ChatResponse:
    """`response` without the calls after the first."""
    message = response.message
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if len(calls) < 2:
        return response
    kept = message.model_copy(
        update={
            "blocks": [block for block in message.blocks if block not in calls[1:]],
            "additional_kwargs": {
                **message.additional_kwargs,
                "tool_calls": message.additional_kwargs["tool_calls"][:1],
            },
        }
    )
    return response.model_copy(update={"message": kept})


def tool_selections(message: ChatMessage) -> list[ToolSelection]:
    """The calls of a message, also of one that is still being streamed: unfinished arguments are read as far as they go.

    A malformed call is not guessed at, or a tool would run on what the model did not say. It is selected under a name
    that no tool has and that says what is wrong: agents show that to the model, which can try again.
    """
    errors = malformed_calls(message)
    return [
        ToolSelection(
            tool_id=block.tool_call_id or "",
            tool_name=f"{block.tool_name} (malformed call: {error})" if error else block.tool_name,
            tool_kwargs={} if error else _arguments(block.tool_kwargs),
        )
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
        for error in [errors.get(block.tool_call_id)]
    ]


def malformed_calls(message: ChatMessage) -> dict[str | None, str]:
    """What is wrong with each malformed call, by id."""
    calls = message.additional_kwargs.get("tool_calls", ())
    return {call["id"]: call["error"] for call in calls if call.get("error")}


def _own_first(entry: Mapping[str, Any]) -> list[LogProb]:
    own, *likeliest = (
        LogProb(token=told["token"], logprob=told["logprob"], bytes=told["bytes"])
        for told in (entry, *entry["top_logprobs"])
    )
    return [own, *(other for other in likeliest if other != own)]


def _message(
    content: str, reasoning: str, calls: Iterable[chat.ToolCall], reasoning_tokens: int | None = None
) -> ChatMessage:
    """Calls stand in the message twice: structured streaming of LlamaIndex reads `additional_kwargs` only."""
    calls = list(calls)
    thinking: list[ContentBlock] = [ThinkingBlock(content=reasoning, num_tokens=reasoning_tokens)] if reasoning else []
    blocks = [ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=_loaded(c.arguments)) for c in calls]
    listed = [
        openai_call(call.id, call.name, call.arguments) | ({"error": call.error} if call.error else {})
        for call in calls
    ]
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[*thinking, TextBlock(text=content), *blocks],
        additional_kwargs={"tool_calls": listed} if listed else {},
    )


def _loaded(arguments: str) -> dict[str, Any] | str:
    """Arguments as a dict, or the text as it is while it is no JSON object."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _arguments(tool_kwargs: Mapping[str, Any] | str) -> dict[str, Any]:
    if not isinstance(tool_kwargs, str):
        return dict(tool_kwargs)
    try:
        value = parse_partial_json(tool_kwargs) if tool_kwargs.strip() else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
