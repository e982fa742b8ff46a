"""Who chooses the plans. A policy changes speed only: any policy, even a random one, leaves every output as it is.

What a step makes anew is a named tuple: it is made in a quarter of the time that a frozen dataclass takes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.types import RouteCandidate, RouteSwitch


class RowView(NamedTuple):
    """What a policy may know of a row: numbers, no tokens."""

    row_id: int
    """Unique within the engine."""
    num_tokens: int
    """Committed tokens, prompt included."""
    remaining: int
    """Tokens that may still be committed."""
    temperature: float
    continues: bool = True
    """Whether its next token may be fed before the host has seen it; not where penalties or a grammar look at it first."""


class Trial(NamedTuple):
    """One verification of one proposal: `accepted` of `proposed` tokens matched; a smaller number is a first mismatch."""

    lower: str
    upper: str
    proposed: int
    accepted: int


class Score(NamedTuple):
    """How many of some committed tokens a level would have chosen too, without the target having verified it: those that
    it lacked and caught up with, or those that it proposed to a middle level."""

    level: str
    total: int
    matched: int
    agreed: str = ""
    """The middle level that had accepted all of them, if only such tokens are counted: some of those of another score."""


class Aside(NamedTuple):
    """A model-free level was asked for `wanted` tokens beside what a row ran, to see what it would have brought."""

    level: str
    wanted: int
    proposed: int


class Forward(NamedTuple):
    """One forward of one level within a step, over all rows that took part."""

    level: str
    num_rows: int
    num_tokens: int
    """Tokens fed, catch-up included, all rows together; tokens proposed for a model-free level."""
    context: int
    """Positions attended to, summed over the rows."""
    seconds: float
    """Forward and choice."""
    longest: int = 0
    """Tokens of the row that was fed most, where it may have been more than decoding feeds."""
    looped: bool = False
    """One of several that the host did not come between, each but the first over the choice before."""
    shifted: bool = False
    """Its `seconds` are not what it takes: it was begun in the step before, or waited for one that was begun in vain."""
    turns: int = 1
    """As many of these ran one behind the other; all the rest is of one of them, in the mean."""

    @property
    def seconds_together(self) -> float:
        """Of all its turns."""
        return self.seconds * self.turns


class RowObservation(NamedTuple):
    """What one step did with one row."""

    row_id: int
    plan: Plan
    """As it was run: without levels that failed or lagged."""
    trials: tuple[Trial, ...]
    committed: int
    finished: bool
    """The row will not be seen again."""
    scores: tuple[Score, ...] = ()
    asides: tuple[Aside, ...] = ()


class StepObservation(NamedTuple):
    """What one step did."""

    rows: tuple[RowObservation, ...]
    forwards: tuple[Forward, ...]
    """In the order in which they ran."""
    seconds: float
    """Duration of the step, `between` included."""
    between: float = 0.0
    """What choosing for it, and delivering and learning from the one before, took."""


class Policy(Protocol):
    """Chooses a plan for every row of a step and learns from what came of it."""

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        """One plan per row, each ending with the target. Pure: all learning is in `observe`."""
        ...

    def observe(self, step: StepObservation) -> None:
        """What the last step did."""
        ...


@runtime_checkable
class DeferringPolicy(Policy, Protocol):
    """A policy that can think while a step is running, so that the device need not wait for it between steps."""

    def reconsider(self) -> None:
        """Called in a step when the target's forward is on its way, again where that fails and rows run alone. `observe` of
        that step comes later, and the forward's seconds have this in them."""
        ...


@runtime_checkable
class AskingPolicy(Policy, Protocol):
    """A policy that wants to know what model-free levels would have proposed where they are not used. It costs a lookup and
    no token."""

    def asides(self) -> Collection[str]:
        """The levels that all rows are asked for in the step that `plan` was just called for."""
        ...


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why a row is decoded as it is."""

    switches: tuple[RouteSwitch, ...] = ()
    candidates: tuple[RouteCandidate, ...] = ()
    predicted_seconds_per_token: float | None = None


@runtime_checkable
class ExplainingPolicy(Policy, Protocol):
    """A policy that can say why: `Completion.stats.route` shows it."""

    def reasons(self, row_id: int) -> Reasons:
        """Of a running row, or of one that has just finished; empty if the row is not known."""
        ...


class FixedPolicy:
    """The same plan for every row at every step."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        return [self._plan] * len(rows)

    def observe(self, step: StepObservation) -> None:
        """A fixed plan has nothing to learn."""
