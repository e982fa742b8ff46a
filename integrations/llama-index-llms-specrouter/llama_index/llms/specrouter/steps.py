"""The steps of one request as plain JSON, for `stats="detailed"`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specrouter_llm.types import StepInfo


class StepLog:
    """An `on_step` callback that remembers, and hands each step on."""

    def __init__(self, then: Callable[[StepInfo], None] | None) -> None:
        self.steps: list[dict[str, Any]] = []
        self._then = then

    def __call__(self, step: StepInfo) -> None:
        self.steps.append(
            {
                "step": len(self.steps),
                "chain": list(step.chain),
                "drafted": {level.model: level.drafted for level in step.levels},
                "accepted": {level.model: level.accepted for level in step.levels},
                "committed": len(step.committed),
                "seconds": step.seconds,
            }
        )
        if self._then is not None:
            self._then(step)
