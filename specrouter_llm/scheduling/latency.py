"""The latency model: seconds of one packed forward of a level, measured on a grid and corrected online.

V(n, c) is taken as base(n) + slope(n) * c at context c: linear layers see n tokens, attention reads c positions. A batch
of R rows over n tokens in all, c positions in all, costs base(n) + slope(n / R) * c: each row attends for its own n / R
tokens to its own context.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
PREFILL_TOKENS = 128
"""Forwards over more tokens per row are prefills: they say little about decoding and are ignored."""
MOVED = 0.04
"""A curve has moved materially once a node has drifted this far, in log units, since it was last read."""


@dataclass(slots=True)
class _Curve:
    """One level: seconds at grid nodes and the learned log correction of each node."""

    tokens: Array
    base: Array
    slope: Array
    shift: Array
    count: Array
    """Weight of the forwards seen near each node."""
    spread: float = 0.1
    """Running mean of |log error|: what lies beyond 3 of these is taken for an outlier and clipped."""
    settled: Array = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, tokens: Array, base: Array, slope: Array) -> _Curve:
        zeros = np.zeros(len(tokens))
        return cls(tokens, base, slope, zeros.copy(), zeros.copy(), settled=zeros.copy())

    def at(self, tokens: Array, context: float, rows: int) -> Array:
        """Seconds over each number of tokens; never decreasing in tokens."""
        nodes, base = _extended(self.tokens, np.maximum.accumulate(self.base * np.exp(self.shift)))
        seconds = np.interp(tokens, nodes, base)
        if context and self.slope.any():
            nodes, slope = _extended(self.tokens, np.maximum.accumulate(self.slope * np.exp(self.shift)))
            seconds = seconds + context * np.interp(tokens / rows, nodes, slope)
        return np.asarray(seconds, dtype=np.float64)

    def correct(self, tokens: int, error: float) -> bool:
        """Moves the nodes near `tokens` by a clipped log error; tells whether a node moved materially."""
        step = float(np.clip(error, -3 * self.spread, 3 * self.spread))
        self.spread += 0.1 * (min(abs(error), 3.0) - self.spread)
        self.spread = max(self.spread, 0.01)
        near = np.exp2(-1.5 * np.abs(np.log2(tokens) - np.log2(self.tokens)))
        self.count += near
        self.shift += near * np.maximum(RATE, 1.0 / (4.0 + self.count)) * step
        return bool(np.abs(self.shift - self.settled).max() > MOVED)


def _extended(tokens: Array, values: Array) -> tuple[Array, Array]:
    """One more node, far out on the line through the last two."""
    if len(tokens) > 1:
        rise = max(0.0, float(values[-1] - values[-2]) / float(tokens[-1] - tokens[-2]))
    else:
        rise = float(values[-1]) * LEARNED_SLOPE
    return np.append(tokens, FAR), np.append(values, values[-1] + rise * (FAR - tokens[-1]))


class LatencyModel:
    """V_level(n tokens, context) in seconds. Not thread-safe: the worker's thread owns it.

    A level that was never measured is unknown until its first forward, which sets its whole curve through a default
    shape (see `LEARNED_SLOPE`); later forwards correct the nodes near their number of tokens.
    """

    def __init__(self, overhead: float = 0.0) -> None:
        self._curves: dict[str, _Curve] = {}
        self._overhead = overhead
        self._overhead_count = 4.0 if overhead else 0.0
        self._cache: dict[tuple[str, int, int, int], Array] = {}
        self.moved = False
        """Whether a curve has moved materially since `settle`."""

    @classmethod
    def fit(cls, samples: Mapping[str, Sequence[tuple[int, int, float]]], overhead: float) -> LatencyModel:
        """From measurements (tokens, context, seconds) of one-row forwards per level; several per point are averaged.

        Args:
            samples: for each level, best on `GRID` at two contexts; with one context the cost of context is unknown
                and taken as 0. A model-free level has points (rows, 0, seconds).
            overhead: seconds of a step outside all forwards.

        Raises:
            InvalidParameterError: a level without samples, or a value that is not positive.
        """
        model = cls(overhead)
        for level, points in samples.items():
            if not points or any(n < 1 or c < 0 or not s > 0 for n, c, s in points):
                raise InvalidParameterError(f"latency samples of {level!r} must be non-empty and positive: {points!r}")
            model._curves[level] = _fit(points)
        return model

    @property
    def overhead(self) -> float:
        """Seconds of a step outside all forwards."""
        return self._overhead

    def knows(self, level: str) -> bool:
        """Whether the level was ever measured or seen."""
        return level in self._curves

    def seconds(self, level: str, tokens: int, context: float = 0, rows: int = 1) -> float:
        """Seconds of one forward over `tokens` tokens and `context` positions, both summed over `rows` rows."""
        return float(self._curves[level].at(np.array([float(tokens)]), context, rows)[0])

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
        if tokens < 1 or forward.seconds <= 0 or tokens > PREFILL_TOKENS * forward.num_rows:
            return
        curve = self._curves.get(forward.level)
        if curve is None:
            self._curves[forward.level] = _learned(tokens, forward.seconds)
            self.moved = True
            return
        predicted = float(curve.at(np.array([float(tokens)]), forward.context, forward.num_rows)[0])
        if curve.correct(tokens, math.log(forward.seconds / predicted)):
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
        for curve in self._curves.values():
            curve.settled = curve.shift.copy()
        self.moved = False

    def to_json(self) -> str:
        """Everything but the counts of what was seen; `from_json` reads it."""
        curves = {
            level: {
                "tokens": curve.tokens.tolist(),
                "base": (curve.base * np.exp(curve.shift)).tolist(),
                "slope": (curve.slope * np.exp(curve.shift)).tolist(),
            }
            for level, curve in self._curves.items()
        }
        return json.dumps({"version": 1, "overhead": self._overhead, "curves": curves}, indent=1, sort_keys=True)

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
            for level, curve in data["curves"].items():
                arrays = [np.array(curve[name], dtype=np.float64) for name in ("tokens", "base", "slope")]
                model._curves[level] = _Curve.of(*arrays)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise InvalidParameterError(f"not a latency file: {error!r}") from error
        return model


def _fit(points: Sequence[tuple[int, int, float]]) -> _Curve:
    """base and slope at each number of tokens by least squares over its contexts."""
    tokens = sorted({n for n, _, _ in points})
    base, slope = [], []
    for n in tokens:
        contexts = np.array([float(c) for m, c, _ in points if m == n])
        seconds = np.array([s for m, _, s in points if m == n])
        rise = 0.0
        if np.ptp(contexts) > 0:
            centred = contexts - contexts.mean()
            rise = max(0.0, float(centred @ seconds) / float(centred @ centred))
        slope.append(rise)
        base.append(max(float(seconds.mean()) - rise * float(contexts.mean()), 1e-3 * float(seconds.min())))
    return _Curve.of(
        np.array(tokens, dtype=np.float64),
        np.maximum.accumulate(np.array(base)),
        np.maximum.accumulate(np.array(slope)),
    )


def _learned(tokens: int, seconds: float) -> _Curve:
    """The default shape through one forward."""
    grid = np.array(GRID, dtype=np.float64)
    one = seconds / (1 + LEARNED_SLOPE * (tokens - 1))
    return _Curve.of(grid, one * (1 + LEARNED_SLOPE * (grid - 1)), np.zeros(len(grid)))
