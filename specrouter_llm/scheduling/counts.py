"""Decaying counts of successes and failures, many pairs at once.

Each cell keeps two memories. The long one gives a quiet estimate; the short one notices a change: once it departs from
the long one by more than chance allows, the long one is replaced by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


CHANGE = 3.0
"""Standard errors of the short memory that count as a change. An exponential memory of m trials has the error of 2 m
independent ones, so this is 4.2 of its true standard errors."""
AFTER_CHANGE = 6.0
"""Trials that the memories are worth after a change."""
MIN_TRIALS = 10.0
"""A short memory of fewer trials cannot tell."""


@dataclass(frozen=True, slots=True)
class Memory:
    """How long counts last."""

    long: float
    """Trials."""
    short: float
    """Trials."""
    idle: float
    """Half-life of a cell without new trials, in steps."""


class Counts:
    """A table of Beta counts with decay."""

    def __init__(self, shape: tuple[int, ...], memory: Memory) -> None:
        self._memory = memory
        self.hits = np.zeros(shape)
        """Decayed successes."""
        self.total = np.zeros(shape)
        """Decayed trials."""
        self._short_hits = np.zeros(shape)
        self._short_total = np.zeros(shape)
        self.last = np.zeros(shape)
        """Step of each cell's last trial."""
        self._faded = 0

    def add(self, cell: tuple[int, ...], hits: float, misses: float, step: int, expected: float | None = None) -> bool:
        """Counts trials of one cell; tells whether they show that its rate is not (any more) what was expected.

        Args:
            expected: the rate by all that is known; by default that of the long memory.
        """
        trials = hits + misses
        keep = math.exp(-trials / self._memory.long)
        self.hits[cell] = self.hits[cell] * keep + hits
        self.total[cell] = self.total[cell] * keep + trials
        keep = math.exp(-trials / self._memory.short)
        short_hits = float(self._short_hits[cell]) * keep + hits
        short_total = float(self._short_total[cell]) * keep + trials
        self._short_hits[cell], self._short_total[cell] = short_hits, short_total
        self.last[cell] = step
        if short_total < MIN_TRIALS:
            return False
        if expected is None:
            expected = float(self.hits[cell] / self.total[cell])
        pooled = min(max(expected, 0.05), 0.95)
        off = abs(short_hits / short_total - expected) - 1 / short_total  # one trial of slack: counts are whole
        if off < CHANGE * math.sqrt(pooled * (1 - pooled) / short_total):
            return False
        scale = min(1.0, AFTER_CHANGE / short_total)  # much of the short memory is from before
        for hits_table, total_table in ((self.hits, self.total), (self._short_hits, self._short_total)):
            hits_table[cell], total_table[cell] = scale * short_hits, scale * short_total
        return True

    def fade(self, step: int) -> None:
        """Forgets what has not been seen for a while. Cheap: call it every few steps."""
        age = step - self._faded
        self._faded = step
        factor = 0.5 ** (age / self._memory.idle)
        idle = self.last < step - age
        for table in (self.hits, self.total, self._short_hits, self._short_total):
            table[idle] *= factor

    def shorten(self, cell: tuple[int, ...]) -> None:
        """Leaves a cell's rate as it is, but worth no more than what is left after a change."""
        scale = min(1.0, AFTER_CHANGE / max(float(self.total[cell]), AFTER_CHANGE))
        for table in (self.hits, self.total, self._short_hits, self._short_total):
            table[cell] *= scale

    def discount(self, factor: float, spared: float) -> npt.NDArray[np.bool_]:
        """Trusts cells not seen since step `spared` less: something has changed, and they may have too. Returns them."""
        stale = self.last < spared
        for table in (self.hits, self.total, self._short_hits, self._short_total):
            table[stale] *= factor
        return stale


def mean_of(rows: Array) -> Array:
    """[R, ...] -> [...]. As numpy's own, which goes through Python that is rarely in the caches."""
    return np.asarray(np.add.reduce(rows, axis=0) / len(rows))
