"""Percentile bootstrap intervals for the two kinds of figures reported here.

Rates are ratios of sums over prompts, resampled by prompt: positions of one text are not independent. Costs are medians
of the ratios of alternating pairs, resampled by pair: the machine drifts, and a pair drifts together.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 2000
LEVEL = 0.95
LEAST = 5
"""Fewer units have no interval: what resampling three of them spans is far less than `LEVEL` of what could come of others."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its bootstrap interval at `LEVEL`, if it comes of at least `LEAST` units."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        spread = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{spread}"

    def as_dict(self) -> dict[str, Any]:
        """Without `low` and `high` where there is no interval."""
        ends = (("value", self.value), ("low", self.low), ("high", self.high))
        return {name: round(end, 6) for name, end in ends if end is not None}


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Sum of numerators / sum of denominators, resampled over their common index (one entry per prompt)."""
    assert len(numerators) == len(denominators) > 0

    def figure(indices: Sequence[int]) -> float:
        below = sum(denominators[i] for i in indices)
        return sum(numerators[i] for i in indices) / below if below else 0.0

    return _interval(len(numerators), figure)


def median_of_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Median of numerators[i] / denominators[i], resampled over pairs."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return _interval(len(ratios), lambda indices: statistics.median(ratios[i] for i in indices))


def _interval(count: int, figure: Callable[[Sequence[int]], float]) -> Interval:
    if count < LEAST:
        return Interval(figure(range(count)))
    generator = random.Random(0)
    values = sorted(figure(generator.choices(range(count), k=count)) for _ in range(RESAMPLES))
    tail = round((1 - LEVEL) / 2 * RESAMPLES)
    return Interval(figure(range(count)), values[tail], values[-1 - tail])
