"""What one level's forwards cost by number of tokens: measured at some, learnt from every forward since.

The log error of a forward moves the nodes near its number of tokens, a little: noise is averaged out, a machine that becomes
slower is followed. What is far off is an accident once and a fact the third time: machines change their ways at once, too,
and not by one factor. Where memory becomes faster, few tokens take a third less and many as long as ever.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.counts import Array

NODES = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64)
"""Numbers of tokens that are corrected, beside those that were measured, where none are padded: half octaves."""
FAR = 1 << 20
"""Linear extrapolation goes up to here."""
LEARNED_SLOPE = 1 / 32
"""A level without measurements is taken to cost t * (1 + (n - 1) / 32) over n tokens until forwards tell."""
RATE = 0.02
"""Weight of one forward in the moving average, once there are 1 / RATE of them near it."""
FIRST = 4.0
"""Forwards that the calibration of a number of tokens is worth; one for plain steps of batches, which it hardly measures."""
FALL = 1.5
"""How fast what a forward says about other numbers of tokens fades, in powers of two per power of two."""
COMMON, COMMON_FALL, OWN_FALL = 0.35, 0.5, 6.0
"""Where numbers of tokens are padded, each is seen for itself: this share of an error is put down to the machine and fades
slowly, the rest is its own and fades fast."""
LEAST_NEAR = 0.04
"""Nodes of which a forward says less than this are left alone."""
OUTLIER = 3.0
"""A log error of more than so many times what is usual is an accident, and clipped there."""
BELIEVED, BELIEVED_SLOW = 3, 12
"""So many in succession near one node, that took less or more than they should, are a machine that has changed. Accidents only
ever take time: on a shared host several steps in succession may take a third more every few seconds, and what then looks dear
is not run again, so nothing would show that it is not."""
SPREAD_RATE, ODD_RATE = 0.1, 0.02
"""How fast it is learnt what is usual, from what is and from what is not: a change must not become usual before it is
believed."""
CALM = 4000
"""Forwards in which the memory of a change back fades by half. Each that is remembered doubles the number that is believed for
the next: who follows a machine that changes every few seconds is always late, and its mean is the better guess."""
FRESH = 16
"""Then nodes that were seen themselves during so many forwards stay as they are: a machine does not change by one factor."""
STALE = 2.0
"""Weight of all that was seen of a node, if it was not during so many: it may have changed since, and is run rarely."""
SLACK = 1.05
"""What fewer tokens may seem to cost over more: in noise they take turns."""
MOVED = 0.08
"""A curve has moved materially once a node has drifted this far, in log units, since it was last read."""
COUNTING = 0.5
"""And only by forwards that are about it: what drifts along is not in use."""


class News(enum.IntEnum):
    """What a forward said about a curve; of several forwards, the most of it."""

    NONE = enum.auto()
    FAST = enum.auto()
    """It took so much less than expected that only others like it will be believed."""
    CHANGED = enum.auto()
    """There were enough of them: the machine has changed."""


@dataclass(slots=True)
class Curve:
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
    odd: list[tuple[int, float]]
    """How many outliers off the same way the last forwards nearest to each node were, and the least log error of them."""
    seen: list[int]
    """Which forward the last one was."""
    sizes: tuple[int, ...] = ()
    """What numbers of tokens are padded to; more than the last run as they are."""
    forwards: int = 0
    row: float = 0.0
    """Seconds of every row but the first."""
    row_count: float = 0.0
    """Weight of the forwards that have corrected it."""
    spread: float = 0.1
    """Running mean of |log error|, by which outliers are known."""
    back: float = 0.0
    """Changes of the machine that went the other way than the one before, as remembered when the last one was believed."""
    changed: tuple[int, float] = (0, 0.0)
    """Which forward the last change was believed with, and its log error."""
    moved: bool = False
    """Whether a node has moved materially since `settle`."""

    @classmethod
    def of(
        cls, tokens: Sequence[float], base: Sequence[float], slope: Sequence[float], sizes: Sequence[int] = ()
    ) -> Curve:
        zeros, ones = [0.0] * len(tokens), [1.0] * len(tokens)
        learned = zeros.copy(), ones, zeros.copy(), zeros.copy(), [(0, 0.0)] * len(tokens), [-FRESH] * len(tokens)
        return cls(tuple(map(float, tokens)), list(base), list(slope), *learned, tuple(sizes))

    @classmethod
    def fit(cls, points: Sequence[tuple[float, int, float]], sizes: Sequence[int] = ()) -> Curve:
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
        found = cls.of(tokens, list(accumulate(base, max)), list(accumulate(slope, max)))
        between = {float(n) for n in NODES if tokens[0] < n < tokens[-1]}
        return found.padded_to(sizes) if sizes else found.on(sorted(between.union(found.tokens)))

    @classmethod
    def learned(cls, tokens: int, seconds: float) -> Curve:
        """The default shape through one forward."""
        one = seconds / (1 + LEARNED_SLOPE * (tokens - 1))
        return cls.of(NODES, [one * (1 + LEARNED_SLOPE * (n - 1)) for n in NODES], [0.0] * len(NODES))

    def on(self, nodes: Sequence[float], sizes: Sequence[int] = ()) -> Curve:
        """The same costs, known at these nodes."""
        base, slope = ([self._value(values, n) for n in nodes] for values in (self.base, self.slope))
        return replace(Curve.of(nodes, base, slope, sizes), row=self.row)

    def padded_to(self, sizes: Sequence[int]) -> Curve:
        """The same costs with a node for each of these sizes, and none between them."""
        if not sizes:
            return replace(self, sizes=())
        return self.on([*map(float, sizes), *(node for node in self.tokens if node > sizes[-1])], sizes)

    def times(self, ratio: float) -> Curve:
        """Another one of this shape."""
        base, slope = ([ratio * value for value in self.corrected(values)] for values in (self.base, self.slope))
        return replace(Curve.of(self.tokens, base, slope, self.sizes), row=ratio * self.row)

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
    def from_dict(cls, level: str, data: Mapping[str, Any]) -> Curve:
        """What `to_dict` gave.

        Raises:
            InvalidParameterError: no curve, or one that no forward could have: a policy would fail at every step.
        """
        tokens, base, slope = ([float(value) for value in data[name]] for name in ("tokens", "base", "slope"))
        sizes, row = [int(size) for size in data.get("sizes", ())], float(data.get("row", 0.0))
        if not tokens or not len(tokens) == len(base) == len(slope):
            raise InvalidParameterError(f"not a latency file: the curve of {level!r} is not one")
        if not all(map(math.isfinite, (*tokens, *base, *slope, row))) or min(base) <= 0 or min(*slope, row) < 0:
            raise InvalidParameterError(f"not a latency file: the seconds of {level!r} must be finite and positive")
        if not (_rises(tokens) and _rises(sizes)):
            raise InvalidParameterError(
                f"not a latency file: the numbers of tokens of {level!r} must rise from above 0"
            )
        return replace(cls.of(tokens, base, slope, sizes), row=row)

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

    def correct(self, tokens: int, errors: Sequence[float], of_rows: float, first: float) -> News:
        """Moves the nodes near `tokens` by clipped log errors of forwards in succession, or by one that was seen often enough.

        The price of a row moves too: the share `of_rows` of each forward was put down to its rows. `first` is what the
        calibration is worth, in forwards.
        """
        nearest, near_nodes = _nearness(_padded(tokens, self.sizes), self.tokens, bool(self.sizes))
        self._lift(nearest)
        if self.forwards - self.seen[nearest] > FRESH:
            self.count[nearest] = min(self.count[nearest], STALE)
        most, number, sum_of_steps, followed = News.NONE, 0, 0.0, 0.0
        for error in errors:
            news, step = self._believed(nearest, error - followed)
            changed = news is News.CHANGED
            self.forwards += 1
            self.seen[nearest] = self.forwards
            if of_rows:
                self.row_count += of_rows
                self.row *= math.exp((1.0 if changed else max(RATE, 1.0 / (first + self.row_count))) * step)
            if changed:
                self._follow(nearest, near_nodes, step)
                followed += step
            else:
                number, sum_of_steps = number + 1, sum_of_steps + step
            most = max(most, news)
        self._drift(nearest, near_nodes, number, sum_of_steps, first)
        return most

    def _drift(
        self, nearest: int, near_nodes: Sequence[tuple[int, float]], number: int, sum_of_steps: float, first: float
    ) -> None:
        """Moves nodes a little, by so many forwards at once: as it would be one by one, for that is a mean."""
        count, shift, factor, settled = self.count, self.shift, self.factor, self.settled
        for i, near in near_nodes if number else ():
            count[i] += near * number
            shift[i] += near * sum_of_steps * max(RATE, 1.0 / (first + count[i]))
            factor[i] = math.exp(shift[i])
            if near >= COUNTING and abs(shift[i] - settled[i]) > MOVED:
                self.moved = True
        if sum_of_steps < 0:
            self._cap_fewer(nearest, SLACK)

    def _follow(self, nearest: int, near_nodes: Sequence[tuple[int, float]], step: float) -> None:
        """All that was not seen itself just now is moved by what is believed."""
        for i, near in near_nodes:
            if i == nearest or self.forwards - self.seen[i] > FRESH:
                self._move(i, near * step)
        self._cap_fewer(nearest, 1.0)
        self.moved = True

    def _cap_fewer(self, place: int, slack: float) -> None:
        """Fewer tokens cost no more than these: what is known of them is old, and would hide what was just seen."""
        most, values = slack * self.base[place] * self.factor[place], list(map(mul, self.base[:place], self.factor))
        if values and max(values) > most:
            for i, value in enumerate(values):
                self._move(i, min(0.0, math.log(most / value)))

    def _lift(self, place: int) -> None:
        """What seemed to cost less than fewer tokens was expected to cost as much, and was not seen to be wrong."""
        hidden = self._node(self.base, place) / (self.base[place] * self.factor[place])
        if hidden > 1.0:
            self._move(place, math.log(hidden))
            self.settled[place] += math.log(hidden)

    def settle(self) -> None:
        """Marks all corrections as read."""
        self.settled, self.moved = self.shift.copy(), False

    def _move(self, place: int, step: float) -> None:
        self.shift[place] += step
        self.factor[place] = math.exp(self.shift[place])

    def _believed(self, nearest: int, error: float) -> tuple[News, float]:
        """What a log error near a node means, and how much of it is believed."""
        most, (number, least) = OUTLIER * self.spread, self.odd[nearest]
        usual = abs(error) <= most
        if usual:
            number, least = 0, 0.0
        else:
            number, least = (number + 1, min(least, error, key=abs)) if least * error > 0 else (1, error)
        is_back = least * self.changed[1] < 0
        believed = BELIEVED if error < 0 else BELIEVED_SLOW
        changed = not usual and number >= believed * 2 ** (is_back * self._remembered())
        self.odd[nearest] = (0, 0.0) if changed else (number, least)
        if changed:
            self.back, self.changed = self._remembered() + is_back, (self.forwards, least)
            return News.CHANGED, least
        rate = SPREAD_RATE if usual else ODD_RATE
        self.spread = max(self.spread + rate * (min(abs(error), most) - self.spread), 0.01)
        return News.FAST if error < -most else News.NONE, min(max(error, -most), most)

    def _remembered(self) -> float:
        """Changes back, as they are remembered now."""
        return self.back * math.exp2((self.changed[0] - self.forwards) / CALM)


def _rises(values: Sequence[float]) -> bool:
    return all(a < b for a, b in zip((0, *values), values, strict=False))


def _padded(tokens: float, sizes: Sequence[int]) -> float:
    place = bisect_left(sizes, tokens)
    return sizes[place] if place < len(sizes) else tokens


@lru_cache(maxsize=4096)
def _nearness(tokens: float, nodes: tuple[float, ...], padded: bool) -> tuple[int, tuple[tuple[int, float], ...]]:
    """The nearest node, and nodes with the weight that a forward over `tokens` tokens has for them, 1 there."""
    here = math.log2(min(tokens, nodes[-1]))
    ways = [abs(here - math.log2(node)) for node in nodes]
    found = []
    for i, way in enumerate(ways):
        own = (1 - COMMON) * 2 ** (-OWN_FALL * way)
        near = COMMON * 2 ** (-COMMON_FALL * way) + own if padded else 2 ** (-FALL * way)
        if near >= LEAST_NEAR:
            found.append((i, near))
    return ways.index(min(ways)), tuple(found)
