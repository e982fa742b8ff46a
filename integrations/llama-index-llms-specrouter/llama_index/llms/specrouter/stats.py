"""Speculation and token counts summed over calls."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent

_SPECULATION = ("num_draft_tokens", "num_accepted_draft_tokens", "num_spec_steps", "num_target_steps")


class SpecRouterStatsHandler(BaseEventHandler):
    """Adds up what the final responses report, for each model. Responses of other LLMs are left out.

    handler = SpecRouterStatsHandler()
    llama_index.core.instrumentation.get_dispatcher().add_event_handler(handler)
    ...
    print(handler.totals())
    """

    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _sums: dict[str, dict[str, int]] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "SpecRouterStatsHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if not isinstance(event, (LLMChatEndEvent, LLMCompletionEndEvent)) or event.response is None:
            return
        raw = event.response.raw
        if not isinstance(raw, Mapping) or "speculative_decoding" not in raw:
            return
        usage, speculation = raw["usage"], raw["speculative_decoding"]
        counts = {
            "calls": 1,
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            **{name: speculation[name] for name in _SPECULATION},
        }
        with self._lock:
            sums = self._sums.setdefault(raw["model"], dict.fromkeys(counts, 0))
            for name, count in counts.items():
                sums[name] += count

    def totals(self) -> dict[str, dict[str, float]]:
        """The sums by model, with the rates that follow from them."""
        with self._lock:
            return {model: {**sums, **_rates(sums)} for model, sums in self._sums.items()}

    def reset(self) -> None:
        """Forgets all sums."""
        with self._lock:
            self._sums.clear()


def _rates(sums: Mapping[str, int]) -> dict[str, float]:
    drafted, steps = sums["num_draft_tokens"], sums["num_target_steps"]
    return {
        "draft_acceptance_rate": sums["num_accepted_draft_tokens"] / drafted if drafted else 0.0,
        "mean_acceptance_length": sums["completion_tokens"] / steps if steps else 0.0,
    }
