"""A plan: the chain that one row runs in one step, and how many tokens travel from level to level."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from specrouter_llm.errors import InvalidParameterError


@dataclass(frozen=True, slots=True)
class Plan:
    """Levels lowest first, the verifier of this (sub-)chain last. A plan of one level is plain decoding by that level."""

    levels: tuple[str, ...]
    windows: tuple[int, ...] = ()
    """`windows[i]`: tokens that level i offers to level i + 1, at most."""
    rounds: tuple[int, ...] = (1,)
    """`rounds[i]`: verification rounds of level i before it offers; the last level verifies once per step."""
    lookup_first: bool = False
    """Whether the lowest level, which is no model, offers to the top itself, and the chain above it drafts only where that
    finds nothing; see `alternatives`."""
    below: Plan | None = field(init=False, repr=False, compare=False)
    """The chain that proposes to the top."""
    alternatives: tuple[Plan, ...] = field(init=False, repr=False, compare=False)
    """What a plan of `lookup_first` runs where its lookup finds something, and where not. Others have none."""

    def __post_init__(self) -> None:
        below = Plan(self.levels[:-1], self.windows[:-1], self.rounds[:-1]) if len(self.levels) > 1 else None
        object.__setattr__(self, "below", below)
        object.__setattr__(self, "alternatives", self._alternatives() if self.lookup_first else ())

    @classmethod
    def chain(cls, levels: Sequence[str], windows: Sequence[int]) -> Plan:
        """A plan whose inner levels run as many rounds as their window needs if everything is accepted.

        A round of a level over v proposed tokens yields at most v + 1, and 1 where nothing lies below it: the lowest
        model drafts its window one token a round.
        """
        if not levels:
            raise InvalidParameterError("a chain needs at least one level")
        if len(windows) != len(levels) - 1:
            raise InvalidParameterError(
                f"a chain of {len(levels)} levels needs {len(levels) - 1} windows, one for each level below the "
                f"target, got {len(windows)}"
            )
        if len(set(levels)) != len(levels):
            raise InvalidParameterError(f"a chain must not name a level twice: {list(levels)}")
        for window in windows:
            if not isinstance(window, int) or isinstance(window, bool) or window < 1:
                raise InvalidParameterError(f"windows must be positive integers, got {window!r}")
        below = (0, *windows)
        rounds = tuple(-(-window // (below[i] + 1)) for i, window in enumerate(windows))
        return cls(tuple(levels), tuple(windows), (*rounds, 1))

    @classmethod
    def either(cls, lookup: Plan, drafts: Plan) -> Plan:
        """What `lookup`, of a model-free level and the target, finds; `drafts` of the same target where it finds nothing."""
        levels, windows = (*lookup.levels[:1], *drafts.levels), (*lookup.windows, *drafts.windows)
        return cls(levels, windows, (1, *drafts.rounds), lookup_first=True)

    def _alternatives(self) -> tuple[Plan, Plan]:
        lookup = Plan((self.levels[0], self.top), self.windows[:1], (1, 1))
        return lookup, Plan(self.levels[1:], self.windows[1:], self.rounds[1:])

    @property
    def runs(self) -> tuple[Plan, ...]:
        """What may be run."""
        return self.alternatives or (self,)

    @property
    def top(self) -> str:
        return self.levels[-1]

    def __str__(self) -> str:
        """`draft[3] > target`; `lookup[8] or draft[3] > target` where the one comes first."""
        below = [f"{level}[{window}]" for level, window in zip(self.levels, self.windows, strict=False)]
        if self.lookup_first:
            below = [f"{below[0]} or {below[1]}", *below[2:]] if len(below) > 1 else below
        return " > ".join([*below, self.top])

    def offering(self, window: int, rounds: int) -> Plan:
        """The same chain with another window below the top, after so many rounds of the level there; none if the window is 0.
        What looks up first goes on to do so."""
        if self.lookup_first:
            lookup, drafts = self.alternatives
            return Plan.either(lookup, drafts.offering(window, rounds)) if window else lookup
        if not window:
            return Plan((self.top,))
        return Plan(self.levels, (*self.windows[:-1], window), (*self.rounds[:-2], rounds, *self.rounds[-1:]))

    @property
    def route(self) -> tuple[tuple[str, ...], bool]:
        """What it is beside its windows."""
        return self.levels, self.lookup_first

    @property
    def window(self) -> int:
        """Tokens that the top asks of the level below it."""
        return self.windows[-1] if self.windows else 0

    def without(self, names: Collection[str]) -> Plan:
        """The same plan with some levels below the top left out; each remaining level keeps its own window."""
        if not names or not any(level in names for level in self.levels[:-1]):
            return self
        if self.lookup_first:
            lookup, drafts = (plan.without(names) for plan in self.alternatives)
            both = lookup.below is not None and drafts.below is not None
            return Plan.either(lookup, drafts) if both else lookup if drafts.below is None else drafts
        kept = [i for i, level in enumerate(self.levels[:-1]) if level not in names]
        return Plan.chain([*(self.levels[i] for i in kept), self.top], [self.windows[i] for i in kept])


def rows_by_chain(plans: Mapping[int, Plan]) -> dict[Plan, list[int]]:
    """The numbers of the rows by the chain below their target; rows without one propose nothing."""
    groups: dict[Plan, list[int]] = {}
    for row, plan in plans.items():
        if plan.below is not None:
            groups.setdefault(plan.below, []).append(row)
    return groups
