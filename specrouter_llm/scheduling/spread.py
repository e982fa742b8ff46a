"""How much rows differ from each other: what the workload's estimate is worth to a row, learnt from rows that have finished.

Of a row with n trials, h of them accepted, where the workload accepts the share p, E[(h - n p)^2] = n p (1 - p) + n^2 v, and v
is the variance of the rows' own rates (an estimate by moments, as DerSimonian and Laird, 1986). The workload is then worth
p (1 - p) / v trials to a row: few where questions, code and documents come in turns, many where rows are alike and one that
goes well has only had an easy beginning.
"""

from __future__ import annotations

import numpy as np

from specrouter_llm.scheduling.counts import Array, Counts

STRENGTH, MOST = 32.0, 128.0
"""Trials: as long as no row has finished, and at least; and at most, for a row may become another text in the middle."""
FIRST_WEIGHT = 6400.0
"""Squared trials that the first guess counts for: four rows of forty."""
KEEP = 0.95
"""What counts of the rows before, with each that finishes."""


class Spread:
    """Of every pair of levels: a table of L lower levels and M models."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """`shape`: (L, M)"""
        self._excess = np.zeros(shape)
        """Squared distances beyond chance, in units of p (1 - p)."""
        self._weight = np.zeros(shape)

    def observe(self, row: Counts, workload: Counts) -> None:
        """A row has finished; its counts and the workload's are [L, M]."""
        rate = np.clip((workload.hits + 1) / (workload.total + 2), 0.05, 0.95)
        unit = rate * (1 - rate)
        self._excess = KEEP * self._excess + (row.hits - row.total * rate) ** 2 / unit - row.total
        self._weight = KEEP * self._weight + row.total**2

    def strength(self) -> Array:
        """[L, M] trials that the workload's estimate of each pair is worth to a row."""
        share = (self._excess + FIRST_WEIGHT / STRENGTH) / (self._weight + FIRST_WEIGHT)
        return np.asarray(1 / np.clip(share, 1 / MOST, 1 / STRENGTH))
