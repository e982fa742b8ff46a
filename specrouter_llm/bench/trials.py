"""Trials by request: a policy that runs one plan for all, and what the levels accepted of each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowView, StepObservation

CATCH_UP_STEPS = 2
"""Of a request: its first step takes in the prompt for the target, the second one for the drafters."""


@dataclass(slots=True)
class Count:
    """What one level did with the proposals of another."""

    proposed: int = 0
    accepted: int = 0
    rejections: int = 0
    """First mismatches: what came after one in its proposal was never put to the test."""

    @property
    def rate(self) -> float:
        """Estimate of the match rate that censoring does not bias; NaN without a trial."""
        trials = self.accepted + self.rejections
        return self.accepted / trials if trials else float("nan")


class TrialRecorder:
    """A `Policy`: the same plan for every row, and counts of every row."""

    def __init__(self, plan: Plan, listener: Callable[[StepObservation], None] = lambda step: None) -> None:
        """`listener` sees every step after it was counted."""
        self.use(plan)
        self._listener = listener

    def use(self, plan: Plan) -> None:
        """Another plan from now on, with counts of its own."""
        self._plan = plan
        self.rows: defaultdict[int, defaultdict[tuple[str, str], Count]] = defaultdict(lambda: defaultdict(Count))
        """(lower, upper) -> count, by row id."""
        self.tokens = 0
        """Committed by typical steps: models have taken in the prompt, and the proposal is as long as it may be."""
        self.seconds = 0.0
        """Duration of these steps."""
        self._steps: Counter[int] = Counter()
        self._long = True

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        self._long = all(row.remaining > self._plan.window for row in rows)
        return [self._plan] * len(rows)

    def observe(self, step: StepObservation) -> None:
        for row in step.rows:
            for trial in row.trials:
                count = self.rows[row.row_id][trial.lower, trial.upper]
                count.proposed += trial.proposed
                count.accepted += trial.accepted
                count.rejections += trial.accepted < trial.proposed
        if self._long and all(self._steps[row.row_id] >= CATCH_UP_STEPS for row in step.rows):
            self.tokens += sum(row.committed for row in step.rows)
            self.seconds += step.seconds
        self._steps.update(row.row_id for row in step.rows)
        self._listener(step)

    def total(self, pair: tuple[str, str]) -> Count:
        """Of all rows."""
        counts = [row[pair] for row in self.rows.values() if pair in row]
        return Count(
            sum(count.proposed for count in counts),
            sum(count.accepted for count in counts),
            sum(count.rejections for count in counts),
        )
