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
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
import numpy.typing as npt

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.policy import Forward

Array = npt.NDArray[np.float64]

GRID = (1, 2, 4, 8, 16, 32, 64)
"""Tokens per forward at which calibration measures, and at which learned levels keep their corrections."""
FAR = 1 << 20
"""Linear extrapolation goes up to here."""
LEARNED_SLOPE = 1 / 32
"""A level without measurements is taken to cost t * (1 + (n - 1) / 32) over n tokens until forwards tell."""
RATE = 0.03
"""Weight of one forward in the moving average, once there are 1 / RATE of them near it."""
FIRST = 4.0
"""Forwards that the calibration of a number of tokens is worth; one for plain steps of batches, which it hardly measures."""
PREFILL_TOKENS = 64
"""A forward that feeds a row more than this is a prefill, for that row: it says little about decoding and is ignored."""
FALL = 1.5
"""How fast what a forward says about other numbers of tokens fades, in powers of two per power of two."""
COMMON, COMMON_FALL, OWN_FALL = 0.35, 0.5, 6.0
"""Where numbers of tokens are padded, each is seen for itself: this share of an error is put down to the machine and fades
slowly, the rest is its own and fades fast."""
LEAST_NEAR = 0.04
"""Nodes of which a forward says less than this are left alone."""
MOVED = 0.08
"""A curve has moved materially once a node has drifted this far, in log units, since it was last read."""
COUNTING = 0.5
"""And only by forwards that are about it: what drifts along is not in use."""


