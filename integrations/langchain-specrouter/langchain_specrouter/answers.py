"""From the engine's deltas and results to LangChain's messages.

How chunks merge decides where things go: numbers that differ between chunks crash or corrupt the merged message, so
all metadata is on the last chunk, once. Reasoning travels in `additional_kwargs`, where it merges into one block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from langchain_specrouter.malformed import marked
from specrouter_llm import Completion
from specrouter_llm.chat import ChatDelta, ChatResult, usage
from specrouter_llm.chat import ToolCall as WrittenCall

REASONING = "reasoning_content"
FIRST_CALL_BLOCK = 1_000_000
"""Index of the first call among content blocks. LangChain counts blocks of text from 0, at most one for each token, and merges
what has the same index."""


def delta_chunks(delta: ChatDelta, first_call: int = 0) -> list[ChatGenerationChunk]:
    """One step's share of a streamed answer: thoughts, text, and pieces of calls, whose indexes begin with `first_call`.

    They are chunks of their own: LangChain tells the blocks of a stream apart by their place in a chunk, and makes none of
    pieces of calls beside text.
    """
    calls = [
        tool_call_chunk(name=piece.name or None, args=piece.arguments, id=piece.id, index=first_call + piece.index)
        for piece in delta.tool_calls
    ]
    messages = []
    if delta.reasoning:
        messages.append(AIMessageChunk(content="", additional_kwargs={REASONING: delta.reasoning}))
    if delta.content:
        messages.append(AIMessageChunk(content=delta.content))
    if calls:
        messages.append(AIMessageChunk(content="", tool_call_chunks=calls))
    return [ChatGenerationChunk(message=message) for message in messages]


def last_chunks(
    result: ChatResult, response_metadata: dict[str, Any], extra: dict[str, Any], first_call: int = 0
) -> list[ChatGenerationChunk]:
    """A chunk that marks malformed calls, if there are any, and the one that carries usage and metadata.

    `extra` are additional_kwargs.
    """
    marks = [
        tool_call_chunk(name=None, args=marked(""), id=None, index=index)
        for index, call in enumerate(result.tool_calls, first_call)
        if _arguments(call)[0] is None
    ]
    chunks = [ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=marks))] if marks else []
    message = AIMessageChunk(
        content="",
        additional_kwargs=extra,
        response_metadata=response_metadata,
        usage_metadata=usage_metadata(result),
        chunk_position="last",
    )
    return [*chunks, ChatGenerationChunk(message=message, generation_info={"finish_reason": result.finish_reason})]


def generation(result: ChatResult, response_metadata: dict[str, Any], extra: dict[str, Any]) -> ChatGeneration:
    """A whole answer; the same message as the merged chunks of its stream."""
    calls, invalid = tool_calls(result)
    message = AIMessage(
        content=result.content,
        additional_kwargs={**({REASONING: result.reasoning} if result.reasoning else {}), **extra},
        response_metadata=response_metadata,
        usage_metadata=usage_metadata(result),
        tool_calls=calls,
        invalid_tool_calls=invalid,
    )
    return ChatGeneration(message=message, generation_info={"finish_reason": result.finish_reason})


def tool_calls(result: ChatResult) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """The calls that can be run, and the malformed ones with what is wrong with them."""
    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in result.tool_calls:
        arguments, error = _arguments(call)
        if arguments is None:
            invalid.append(invalid_tool_call(name=call.name or None, args=call.arguments, id=call.id, error=error))
        else:
            valid.append(tool_call(name=call.name, args=arguments, id=call.id))
    return valid, invalid


def usage_metadata(result: ChatResult) -> UsageMetadata:
    """Standard keys only: others are summed, dropped or subtracted by what reads them."""
    counts = usage(result.completion, result.reasoning_tokens)
    return UsageMetadata(
        input_tokens=counts["input_tokens"],
        output_tokens=counts["output_tokens"],
        total_tokens=counts["total_tokens"],
        input_token_details=InputTokenDetails(cache_read=counts["cached_tokens"]),
        output_token_details=OutputTokenDetails(reasoning=counts["reasoning_tokens"]),
    )


def token_usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Sums over the answers to several prompts, under OpenAI's names; each prompt counts once."""
    sums = {
        "prompt_tokens": sum(c.usage.prompt_tokens for c in completions if c.index == 0),
        "completion_tokens": sum(c.usage.completion_tokens for c in completions),
    }
    return {**sums, "total_tokens": sum(sums.values())}


def _arguments(call: WrittenCall) -> tuple[dict[str, Any] | None, str | None]:
    """The arguments of a call that can be run, or what is wrong with it."""
    if call.error:
        return None, call.error
    try:
        parsed = json.loads(call.arguments or "{}")
    except ValueError as error:
        return None, f"the arguments are not JSON: {error}"
    return (parsed, None) if isinstance(parsed, dict) else (None, "the arguments are not a JSON object")
