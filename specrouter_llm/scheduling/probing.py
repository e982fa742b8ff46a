"""Probing: idle chains are tried now and then, so that the scheduler is not blind to what it does not run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from specrouter_llm.scheduling.search import Candidate

SHARE = 0.005
"""Share of the time that probes may cost, as regret: what a probe step took beyond what the standing plan would have
taken for the same tokens."""
PROBE_WINDOW = 4
"""Tokens that a probe asks of each level at most."""
ROUTINE_ALPHA = 0.95
"""A level that has long been idle is tried now and then if at this acceptance it would be the best."""
FIRST_LOAN = 0.6
"""Plain steps' worth of regret per lower level that may be spent ahead at the start, when nothing was ever counted."""
CHANGE_LOAN = 2.0
"""Plain steps' worth of regret that may be spent ahead when acceptance has changed."""
CHANGE_STEPS, CHANGE_STAKE = 50, 0.05
"""For so many steps after a change, and after the start, a probe may also cost this share of what it may gain."""
EAGER_STEPS = 8
"""The same after a probe that went as well as expected: its models have caught up, so more of it is cheap."""
FIRST_PAUSE, LONGEST_PAUSE = 4, 512
"""Steps until a chain whose probe failed is tried again; doubled by each failure."""
LOOK, LOOK_LATER, LOOK_CHANGED = 16, 64, 4
"""Steps between two searches for something to probe: as a rule, after one that found nothing, and soon after a change."""


def most_telling(
    candidates: Iterable[Candidate], known: Mapping[str, float], models: Collection[str]
) -> list[Candidate]:
    """Chains in the order in which they should be tried: first those with the level of which least is known.

    By hope alone deep chains come first, for optimism adds up along them, and use the budget up, while a drafter that was
    unlucky in its first probe is not seen again. Of several with the same level those of few models come first, for all of
    them must catch up; lookups cost nothing and tell most below a model.

    Args:
        candidates: most hopeful first.
        known: choices of every lower level that were held against the target's.
        models: levels that are models.
    """

    def order(candidate: Candidate) -> tuple[float, int]:
        lower = candidate.plan.levels[:-1]
        return min((known[level] for level in lower), default=math.inf), sum(level in models for level in lower[:-1])

    return sorted(candidates, key=order)


@dataclass(slots=True)
class _Pause:
    length: int = 0
    until: int = 0


class Prober:
    """The budget of probes and who has to wait."""

    def __init__(self) -> None:
        self._balance = 0.0
        self._pauses: dict[tuple[str, ...], _Pause] = {}
        self._next_look = 0
        self._last_look = -LOOK_LATER
        self._eager_until = 0
        self.probes = 0
        self.spent = 0.0
        """Seconds of regret so far."""

    def earn(self, seconds: float) -> None:
        """A step has passed."""
        self._balance += SHARE * seconds

    def lend(self, seconds: float, step: int) -> None:
        """The start, or a change: what was learnt about idle chains is void, so all may be tried again at once."""
        self._balance = max(self._balance, seconds)
        self._pauses.clear()
        self._eager_until = step + CHANGE_STEPS
        self._next_look = step

    def eager(self, step: int) -> bool:
        """Whether the start, a change or a probe that went well was not long ago."""
        return step < self._eager_until

    def looks(self, step: int) -> bool:
        """Whether it is time to search for something to probe."""
        return step >= self._next_look and (self._balance > 0 or self.eager(step))

    def look_now(self, step: int) -> None:
        """A row has come: its models have little to catch up with, probes are cheap. Where rows are short, not every time."""
        self._next_look = min(self._next_look, max(step, self._last_look + LOOK_LATER))

    def looked(self, found: bool, step: int) -> None:
        if step >= self._next_look:  # told again while its decision stands
            self._last_look = step
        pause = LOOK_CHANGED if self.eager(step) else LOOK if found else LOOK_LATER
        self._next_look = step + pause

    def allows(self, levels: tuple[str, ...], regret: float, gain: float, step: int) -> bool:
        """Whether a chain may be tried.

        Args:
            regret: expected cost in seconds, catching up included. Within the budget it may be spent; soon after a change
                also if it is small against what may be gained.
            gain: seconds that the chain would save until the row's end, at an optimistic estimate.
        """
        pause = self._pauses.get(levels)
        if pause is not None and step < pause.until:
            return False
        return regret <= self._balance or (self.eager(step) and regret <= CHANGE_STAKE * gain)

    def result(self, levels: tuple[str, ...], regret: float, success: bool, step: int) -> None:
        """A probe was run. One that went as well as expected may be repeated at once."""
        self.probes += 1
        self.spent += max(regret, 0.0)
        self._balance -= max(regret, 0.0)
        if success:
            self._pauses.pop(levels, None)
            self._next_look = step
            self._eager_until = max(self._eager_until, step + EAGER_STEPS)
            return
        pause = self._pauses.setdefault(levels, _Pause())
        pause.length = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause.length))
        pause.until = step + pause.length
