"""Model-free levels: what became of their calls in one step of a row, and when they are asked beside what runs.

A lookup takes microseconds, and what it would have proposed can be held against what the step commits without a token lost.
So how well it does is always known, while models that do not run must be tried.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowObservation, StepObservation

OFTEN, SELDOM = 16, 8
"""Levels are asked in so many steps in succession, then as often with one step between two, and so on, with so many between
two in the end: often at first, when one answer would say little, and later about as often as rows come."""
ASIDE_SHARE = 0.005
"""Share of the time that lookups take where levels are asked: a slow one is asked less often."""


class Calls(NamedTuple):
    """How often and how long it proposed, in one step or in several. A call that proposed nothing leaves no trial."""

    lengths: list[int]
    """Tokens of each proposal."""
    misses: int
    """Calls without a proposal."""
    ends: int
    """Proposals that ended before their window did."""

    @classmethod
    def of(cls, name: str, row: RowObservation, remaining: int, planned: Plan | None = None) -> Calls:
        """`remaining` tokens could still be committed before the step, which was to run `planned`."""
        beside = [aside for aside in row.asides if aside.level == name]
        if beside:
            lengths = [aside.proposed for aside in beside if aside.proposed]
            return cls(lengths, len(beside) - len(lengths), sum(0 < aside.proposed < aside.wanted for aside in beside))
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

    @classmethod
    def joined(cls, parts: Sequence[Calls]) -> Calls:
        """Of several steps."""
        lengths = [length for part in parts for length in part.lengths]
        return cls(lengths, sum(part.misses for part in parts), sum(part.ends for part in parts))


class Asides:
    """When model-free levels are asked what they would have proposed."""

    def __init__(self, proposers: Collection[str]) -> None:
        self._proposers = proposers
        self._asked = 0
        self._next = 0

    def due(self, step: int) -> bool:
        """Whether to ask in this step."""
        return bool(self._proposers) and step >= self._next

    def observe(self, seen: StepObservation, step: int) -> None:
        """What a step did; `step` is the number of the next one. One in which all rows used all levels was none to ask in."""
        if not any(row.asides for row in seen.rows):
            return
        spent = sum(forward.seconds for forward in seen.forwards if forward.level in self._proposers)
        pause = min(SELDOM, self._asked // OFTEN), math.ceil(spent / (ASIDE_SHARE * max(seen.seconds, 1e-9))) - 1
        self._asked += 1
        self._next = step + max(pause)