@dataclass(slots=True)
class _Curve:
    """One level: seconds at grid nodes and the learned log correction of each node.

    Plain numbers, not arrays: a few nodes are corrected after every forward, in a tenth of the time.
    """

    tokens: tuple[float, ...]
    base: list[float]
    slope: list[float]
    shift: list[float]
    factor: list[float]
    """exp(shift), which is read more often than it changes."""
    count: list[float]
    """Weight of the forwards seen near each node."""
    settled: list[float]
    sizes: tuple[int, ...] = ()
    """What numbers of tokens are padded to; more than the last run as they are."""
    row: float = 0.0
    """Seconds of every row but the first."""
    row_count: float = 0.0
    """Weight of the forwards that have corrected it."""
    spread: float = 0.1
    """Running mean of |log error|: what lies beyond 3 of these is taken for an outlier and clipped."""

    @classmethod
    def of(
        cls, tokens: Sequence[float], base: Sequence[float], slope: Sequence[float], sizes: Sequence[int] = ()
    ) -> _Curve:
        zeros, ones = [0.0] * len(tokens), [1.0] * len(tokens)
        return cls(tuple(tokens), list(base), list(slope), zeros.copy(), ones, zeros.copy(), zeros.copy(), tuple(sizes))

    def padded_to(self, sizes: Sequence[int]) -> _Curve:
        """The same costs with a node for each of these sizes, and none between them."""
        if not sizes:
            return replace(self, sizes=())
        nodes = [*map(float, sizes), *(node for node in self.tokens if node > sizes[-1])]
        base, slope = ([self._value(values, n) for n in nodes] for values in (self.base, self.slope))
        return replace(_Curve.of(nodes, base, slope, sizes), row=self.row)

    def times(self, ratio: float) -> _Curve:
        """Another one of this shape."""
        base, slope = ([ratio * value for value in self.corrected(values)] for values in (self.base, self.slope))
        return replace(_Curve.of(self.tokens, base, slope, self.sizes), row=ratio * self.row)

    def to_dict(self) -> dict[str, Any]:
        """What it says now, without the counts of what it has seen."""
        return {
            "tokens": list(self.tokens),
            "base": self.corrected(self.base),
            "slope": self.corrected(self.slope),
            "sizes": list(self.sizes),
            "row": self.row,
        }

    @classmethod
    def from_dict(cls, level: str, data: Mapping[str, Any]) -> _Curve:
        """What `to_dict` gave."""
        tokens, base, slope = ([float(value) for value in data[name]] for name in ("tokens", "base", "slope"))
        if not tokens or not len(tokens) == len(base) == len(slope):
            raise InvalidParameterError(f"not a latency file: the curve of {level!r} is not one")
        curve = cls.of(tokens, base, slope, [int(size) for size in data.get("sizes", ())])
        curve.row = float(data.get("row", 0.0))
        return curve

    def at(self, tokens: Array, context: float, rows: int) -> Array:
        """Seconds over each number of tokens; never decreasing in tokens."""
        seconds = np.interp(self._all_padded(tokens), *self._line(self.base)) + (rows - 1) * self.row
        if context and any(self.slope):
            seconds = seconds + context * np.interp(tokens / rows, *self._line(self.slope))
        return np.asarray(seconds, dtype=np.float64)

    def one(self, tokens: float, context: float, rows: int) -> float:
        """`at` for a single number of tokens."""
        seconds = self._value(self.base, _padded(tokens, self.sizes)) + (rows - 1) * self.row
        return seconds + context * self._value(self.slope, tokens / rows) if context else seconds

    def _all_padded(self, tokens: Array) -> Array:
        if not self.sizes:
            return tokens
        places = np.searchsorted(self.sizes, tokens)
        padded = np.array(self.sizes, dtype=np.float64)[np.minimum(places, len(self.sizes) - 1)]
        return np.where(places < len(self.sizes), padded, tokens)

    def charge_rows(self, rows: int, context: int, ratio: float) -> None:
        """Sets the price of a row: `rows` rows of one token take `ratio` times what one row of as many tokens takes, all of
        them at this context."""
        together = ratio * self.one(rows, context, 1)
        self.row = max(0.0, (together - self.one(rows, rows * context, rows)) / (rows - 1))

    def corrected(self, values: Sequence[float]) -> list[float]:
        """Values at the nodes with what was learnt, never decreasing."""
        return list(accumulate(map(mul, values, self.factor), max))

    def _line(self, values: Sequence[float]) -> tuple[list[float], list[float]]:
        """Nodes and values, and one more node far out."""
        found = self.corrected(values)
        return [*self.tokens, float(FAR)], [*found, found[-1] + self._rise(values) * (FAR - self.tokens[-1])]

    def _rise(self, values: Sequence[float]) -> float:
        """Seconds per token beyond the last node: on the line from the node of half as many, for between neighbours there may
        be a step of a staircase, or none."""
        last = self._node(values, -1)
        if len(self.tokens) == 1:
            return last * LEARNED_SLOPE
        half = min(max(bisect_right(self.tokens, self.tokens[-1] / 2) - 1, 0), len(self.tokens) - 2)
        return (last - self._node(values, half)) / (self.tokens[-1] - self.tokens[half])

    def _value(self, values: Sequence[float], tokens: float) -> float:
        """`np.interp` over `_line` for one number: what lies behind it is not looked at."""
        nodes, tokens = self.tokens, min(tokens, FAR)
        place = bisect_left(nodes, tokens)
        if place == len(nodes):
            return self._node(values, -1) + self._rise(values) * (tokens - nodes[-1])
        if place == 0 or nodes[place] == tokens:
            return self._node(values, place)
        low, high = self._node(values, place - 1), self._node(values, place)
        return low + (high - low) * (tokens - nodes[place - 1]) / (nodes[place] - nodes[place - 1])

    def _node(self, values: Sequence[float], place: int) -> float:
        """The entry of `corrected`."""
        found: float = max(map(mul, values[: place % len(values) + 1], self.factor))
        return found

    def correct(self, tokens: int, error: float, of_rows: float = 0.0, first: float = FIRST) -> bool:
        """Moves the nodes near `tokens` by a clipped log error; tells whether a node moved materially.

        The price of a row moves too: the share `of_rows` of the forward was put down to its rows. `first` is what the
        calibration is worth, in forwards.
        """
        step = min(max(error, -3 * self.spread), 3 * self.spread)
        self.spread += 0.1 * (min(abs(error), 3.0) - self.spread)
        self.spread = max(self.spread, 0.01)
        if of_rows:
            self.row_count += of_rows
            self.row *= math.exp(max(RATE, 1.0 / (first + self.row_count)) * step)
        moved = False
        for i, near in _nearness(_padded(tokens, self.sizes), self.tokens, bool(self.sizes)):
            self.count[i] += near
            self.shift[i] += near * max(RATE, 1.0 / (first + self.count[i])) * step
            self.factor[i] = math.exp(self.shift[i])
            moved |= near >= COUNTING and abs(self.shift[i] - self.settled[i]) > MOVED
        return moved


def _padded(tokens: float, sizes: Sequence[int]) -> float:
    place = bisect_left(sizes, tokens)
    return sizes[place] if place < len(sizes) else tokens


@lru_cache(maxsize=4096)
def _nearness(tokens: float, nodes: tuple[float, ...], padded: bool) -> tuple[tuple[int, float], ...]:
    """Nodes with the weight that a forward over `tokens` tokens has for them, 1 there."""
    here = math.log2(min(tokens, nodes[-1]))
    found = []
    for i, node in enumerate(nodes):
        way = abs(here - math.log2(node))
        own = (1 - COMMON) * 2 ** (-OWN_FALL * way)
        near = COMMON * 2 ** (-COMMON_FALL * way) + own if padded else 2 ** (-FALL * way)
        if near >= LEAST_NEAR:
            found.append((i, near))
    return tuple(found)


