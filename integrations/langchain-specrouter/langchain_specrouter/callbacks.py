"""`SpecRouterStatsHandler`: speculative decoding summed over all calls that a handler sees."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from langchain_specrouter.statistics import SPECULATION


@dataclass
class SpeculationTotals:
    """Sums over calls, under vLLM's names."""

    num_calls: int = 0
    num_output_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_spec_steps: int = 0
    num_target_steps: int = 0

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted / drafted tokens."""
        return self.num_accepted_draft_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per forward of the target."""
        return self.num_output_tokens / self.num_target_steps if self.num_target_steps else 0.0

    def add(self, speculation: Mapping[str, Any], output_tokens: int) -> None:
        self.num_calls += 1
        self.num_output_tokens += output_tokens
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + speculation[name])


_SUMMED = [field.name for field in fields(SpeculationTotals) if field.name not in ("num_calls", "num_output_tokens")]


class SpecRouterStatsHandler(BaseCallbackHandler):
    """Sums the statistics of every SpecRouter call below the runs it is given to; may be used by many threads.

    >>> from langchain_specrouter import ChatSpecRouter
    >>> model, stats = ChatSpecRouter(model="demo", max_tokens=20), SpecRouterStatsHandler()
    >>> answers = model.batch(["Hello", "What is 3 plus 4?"], {"callbacks": [stats]})
    >>> stats.by_model["demo"].num_calls
    2
    >>> model.close()
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.by_model: dict[str, SpeculationTotals] = {}
        """Sums by the name of the target."""

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        for answers in response.generations:
            for answer in answers:
                told, output_tokens = _told(answer)
                if SPECULATION in told:
                    with self._lock:
                        totals = self.by_model.setdefault(str(told["model_name"]), SpeculationTotals())
                        totals.add(told[SPECULATION], output_tokens)

    def reset(self) -> None:
        with self._lock:
            self.by_model = {}

    def __repr__(self) -> str:
        return f"SpecRouterStatsHandler({ {name: asdict(totals) for name, totals in self.by_model.items()} })"


def _told(answer: Generation) -> tuple[Mapping[str, Any], int]:
    """(metadata, output tokens) of an answer of a chat model or of an LLM."""
    if isinstance(answer, ChatGeneration):
        message = answer.message
        usage = getattr(message, "usage_metadata", None) or {}
        return message.response_metadata, usage.get("output_tokens", 0)
    info = answer.generation_info or {}
    return info, (info.get("usage_metadata") or {}).get("output_tokens", 0)
