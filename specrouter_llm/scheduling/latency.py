"""The latency model: seconds of one packed forward of a level, measured on a grid and corrected online.

V(n, c) is taken as base(n) + slope(n) * c at context c: linear layers see n tokens, attention reads c positions. A batch
of R rows over n tokens in all, c positions in all, costs base(n) + slope(n / R) * c + (R - 1) * row: each row attends for
its own n / R tokens to its own context, and has a price of its own, for on a CPU attention runs row by row; plain steps of
batches correct that price too (what a batch drafts says as much of its number of tokens).

Where a runner pads n to one of a few sizes, base is that of the size, and every size is corrected for itself: a ninth token
may cost what twelve do, and a 41st half as much again as 40. A level that can draft several tokens without the host between
them has a curve of its own for that.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.counts import Array
from specrouter_llm.scheduling.curve import FIRST, Curve, News
from specrouter_llm.scheduling.overhead import Overhead
from specrouter_llm.scheduling.policy import Forward, StepObservation

GRID = (1, 2, 4, 8, 16, 32, 64)
"""Tokens per forward at which calibration measures."""
PREFILL_TOKENS = 64
"""A forward that feeds a row more than this is a prefill, for that row: it says little about decoding and is ignored."""


class LatencyModel:
    """V_level(n tokens, context) in seconds. Not thread-safe: the worker's thread owns it.

    A level that was never measured is unknown until its first forward, which sets its whole curve through a default
    shape (see `LEARNED_SLOPE`); later forwards correct the nodes near their number of tokens.
    """

    def __init__(self, overhead: float = 0.0) -> None:
        self._curves: dict[str, Curve] = {}
        self._loops: dict[str, Curve] = {}
        self._greedy_only: frozenset[str] = frozenset()
        """Levels that loop only where every choice is greedy."""
        self.overhead = Overhead(overhead)
        """What steps take beside their forwards."""
        self._cache: dict[tuple[str, int, int, int], Array] = {}
        self.moved = False
        """Whether a curve has moved materially since `settle`."""

    @classmethod
    def fit(
        cls,
        samples: Mapping[str, Sequence[tuple[int, int, float]]],
        overhead: float,
        sizes: Mapping[str, Sequence[int]] | None = None,
        row_ratios: Mapping[str, tuple[int, int, float]] | None = None,
        loops: Mapping[str, Sequence[tuple[int, int, float]]] | None = None,
        greedy_only: Collection[str] = (),
    ) -> LatencyModel:
        """From measurements (tokens, context, seconds) of one-row forwards per level; several per point are averaged.

        Args:
            samples: for each level, best on `GRID` at two contexts; with one context the cost of context is unknown
                and taken as 0. A model-free level has points (rows, 0, seconds).
            overhead: seconds of a step outside all forwards.
            sizes: for levels that pad, the numbers of tokens that forwards are run as, rising.
            row_ratios: (rows, context, ratio): what so many rows of one token take over one row of as many tokens.
            loops: (1, context, seconds) of one token of one row of a loop; for more rows it is taken to cost more in the
                proportion of forwards over as many tokens.
            greedy_only: levels that loop only where every choice is greedy.

        Raises:
            InvalidParameterError: a level without samples, or a value that is not positive.
        """
        model = cls(overhead)
        for level, points in (*samples.items(), *(loops or {}).items()):
            if not points or any(n < 1 or c < 0 or not s > 0 for n, c, s in points):
                raise InvalidParameterError(f"latency samples of {level!r} must be non-empty and positive: {points!r}")
        for level, points in samples.items():
            model._curves[level] = Curve.fit(points, (sizes or {}).get(level, ()))
            if row_ratios and level in row_ratios:
                model._curves[level].charge_rows(*row_ratios[level])
        for level, points in (loops or {}).items():
            curve = model._curves[level]
            model._loops[level] = curve.times(statistics.median(s / curve.one(n, c, 1) for n, c, s in points))
        model._greedy_only = frozenset(greedy_only)
        return model

    def pad_to(self, sizes: Mapping[str, Sequence[int]]) -> None:
        """What levels pad to now: a runner may have chosen otherwise when the costs were measured."""
        for curves in (self._curves, self._loops):
            curves.update({level: curve.padded_to(sizes.get(level, ())) for level, curve in curves.items()})
        self._cache.clear()

    def knows(self, level: str) -> bool:
        """Whether the level was ever measured or seen."""
        return level in self._curves

    def seconds(self, level: str, tokens: int, context: float = 0, rows: int = 1) -> float:
        """Seconds of one forward over `tokens` tokens and `context` positions, both summed over `rows` rows."""
        return self._curves[level].one(tokens, context, rows)

    def drafted(self, level: str, rows: int = 1, context: float = 0, *, sampled: bool = False) -> float:
        """Seconds of one token of each of `rows` rows, of several that the level drafts with nothing below it; `sampled` if
        a row does not choose greedily."""
        curves = self._curves if sampled and level in self._greedy_only else self._loops
        return curves.get(level, self._curves[level]).one(rows, context, rows)

    def curve(self, level: str, rows: int, context: int, width: int) -> Array:
        """[width + 2]: seconds when each of `rows` rows feeds n = 0 ... width + 1 tokens; entry 0 is 0. Read-only."""
        key = (level, rows, context, width)
        found = self._cache.get(key)
        if found is None:
            found = self._curves[level].at(np.arange(width + 2, dtype=np.float64) * rows, context, rows)
            found[0] = 0.0
            self._cache[key] = found
        return found

    def totals(self, level: str, most: int, context: int, rows: int) -> Array:
        """[most + 1]: seconds over n = 0 ... most tokens in all; entry 0 is 0. Read-only."""
        key = (level, -rows, context, most)
        found = self._cache.get(key)
        if found is None:
            found = self._curves[level].at(np.arange(most + 1, dtype=np.float64), context, rows)
            found[0] = 0.0
            self._cache[key] = found
        return found

    def observe(self, *alike: Forward) -> News:
        """Corrects a level by forwards of one kind, one behind the other: by one, or by several that feed as many tokens of as
        many rows. Prefills and forwards over nothing are ignored."""
        alike = tuple(each for each in alike if each.num_tokens > 0 and each.seconds > 0 and not _is_prefill(each))
        if not alike:
            return News.NONE
        forward, tokens = alike[0], alike[0].num_tokens
        curves = self._loops if forward.looped else self._curves
        curve = curves.get(forward.level)
        if curve is None:
            curves[forward.level] = Curve.learned(tokens, forward.seconds)
            self._curves.setdefault(forward.level, Curve.learned(tokens, forward.seconds))
            self.moved = True
            return News.NONE
        predicted = curve.one(tokens, forward.context, forward.num_rows)
        plain = tokens == forward.num_rows > 1
        of_rows = (forward.num_rows - 1) * curve.row / predicted if plain else 0.0
        errors = [math.log(each.seconds / predicted) for each in alike]
        news = curve.correct(tokens, errors, of_rows, first=1.0 if plain else FIRST)
        self.moved |= curve.moved
        return news

    def observe_overhead(self, step: StepObservation) -> None:
        """Takes note of what a step took beside its forwards, unless it took in a prompt."""
        if not any(map(_is_prefill, step.forwards)):
            within = step.seconds - step.between - sum(forward.seconds_together for forward in step.forwards)
            drafted = any(row.plan.below is not None for row in step.rows)
            self.overhead.observe(step.between, within, drafted=drafted)

    def settle(self) -> None:
        """Marks all corrections as read: curves are computed anew, `moved` counts from here."""
        self._cache.clear()
        for curve in (*self._curves.values(), *self._loops.values()):
            curve.settle()
        self.moved = False

    def to_json(self) -> str:
        """Everything but the counts of what was seen; `from_json` reads it."""
        curves, loops = (
            {level: curve.to_dict() for level, curve in each.items()} for each in (self._curves, self._loops)
        )
        found = {"version": 1, "overhead": self.overhead.seconds(drafted=True), "curves": curves, "loops": loops}
        found["greedy_only"] = sorted(self._greedy_only)
        return json.dumps(found, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LatencyModel:
        """Raises:
        InvalidParameterError: not what `to_json` writes, or times that no forward could take; the message names the level.
        """
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise InvalidParameterError(f"latency file of version {data['version']!r}; this release reads 1")
            overhead = float(data["overhead"])
            if not (math.isfinite(overhead) and overhead >= 0):
                raise InvalidParameterError(f"not a latency file: an overhead of {overhead} seconds")
            model = cls(overhead)
            model._greedy_only = frozenset(map(str, data.get("greedy_only", ())))
            for name, curves in (("curves", model._curves), ("loops", model._loops)):
                for level, curve in data.get(name, {}).items():
                    curves[level] = Curve.from_dict(level, curve)
        except InvalidParameterError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InvalidParameterError(f"not a latency file: {error!r}") from error
        return model


def _is_prefill(forward: Forward) -> bool:
    """Whether a row takes in a prompt, or much of what a drafter missed."""
    return max(forward.longest, forward.num_tokens / forward.num_rows) > PREFILL_TOKENS
