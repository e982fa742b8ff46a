"""What the adaptive policy decided for a step, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from specrouter_llm.scheduling.lookups import Calls
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Forward, RowObservation, RowView, Score, StepObservation, Trial

NEW_ROW = "a row has come"
"""The reason of a decision that is the first for one of its rows."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What `plan` decided; it comes into force in `observe`."""

    key: tuple[int, ...]
    plans: tuple[Plan, ...]
    """To be run."""
    standing: tuple[Plan, ...]
    """The best known; differs from `plans` in a probe and in a trial."""
    predicted: float
    """Seconds per token of the standing plans, all rows together; NaN if nothing was decided for these very rows."""
    reason: str = ""
    """Why the standing plans changed; empty if they did not."""
    gain: float = 0.0
    probed: int | None = None
    """The place of the row that probes."""
    looked: bool | None = None
    """Whether a search for a probe found one; None if there was no such search."""
    fresh: frozenset[int] = frozenset()
    """Rows that nothing was decided for yet."""

    @property
    def by_row(self) -> dict[int, Plan]:
        """The standing plans of the rows that something was decided for."""
        given = zip(self.key, self.standing, strict=True)
        return {row_id: plan for row_id, plan in given if row_id not in self.fresh}

    def carried(self, key: tuple[int, ...], plain: Plan) -> Decision:
        """What stands, for the rows that are there now; those that have come are decoded plainly."""
        known = self.by_row
        plans = tuple(known.get(row_id, plain) for row_id in key)
        return Decision(key, plans, plans, math.nan, fresh=frozenset(key) - known.keys())

    @property
    def tries(self) -> bool:
        """Whether something else than the standing plans is run: for one step."""
        return self.plans != self.standing

    def settled(self) -> Decision:
        """The same when that step is over."""
        return replace(self, plans=self.standing, probed=None, looked=None)

    def probing(self, place: int, plan: Plan) -> Decision:
        """With the row at one place on another plan."""
        plans = tuple(plan if i == place else other for i, other in enumerate(self.standing))
        return replace(self, plans=plans, probed=place)

    def running(self, plans: Sequence[Plan]) -> Decision:
        """With other plans for all rows."""
        return replace(self, plans=tuple(plans))


class Seen(NamedTuple):
    """A step that has not been learnt from yet."""

    step: StepObservation
    decision: Decision | None
    """That it was run by; None if all chains were forced."""
    views: Mapping[int, RowView]
    """What the decision was made for, by row."""
    reconsidered: bool
    """Whether the search for the next decision took part of it."""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing was tried in it and no row has ended."""
        return not (self.decision is not None and self.decision.tries) and not any(r.finished for r in self.step.rows)

    @property
    def is_trial(self) -> bool:
        """Whether the rows ran what stands with other windows, or plainly."""
        return self.decision is not None and self.decision.tries and self.decision.probed is None

    def planned(self, row_id: int) -> Plan | None:
        """What a row was to run."""
        if self.decision is None or row_id not in self.decision.key:
            return None
        return self.decision.plans[self.decision.key.index(row_id)]


def forwards_of(steps: Sequence[Seen], proposers: Collection[str], target: str) -> list[tuple[list[Forward], bool]]:
    """Forwards of all steps by kind, one behind the other, each kind with whether it was of the target in a trial. Several of
    one kind in a step are one, that took their mean: what disturbs one of them disturbs all. None of those whose time says
    little; a call of a model-free level counts by rows."""
    found: dict[tuple[str, int, int, bool, bool], list[Forward]] = {}
    for seen in steps:
        alike: dict[tuple[str, int, int, bool, bool], list[Forward]] = {}
        for forward in seen.step.forwards:
            of_target = forward.level == target
            if forward.shifted or (of_target and seen.reconsidered):
                continue  # in the second case the search may have been longer
            if forward.level in proposers:
                forward = Forward(forward.level, forward.num_rows, forward.num_rows, 0, forward.seconds)
            key = forward.level, forward.num_rows, forward.num_tokens, forward.looped, of_target and seen.is_trial
            alike.setdefault(key, []).append(forward)
        for key, some in alike.items():
            found.setdefault(key, []).append(some[0] if len(some) == 1 else _mean_of(some))
    return [(some, key[-1]) for key, some in found.items()]


def _mean_of(alike: Sequence[Forward]) -> Forward:
    turns = sum(forward.turns for forward in alike)
    return alike[0]._replace(seconds=sum(forward.seconds_together for forward in alike) / turns)


@dataclass(slots=True)
class RowSeen:
    """One row in steps that have not been learnt from yet. What it has shown in all of them is learnt at once."""

    views: list[RowView] = field(default_factory=list)
    planned: list[Plan | None] = field(default_factory=list)
    """What it was to run in each step."""
    observed: list[RowObservation] = field(default_factory=list)

    @property
    def temperature(self) -> float:
        return self.views[-1].temperature

    @property
    def trials(self) -> list[Trial]:
        """Of all steps."""
        return [trial for row in self.observed for trial in row.trials]

    @property
    def scores(self) -> list[Score]:
        """Of all steps."""
        return [score for row in self.observed for score in row.scores]

    @property
    def finished(self) -> bool:
        return self.observed[-1].finished

    def calls(self, name: str) -> Calls:
        """Of a model-free level, in all steps."""
        found = zip(self.observed, self.views, self.planned, strict=True)
        return Calls.joined([Calls.of(name, row, view.remaining, planned) for row, view, planned in found])


def rows_of(steps: Sequence[Seen]) -> dict[int, RowSeen]:
    """What these steps have shown of each row that a policy has decided for: of others the regime is not known."""
    rows: dict[int, RowSeen] = {}
    for seen in steps:
        for row in seen.step.rows:
            if (view := seen.views.get(row.row_id)) is not None:
                found = rows.setdefault(row.row_id, RowSeen())
                found.views.append(view)
                found.planned.append(seen.planned(row.row_id))
                found.observed.append(row)
    return rows
