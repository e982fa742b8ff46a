"""Chunked prefill: how much catching up fits beside a step, and who takes in a chunk instead."""

from __future__ import annotations

from specrouter_llm.errors import ModelFailure, told
from specrouter_llm.executor import Executor
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row


class CatchUp:
    """One turn's budget of missing tokens per model.

    What fits rides in the step's own forward. A row that lacks more takes in what is left of the budget in a forward of
    its own, and waits (if it is the target that lags) or goes without that level (if it is a drafter).
    """

    def __init__(self, executor: Executor, state: StateManager, chunk: int) -> None:
        self._executor = executor
        self._state = state
        self._chunk = chunk
        self._left: dict[str, int] = {}

    def fits(self, model: str, row: Row) -> bool:
        """Whether the model's missing tokens of this row may ride in the step.

        Raises:
            ModelFailure: taking in a chunk failed.
        """
        lag, left = self._state.lag(model, row.slot), self._left.get(model, self._chunk)
        if lag <= left:
            self._left[model] = left - lag
            return True
        if left > 0:
            self._executor.prefill(model, [row], left)
            self._left[model] = 0
        return False

    def trimmed(self, plan: Plan, row: Row) -> Plan:
        """The plan without drafters that lag too far or fail to catch up."""
        plan = self._executor.usable(row, plan)
        lagging = set()
        for level in plan.levels[:-1]:
            if not self._executor.has_model(level):
                continue
            try:
                if not self.fits(level, row):
                    lagging.add(level)
            except ModelFailure as failure:
                row.set_aside[level] = f"raised {told(failure.cause)}"
        return plan.without(lagging | row.set_aside.keys())
