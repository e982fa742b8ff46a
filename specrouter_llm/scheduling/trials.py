"""Trials of the plans that stand with other numbers of tokens, so that the scheduler is not blind to what those cost now.

What a forward over some number of tokens takes is known from when so many were last fed. Machines change meanwhile, and not
by one factor: where memory becomes faster, a forward over few tokens takes a third less, and one over many as long as ever.
Who feeds many at every step sees nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from specrouter_llm.scheduling.curve import News
from specrouter_llm.scheduling.estimates import Estimates
from specrouter_llm.scheduling.plan import Plan, rows_by_chain
from specrouter_llm.scheduling.policy import Forward
from specrouter_llm.scheduling.pricing import price
from specrouter_llm.scheduling.similarity import MAX_WINDOW

PLAIN_STEPS, PLAIN_AGAIN = 3, 512
"""Plain steps of a batch that are looked at before others are compared with what they cost, and steps until one more is."""
PLAIN_RETRY = 4
"""Steps until the next try where a prompt was taken in on the way; doubled by each try that failed."""
PLAIN_LASTING = 4
"""Steps that a batch must have kept its number of rows for, about: what the last rows of many would cost is of no use when they
are gone."""
PLAIN_RENEWED = 24
"""Steps after which one more is looked at where all rows of a batch have come together: that may be long after the last one."""
WINDOW_STEPS, WINDOW_LATEST, WINDOW_SOON = 16, 256, 4
"""Steps between two trials of other windows: at first and after a surprise, at most, and after a change of the machine; doubled
by each that showed nothing."""
SCALES = (1 / math.sqrt(2), math.sqrt(2), 0.0)
"""In turn. Small steps lose little, and are followed by others if they show something."""
REGRET = 0.2
"""Share of a step that a trial may be expected to lose. With other windows that is an 80th of the time at first, a 1,280th
later. A plain step that would lose more is no rival, even if it has become a quarter cheaper."""


@dataclass(slots=True)
class _Seen:
    count: int = 0
    last: int = 0
    pause: int = PLAIN_RETRY
    next_try: int = 0


class PlainTrials:
    """Plain steps of batches. All plans are compared with them, and who drafts from the start never sees one: then what
    they cost is a guess from one row and from other numbers of tokens."""

    def __init__(self) -> None:
        self._known: dict[int, _Seen] = {}
        """By number of rows, in half octaves."""
        self._size, self._since = 0, 0
        """That of the last step, and the step that it came with."""

    def due(self, rows: int, step: int) -> bool:
        """Whether the next step should be plain to see what that costs."""
        if rows == 1 or step - self._since < PLAIN_LASTING or _half_octaves(rows) != self._size:
            return False
        seen = self._of(rows)
        if step < seen.next_try:
            return False
        return seen.count < PLAIN_STEPS or step - seen.last >= PLAIN_AGAIN

    def plans(self, standing: Sequence[Plan], estimates: Estimates, step: int) -> tuple[Plan, ...] | None:
        """Plain ones if it is time for that. What they cost is then seen, unless a prompt comes in the way."""
        plans = tuple(Plan((plan.top,)) for plan in standing)
        if plans == tuple(standing) or not self.due(len(standing), step):
            return None
        seen = self._of(len(standing))
        seen.next_try, seen.pause = step + seen.pause, min(2 * seen.pause, PLAIN_AGAIN)
        return plans if _is_cheap(plans, standing, estimates) else None

    def ran(self, rows: int, step: int) -> None:
        """There was a step of so many rows."""
        size = _half_octaves(rows)
        if size != self._size:
            self._size, self._since = size, step

    def seen(self, rows: int, step: int) -> None:
        """It was a plain one."""
        seen = self._of(rows)
        seen.count, seen.last, seen.next_try, seen.pause = min(seen.count + 1, PLAIN_STEPS), step, step, PLAIN_RETRY

    def again(self, rows: int, step: int) -> None:
        """One more, as soon as may be."""
        seen = self._of(rows)
        seen.count, seen.next_try = min(seen.count, PLAIN_STEPS - 1), step

    def renewed(self, rows: int, step: int) -> None:
        """A batch begins of which no row was there before: meanwhile the machine may have changed."""
        if step - self._of(rows).last >= PLAIN_RENEWED:
            self.again(rows, step)
            self._size, self._since = _half_octaves(rows), step - PLAIN_LASTING

    def _of(self, rows: int) -> _Seen:
        return self._known.setdefault(_half_octaves(rows), _Seen())


def _half_octaves(rows: int) -> int:
    return round(2 * math.log2(rows))


class WindowTrials:
    """Steps of the same chains with other windows: fewer tokens, more, none, in turn. What would lose too much by all that is
    known is left out."""

    def __init__(self) -> None:
        self._next = self._pause = WINDOW_STEPS
        self._turn = 0

    def due(self, rows: int, step: int) -> bool:
        """Whether it is time for one, of however many rows."""
        return step >= self._next

    def plans(self, standing: Sequence[Plan], estimates: Estimates, step: int) -> tuple[Plan, ...] | None:
        """What to run instead for one step, if it is time for that and something is worth it."""
        if not self.due(len(standing), step):
            return None
        self._next = step + self._pause
        for _ in SCALES:
            scale, self._turn = SCALES[self._turn], (self._turn + 1) % len(SCALES)
            plans = resized(standing, scale)
            if plans != tuple(standing) and _is_cheap(plans, standing, estimates):
                self._pause = min(2 * self._pause, WINDOW_LATEST)
                return plans
        return None

    def again(self, rows: int, step: int) -> None:
        """The last one once more, at once."""
        self._turn = (self._turn - 1) % len(SCALES)
        self._next, self._pause = step, WINDOW_STEPS

    def soon(self, step: int) -> None:
        """The machine has changed."""
        self._next, self._pause = min(self._next, step + WINDOW_SOON), WINDOW_SOON


def _is_cheap(plans: Sequence[Plan], standing: Sequence[Plan], estimates: Estimates) -> bool:
    """Whether a step with other plans is expected to lose little."""
    tokens, seconds = price(standing, estimates)
    tried_tokens, tried_seconds = price(plans, estimates)
    return tried_seconds - tried_tokens * seconds / tokens <= REGRET * seconds


def resized(plans: Sequence[Plan], scale: float) -> tuple[Plan, ...]:
    """The same chains with other windows. Rows that are drafted for together stay together: they share rounds, which the
    longest window of them needs."""
    found = list(plans)
    for rows in rows_by_chain(dict(enumerate(plans))).values():
        longest = max(plans[i].window for i in rows)
        rounds = plans[rows[0]].rounds[-2]
        if rounds > 1 or longest == 1:  # one round is one of a lookup, or of a level that has enough below it
            rounds = -(-rounds * scaled(longest, scale) // longest)
        for i in rows:
            found[i] = plans[i].offering(scaled(plans[i].window, scale), rounds)
    return tuple(found)


def scaled(window: int, scale: float) -> int:
    """Fewer tokens or more, by at least one; but one at least, `MAX_WINDOW` at most, and none of none."""
    if not window or not scale:
        return 0
    more = max(round(scale * window), window + 1) if scale > 1 else min(round(scale * window), window - 1)
    return min(max(more, 1), MAX_WINDOW)


class Trials:
    """Both. A trial that took much less time than was expected is repeated until that is believed or was chance (`Curve`); and
    when the plans that stand were seen to cost something else, others are looked at soon."""

    def __init__(self, *, windows: bool) -> None:
        """`windows`: whether other windows are tried. A device does not change its ways as a host does, and may have to record
        a graph for what it never ran."""
        self._plain, self._windows = PlainTrials(), WindowTrials()
        self._kinds = (self._plain, self._windows) if windows else (self._plain,)
        self._last: PlainTrials | WindowTrials = self._plain

    def due(self, rows: int, step: int) -> bool:
        """Whether it is time for one."""
        return any(kind.due(rows, step) for kind in self._kinds)

    def plans(self, standing: Sequence[Plan], estimates: Estimates, step: int) -> tuple[Plan, ...] | None:
        """What to run instead of the standing plans for one step, if it is time for that."""
        for kind in self._kinds:
            plans = kind.plans(standing, estimates, step)
            if plans is not None:
                self._last = kind
                return plans
        return None

    def renewed(self, rows: int, step: int) -> None:
        """All rows have come together; their first step is over with this one."""
        self._plain.renewed(rows, step)

    def learnt(self, forward: Forward, news: News, *, tried: bool, step: int) -> None:
        """A forward of the target was learnt from; `tried` if it was a trial's."""
        self._plain.ran(forward.num_rows, step)
        if forward.num_tokens == forward.num_rows:
            self._plain.seen(forward.num_rows, step)
        if news is News.CHANGED:
            self._windows.soon(step)
        elif news is News.FAST and tried:
            self._last.again(forward.num_rows, step)
