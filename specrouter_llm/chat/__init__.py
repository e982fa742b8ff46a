"""Chats with tools and structured answers over one engine: what framework adapters are thin translations of."""

from __future__ import annotations

from specrouter_llm.chat.engines import EngineKey, close_shared, shared_engine
from specrouter_llm.chat.handle import ChatHandle
from specrouter_llm.chat.hints import counterpart, counterparts
from specrouter_llm.chat.report import metadata, usage
from specrouter_llm.chat.request import ChatRequest
from specrouter_llm.chat.submission import count_tokens, model_info, submit
from specrouter_llm.chat.token_report import logprobs
from specrouter_llm.chat.values import ChatDelta, ChatResult, ModelInfo, ToolCall, ToolCallDelta

__all__ = [
    "ChatDelta",
    "ChatHandle",
    "ChatRequest",
    "ChatResult",
    "EngineKey",
    "ModelInfo",
    "ToolCall",
    "ToolCallDelta",
    "close_shared",
    "count_tokens",
    "counterpart",
    "counterparts",
    "logprobs",
    "metadata",
    "model_info",
    "shared_engine",
    "submit",
    "usage",
]
