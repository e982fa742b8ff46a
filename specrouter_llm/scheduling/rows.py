"""What the scheduler remembers of each row: what its models have seen, what it cannot use, how its chain changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from specrouter_llm.scheduling.counts import Array
from specrouter_llm.scheduling.latency import LatencyModel
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowObservation, RowView
from specrouter_llm.types import RouteSwitch

KEPT_ROWS = 256
"""Finished rows whose switches can still be read."""
MOST_SWITCHES = 64
"""Of one row; the first ones are kept."""
KEPT_STEPS = 64
"""A row that is not planned for during so many steps has left."""
HORIZON = 256
"""Tokens that a row is expected to go on for, or as many as it has had so far, if it may: `remaining` is a limit, not a
promise."""
PATIENCE = 8
"""Steps in a row in which a planned level is left out before it counts as unusable, and 1 more per 32 tokens missed."""


@dataclass(slots=True)
class RowMemory:
    """One running row."""

    seen: dict[str, int] = field(default_factory=dict)
    """Committed tokens that each model has taken in."""
    blocked: set[str] = field(default_factory=set)
    """Levels that the engine keeps leaving out: failed, outgrown, of another vocabulary."""
    left_out: dict[str, int] = field(default_factory=dict)
    switches: list[RouteSwitch] = field(default_factory=list)
    generated: int = 0
    """Tokens committed under this policy."""
    last_step: int = 0
    """When the row was last planned for."""

    def lag(self, level: str, num_tokens: int) -> int:
        """Tokens that the level must feed before it can draft, as far as plans tell."""
        return max(0, num_tokens - self.seen.get(level, 0) - 1)

    def observe(self, planned: Plan | None, seen: RowObservation, num_tokens: int) -> None:
        """Follows one step that began with `num_tokens` committed tokens."""
        levels = seen.plan.levels
        for level in levels:
            self.seen[level] = num_tokens + seen.committed
            self.left_out.pop(level, None)
        expected = planned.levels if planned is not None else ()
        if planned is not None and planned.lookup_first:
            expected = planned.alternatives[planned.levels[0] not in levels].levels
        for level in expected:
            if level not in levels:
                missed = self.left_out[level] = self.left_out.get(level, 0) + 1
                if missed > PATIENCE + num_tokens // 32:
                    self.blocked.add(level)
        self.generated += seen.committed


class RowBook:
    """All rows. A row is dropped once it has finished, or is no longer planned for; its switches stay for a while."""

    def __init__(self, models: Collection[str]) -> None:
        """`models`: levels that have to take in what they missed."""
        self._models = models
        self._rows: dict[int, RowMemory] = {}
        self._finished: OrderedDict[int, tuple[RouteSwitch, ...]] = OrderedDict()

    def __getitem__(self, row_id: int) -> RowMemory:
        found = self._rows.get(row_id)
        if found is None:
            found = self._rows[row_id] = RowMemory()
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def future(self, row: RowView) -> int:
        """Tokens that a row is expected to have left."""
        return max(1, min(row.remaining, max(HORIZON, self[row.row_id].generated)))

    def missing_seconds(self, level: str, rows: Sequence[RowView], latency: LatencyModel) -> float:
        """What it costs a model to take in the committed tokens that it lacks, beyond a forward that it runs anyway."""
        if level not in self._models or not latency.knows(level):
            return 0.0
        missing = sum(self[row.row_id].lag(level, row.num_tokens) for row in rows)
        if missing <= 2 * len(rows):
            return 0.0
        return latency.seconds(level, missing + 1) - latency.seconds(level, 1)

    def catch_up(self, levels: Sequence[str], rows: Sequence[RowView], latency: LatencyModel) -> Array:
        """[L] seconds per token of the batch: what levels have to take in, spread over the tokens to come."""
        future = sum(map(self.future, rows))
        return np.array([self.missing_seconds(level, rows, latency) for level in levels]) / future

    def blocked(self, rows: Sequence[RowView], lower: Sequence[str]) -> Array:
        """[R, L] 1 where the engine keeps leaving a level out."""
        table = np.zeros((len(rows), len(lower)))
        for r, row in enumerate(rows):
            for level in self[row.row_id].blocked.intersection(lower):
                table[r, lower.index(level)] = 1.0
        return table

    def expire(self, rows: Sequence[RowView], step: int) -> list[int]:
        """Drops rows that were not planned for lately (cancelled, failed): returns their ids."""
        for row in rows:
            self[row.row_id].last_step = step
        if len(self._rows) == len(rows):
            return []
        gone = [row_id for row_id, row in self._rows.items() if row.last_step < step - KEPT_STEPS]
        for row_id in gone:
            self.finish(row_id)
        return gone

    def finish(self, row_id: int) -> None:
        """Drops one row and keeps its switches among the last."""
        row = self._rows.pop(row_id, None)
        if row is not None:
            self._finished[row_id] = tuple(row.switches)
            while len(self._finished) > KEPT_ROWS:
                self._finished.popitem(last=False)

    def switched(self, row_id: int, before: Plan, after: Plan, reason: str, gain: float) -> None:
        """Notes that a row's standing chain has changed."""
        row = self._rows.get(row_id)
        if row is not None and before.route != after.route and len(row.switches) < MOST_SWITCHES:
            row.switches.append(RouteSwitch(row.generated, before.levels, after.levels, reason, gain))

    def switches(self, row_id: int) -> tuple[RouteSwitch, ...]:
        """Changes of chain of a running or recently finished row."""
        row = self._rows.get(row_id)
        return tuple(row.switches) if row is not None else self._finished.get(row_id, ())
