"""What became of the calls of a model-free level in one step of a row."""

from __future__ import annotations

from typing import NamedTuple

from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowObservation


class Calls(NamedTuple):
    """How often and how long it proposed. A call that proposed nothing leaves no trial."""

    lengths: list[int]
    """Tokens of each proposal."""
    misses: int
    """Calls without a proposal."""
    ends: int
    """Proposals that ended before their window did."""

    @classmethod
    def of(cls, name: str, row: RowObservation, remaining: int, planned: Plan | None = None) -> Calls:
        """`remaining` tokens could still be committed before the step, which was to run `planned`."""
        trials = [trial for trial in row.trials if trial.lower == name]
        lengths = [trial.proposed for trial in trials]
        plan = row.plan
        if (
            planned is not None
            and planned.lookup_first
            and name == planned.levels[0] not in plan.levels
            and remaining > 1
        ):
            return cls(lengths, 1, 0)  # it was asked first
        if name not in plan.levels or remaining <= 1:  # not used; it may still have been scored beside the plan
            return cls(lengths, 0, 0)
        if len(plan.levels) == 2:
            window = min(plan.windows[0], remaining - 1)
            return cls(lengths, 0 if lengths else 1, sum(length < window for length in lengths))
        # each round of the level above offers what it accepted and one token of its own
        above = sum(trial.proposed for trial in row.trials if trial.lower == plan.levels[1])
        misses = max(0, above - sum(trial.accepted + 1 for trial in trials))
        ends, room = 0, min(plan.windows[1], remaining - 1) - 1 - misses
        for trial in trials:
            ends += trial.proposed < min(plan.windows[0], room)
            room -= trial.accepted + 1
        return cls(lengths, misses, ends)
