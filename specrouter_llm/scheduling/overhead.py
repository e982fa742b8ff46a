"""Overhead: what a step takes beside its forwards, apart for steps that draft and for those that do not."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

LAST = 32
"""Steps that are remembered."""
LONGEST = 4.0
"""What took more than so many times the median is an accident, and counts as so much."""


class Overhead:
    """Between two steps the host delivers, learns and, now and then, searches. Rows that end one by one and estimates that
    move bring searches, so drafting is charged with the mean of that, and plain decoding, which has next to none of them, with
    the median. What the executor does is charged to the kind of step that it was done for."""

    def __init__(self, seconds: float = 0.0) -> None:
        """`seconds`: until something was seen."""
        self._initial = seconds
        self._between: deque[float] = deque(maxlen=LAST)
        self._within: dict[bool, deque[float]] = {drafted: deque(maxlen=LAST) for drafted in (False, True)}

    def observe(self, between: float, within: float, *, drafted: bool) -> None:
        """Seconds before a step and in it; `drafted` if anything was proposed to the target of any row."""
        self._between.append(max(between, 0.0))
        self._within[drafted].append(max(within, 0.0))

    def seconds(self, *, drafted: bool) -> float:
        """Of a step that drafts, or does not. What was never seen within a step is as in one of the other kind."""
        within = self._within[drafted] or self._within[not drafted]
        if not within:
            return self._initial
        between = median(self._between)
        if drafted:
            between = fmean(min(each, LONGEST * between) for each in self._between)
        return between + median(within)