class LatencyModel:
    """V_level(n tokens, context) in seconds. Not thread-safe: the worker's thread owns it.

    A level that was never measured is unknown until its first forward, which sets its whole curve through a default
    shape (see `LEARNED_SLOPE`); later forwards correct the nodes near their number of tokens.
    """

    def __init__(self, overhead: float = 0.0) -> None:
        self._curves: dict[str, _Curve] = {}
        self._loops: dict[str, _Curve] = {}
        self._greedy_only: frozenset[str] = frozenset()
        """Levels that loop only where every choice is greedy."""
        self._overhead = overhead
        self._overhead_count = 4.0 if overhead else 0.0
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
            model._curves[level] = _fit(points, (sizes or {}).get(level, ()))
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

    @property
    def overhead(self) -> float:
        """Seconds of a step outside all forwards."""
        return self._overhead

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

    def observe(self, forward: Forward) -> None:
        """Corrects a level by one forward. Prefills and forwards over nothing are ignored."""
        tokens = forward.num_tokens
        if tokens < 1 or forward.seconds <= 0 or max(forward.longest, tokens / forward.num_rows) > PREFILL_TOKENS:
            return
        curves = self._loops if forward.looped else self._curves
        curve = curves.get(forward.level)
        if curve is None:
            curves[forward.level] = _learned(tokens, forward.seconds)
            self._curves.setdefault(forward.level, _learned(tokens, forward.seconds))
            self.moved = True
            return
        predicted = curve.one(tokens, forward.context, forward.num_rows)
        plain = tokens == forward.num_rows > 1
        of_rows = (forward.num_rows - 1) * curve.row / predicted if plain else 0.0
        if curve.correct(tokens, math.log(forward.seconds / predicted), of_rows, first=1.0 if plain else FIRST):
            self.moved = True

    def observe_overhead(self, seconds: float) -> None:
        """Corrects the fixed cost by what a step took outside its forwards; a jump counts as at most 3 times as much."""
        if self._overhead > 0:
            seconds = min(seconds, 3 * self._overhead)
        self._overhead_count += 1
        self._overhead += max(RATE, 1 / self._overhead_count) * (max(seconds, 0.0) - self._overhead)

    def settle(self) -> None:
        """Marks all corrections as read: curves are computed anew, `moved` counts from here."""
        self._cache.clear()
        for curve in (*self._curves.values(), *self._loops.values()):
            curve.settled = curve.shift.copy()
        self.moved = False

    def to_json(self) -> str:
        """Everything but the counts of what was seen; `from_json` reads it."""
        curves, loops = (
            {level: curve.to_dict() for level, curve in each.items()} for each in (self._curves, self._loops)
        )
        found = {"version": 1, "overhead": self._overhead, "curves": curves, "loops": loops}
        found["greedy_only"] = sorted(self._greedy_only)
        return json.dumps(found, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LatencyModel:
        """Raises:
        InvalidParameterError: not what `to_json` writes.
        """
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise InvalidParameterError(f"latency file of version {data['version']!r}; this release reads 1")
            model = cls(float(data["overhead"]))
            model._greedy_only = frozenset(map(str, data.get("greedy_only", ())))
            for name, curves in (("curves", model._curves), ("loops", model._loops)):
                for level, curve in data.get(name, {}).items():
                    curves[level] = _Curve.from_dict(level, curve)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise InvalidParameterError(f"not a latency file: {error!r}") from error
        return model


def _fit(points: Sequence[tuple[float, int, float]], sizes: Sequence[int]) -> _Curve:
    """base and slope at each number of tokens by least squares over its contexts; a padded number is its size."""
    points = [(_padded(n, sizes), c, s) for n, c, s in points]
    tokens = sorted({n for n, _, _ in points})
    base: list[float] = []
    slope: list[float] = []
    for n in tokens:
        contexts = np.array([float(c) for m, c, _ in points if m == n])
        seconds = np.array([s for m, _, s in points if m == n])
        rise = max(slope, default=0.0)  # what one context does not tell
        if np.ptp(contexts) > 0:
            centred = contexts - contexts.mean()
            rise = max(0.0, float(centred @ seconds) / float(centred @ centred))
        slope.append(rise)
        base.append(max(float(seconds.mean()) - rise * float(contexts.mean()), 1e-3 * float(seconds.min())))
    return _Curve.of(tokens, list(accumulate(base, max)), list(accumulate(slope, max))).padded_to(sizes)


def _learned(tokens: int, seconds: float) -> _Curve:
    """The default shape through one forward."""
    one = seconds / (1 + LEARNED_SLOPE * (tokens - 1))
    return _Curve.of(GRID, [one * (1 + LEARNED_SLOPE * (n - 1)) for n in GRID], [0.0] * len(GRID))
