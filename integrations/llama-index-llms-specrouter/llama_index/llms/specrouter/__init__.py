"""LlamaIndex LLM for specrouter-llm: local models with lossless multi-level speculative decoding."""

from __future__ import annotations

from llama_index.llms.specrouter.base import SpecRouterLLM
from llama_index.llms.specrouter.stats import SpecRouterStatsHandler

__all__ = ["SpecRouterLLM", "SpecRouterStatsHandler"]
