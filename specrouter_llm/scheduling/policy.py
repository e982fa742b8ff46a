"""Who chooses the plans. A policy changes speed only: any policy, even a random one, leaves every output as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specrouter_llm.scheduling.plan import Plan


@dataclass(frozen=True, slots=True)
class RowView:
    """What a policy may know of a row: numbers, no tokens."""

    row_id: int
    """Unique within the engine."""
    num_tokens: int
    """Committed tokens, prompt included."""
    remaining: int
    """Tokens that may still be committed."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One verification of one proposal: `accepted` of `proposed` tokens matched; a smaller number is a first mismatch."""

    lower: str
    upper: str
    proposed: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What one step did with one row."""

    row_id: int
    plan: Plan
    trials: tuple[Trial, ...]
    committed: int
    seconds: float
    """Duration of the whole step, all rows of the batch."""
    seconds_per_model: tuple[tuple[str, float], ...]


class Policy(Protocol):
    """Chooses a plan for every row of a step and learns from what came of it."""

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        """One plan per row, each ending with the target. Pure: all learning is in `observe`."""
        ...

    def observe(self, observations: Sequence[Observation]) -> None:
        """What the last step did, one entry per row."""
        ...


class FixedPolicy:
    """The same plan for every row at every step."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        return [self._plan] * len(rows)

    def observe(self, observations: Sequence[Observation]) -> None:
        """A fixed plan has nothing to learn."""
