"""A plan: the chain that one row runs in one step, and how many tokens travel from level to level."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    below: Plan | None = field(init=False, repr=False, compare=False)
    """The chain that proposes to the top."""

    def __post_init__(self) -> None:
        below = Plan(self.levels[:-1], self.windows[:-1], self.rounds[:-1]) if len(self.levels) > 1 else None
        object.__setattr__(self, "below", below)

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

    @property
    def top(self) -> str:
        return self.levels[-1]

    @property
    def window(self) -> int:
        """Tokens that the top asks of the level below it."""
        return self.windows[-1] if self.windows else 0

    def without(self, names: Collection[str]) -> Plan:
        """The same plan with some levels below the top left out; each remaining level keeps its own window."""
        if not any(level in names for level in self.levels[:-1]):
            return self
        kept = [i for i, level in enumerate(self.levels[:-1]) if level not in names]
        return Plan.chain([*(self.levels[i] for i in kept), self.top], [self.windows[i] for i in kept])
