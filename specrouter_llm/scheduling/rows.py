"""What the scheduler remembers of each row: what its models have seen, what it cannot use, the route it took."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowObservation, RowView

KEPT_ROUTES = 256
"""Routes of finished rows that can still be read."""
KEPT_STEPS = 64
"""A row that is not planned for during so many steps has left."""
PATIENCE = 8
"""Steps in a row in which a planned level is left out before it counts as unusable, and 1 more per 32 tokens missed."""


@dataclass(frozen=True, slots=True)
class RouteLeg:
    """All steps that a row took with one chain."""

    levels: tuple[str, ...]
    steps: int
    tokens: int
    """Committed."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a row was decoded."""

    legs: tuple[RouteLeg, ...]
    """Most tokens first."""
    switches: int
    """Times that the chain changed from one step to the next."""
    steps: int
    tokens: int


@dataclass(slots=True)
class RowMemory:
    """One running row."""

    seen: dict[str, int] = field(default_factory=dict)
    """Committed tokens that each model has taken in."""
    blocked: set[str] = field(default_factory=set)
    """Levels that the engine keeps leaving out: failed, outgrown, of another vocabulary."""
    left_out: dict[str, int] = field(default_factory=dict)
    legs: dict[tuple[str, ...], tuple[int, int]] = field(default_factory=dict)
    last: tuple[str, ...] = ()
    switches: int = 0
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
        for level in planned.levels if planned is not None else ():
            if level not in levels:
                missed = self.left_out[level] = self.left_out.get(level, 0) + 1
                if missed > PATIENCE + num_tokens // 32:
                    self.blocked.add(level)
        steps, tokens = self.legs.get(levels, (0, 0))
        self.legs[levels] = (steps + 1, tokens + seen.committed)
        self.generated += seen.committed
        self.switches += bool(self.last) and self.last != levels
        self.last = levels

    def route(self) -> Route:
        legs = sorted((RouteLeg(levels, *counts) for levels, counts in self.legs.items()), key=lambda leg: -leg.tokens)
        return Route(tuple(legs), self.switches, sum(leg.steps for leg in legs), sum(leg.tokens for leg in legs))


class RowBook:
    """All rows. A row is dropped once it has finished, or is no longer planned for; its route stays for a while."""

    def __init__(self) -> None:
        self._rows: dict[int, RowMemory] = {}
        self._routes: OrderedDict[int, Route] = OrderedDict()

    def __getitem__(self, row_id: int) -> RowMemory:
        return self._rows.setdefault(row_id, RowMemory())

    def __len__(self) -> int:
        return len(self._rows)

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
        """Drops one row and keeps its route among the last."""
        row = self._rows.pop(row_id, None)
        if row is not None and row.legs:
            self._routes[row_id] = row.route()
            while len(self._routes) > KEPT_ROUTES:
                self._routes.popitem(last=False)

    def route(self, row_id: int) -> Route | None:
        """The route of a running or recently finished row."""
        row = self._rows.get(row_id)
        return row.route() if row is not None and row.legs else self._routes.get(row_id)
