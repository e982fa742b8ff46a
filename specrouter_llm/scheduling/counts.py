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
        self._table: Array = np.zeros((*shape, 5))
        """Decayed successes and trials of the long memory, the same of the short one, and the step of the last trial: a cell is
        read and written at once. All below are views."""
        self._decaying: Array = self._table[..., :4]
        self.hits: Array = self._table[..., 0]
        self.total: Array = self._table[..., 1]
        self.last: Array = self._table[..., 4]
        self._faded = 0

    def add(self, cell: tuple[int, ...], hits: float, misses: float, step: int, expected: float | None = None) -> bool:
        """Counts trials of one cell; tells whether they show that its rate is not (any more) what was expected.

        Args:
            expected: the rate by all that is known; by default that of the long memory.
        """
        trials = hits + misses
        long_hits, long_total, short_hits, short_total, _ = self._table[cell].tolist()
        keep = math.exp(-trials / self._memory.long)
        long_hits, long_total = long_hits * keep + hits, long_total * keep + trials
        keep = math.exp(-trials / self._memory.short)
        short_hits, short_total = short_hits * keep + hits, short_total * keep + trials
        changed = short_total >= MIN_TRIALS and _is_off(
            short_hits, short_total, long_hits / long_total if expected is None else expected
        )
        if changed:
            scale = min(1.0, AFTER_CHANGE / short_total)  # much of the short memory is from before
            long_hits, long_total = short_hits, short_total = scale * short_hits, scale * short_total
        self._table[cell] = long_hits, long_total, short_hits, short_total, step
        return changed

    def fade(self, step: int) -> None:
        """Forgets what has not been seen for a while. Cheap: call it every few steps."""
        age = step - self._faded
        self._faded = step
        factor = 0.5 ** (age / self._memory.idle)
        idle = self.last < step - age
        self._decaying[idle] *= factor

    def shorten(self, cell: tuple[int, ...]) -> None:
        """Leaves a cell's rate as it is, but worth no more than what is left after a change."""
        scale = min(1.0, AFTER_CHANGE / max(float(self.total[cell]), AFTER_CHANGE))
        self._decaying[cell] *= scale

    def discount(self, factor: float, spared: float) -> npt.NDArray[np.bool_]:
        """Trusts cells not seen since step `spared` less: something has changed, and they may have too. Returns them."""
        stale = self.last < spared
        self._decaying[stale] *= factor
        return stale


def _is_off(hits: float, total: float, expected: float) -> bool:
    """Whether a short memory departs from a rate by more than chance allows."""
    pooled = min(max(expected, 0.05), 0.95)
    off = abs(hits / total - expected) - 1 / total  # one trial of slack: counts are whole
    return off >= CHANGE * math.sqrt(pooled * (1 - pooled) / total)


def mean_of(rows: Array) -> Array:
    """[R, ...] -> [...]. As numpy's own, which goes through Python that is rarely in the caches."""
    return np.asarray(np.add.reduce(rows, axis=0) / len(rows))
