"""Everything that a search reads, as arrays: what levels cost for this batch and how often they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from specrouter_llm.scheduling.counts import Array
from specrouter_llm.scheduling.latency import LatencyModel
from specrouter_llm.scheduling.similarity import MAX_WINDOW, Acceptance

ODD = 2.0 * np.arange(MAX_WINDOW) + 1
"""E[n^2] = sum over k of (2 k - 1) P(n >= k)."""
_QUANTILES = np.array([-1.593, -0.967, -0.589, -0.282, 0.0, 0.282, 0.589, 0.967, 1.593])
"""Of a normal distribution, at 1/18, 3/18, ... 17/18: the sum over many rows is close to one."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What forwards cost in one batch."""

    curves: Array
    """[L, 2, MAX_WINDOW + 2]: seconds of a forward in which each row feeds n tokens; of the whole batch, and of one row
    (of average context) alone. Infinite for a level that is not to be used. Model-free levels: entry 1 is a lookup."""
    drafting: Array
    """[L, 2]: seconds of one token of each row that a model drafts with nothing below it; of the batch and of one row."""
    target: Array
    """[rows * (MAX_WINDOW + 1) + 1]: seconds of the target's forward over n tokens in all, entry 0 is 0."""

    @classmethod
    def of(
        cls,
        latency: LatencyModel,
        lower: Sequence[str],
        num_lookups: int,
        target: str,
        rows: int,
        context: int,
        *,
        sampled: bool = False,
    ) -> Costs:
        """For a batch of `rows` rows and `context` positions in all; `sampled` if a row does not choose greedily."""
        curves = np.full((len(lower), 2, MAX_WINDOW + 2), np.inf)
        drafting = np.full((len(lower), 2), np.inf)
        sizes = ((rows, context), (1, max(1, context // rows)))[: min(rows, 2)]  # one row is its own batch
        for i, level in enumerate(lower):
            if i < num_lookups:
                curves[i] = 0.0
                if latency.knows(level):
                    curves[i, 0] = latency.seconds(level, rows)
                    curves[i, 1] = curves[i, 0] / rows
            elif latency.knows(level):
                for j, (number, positions) in enumerate(sizes):
                    curves[i, j:] = latency.curve(level, number, positions, MAX_WINDOW)
                    drafting[i, j:] = latency.drafted(level, number, positions, sampled=sampled)
        return cls(curves, drafting, latency.totals(target, rows * (MAX_WINDOW + 1), context, rows))


def moments(reach: Array) -> tuple[Array, Array]:
    """[...] mean and variance of a number of tokens, of [..., MAX_WINDOW] chances that there are at least 1, 2, ..."""
    mean = reach.sum(axis=-1)
    return mean, reach @ ODD - mean**2


@dataclass(frozen=True, slots=True)
class Estimates:
    """Lower levels are numbered as in `lower`: the model-free ones first, then the drafters, smallest first."""

    lower: tuple[str, ...]
    num_lookups: int
    target: str
    num_rows: int
    acceptance: Acceptance
    costs: Costs
    overhead: float
    """Seconds of a step in which any row is drafted for, beside its forwards."""
    plain_overhead: float
    """The same of one in which none is."""
    catch_up: Array
    """[L] seconds per committed token of the batch that a level's missing tokens cost, spread over the rows' future."""
    blocked: Array
    """[R, L] 1 where a row cannot use a level."""
    ahead: bool = False
    """Whether the target's forward behind a plain step runs while the host is still busy with that step."""

    @property
    def plain_seconds(self) -> float:
        """Seconds of a step in which every row decodes plainly, as the one before did."""
        host, device = self.plain_overhead, float(self.costs.target[self.num_rows])
        return max(host, device) if self.ahead else host + device

    def target_seconds(self, tokens: Array | float) -> Array:
        """Seconds of the target's forward over any number of tokens in all."""
        grid = np.arange(len(self.costs.target), dtype=np.float64)
        return np.asarray(np.interp(tokens, grid, self.costs.target), dtype=np.float64)

    def expected_seconds(self, reach: Array) -> Array:
        """[...] seconds of the target's forward over a random number of tokens: it may cost what no smooth function says.

        Args:
            reach: [R, ..., MAX_WINDOW] the chance that a row feeds at least so many proposed tokens beside its own one.
        """
        if self.num_rows == 1:
            target = self.costs.target
            return np.asarray(target[1] + reach[0] @ (target[2:] - target[1:-1]))
        mean, variance = moments(reach)
        return self.batch_seconds(mean.sum(axis=0), variance.sum(axis=0))

    def batch_seconds(self, mean: Array, variance: Array) -> Array:
        """The same where only so much is known of the number of all proposed tokens."""
        spread = np.sqrt(np.maximum(variance, 0.0))
        tokens = self.num_rows + mean[..., None] + spread[..., None] * _QUANTILES
        return np.asarray(self.target_seconds(tokens).mean(axis=-1))

    def without(self, levels: Sequence[int]) -> Estimates:
        """The same with some lower levels priced out."""
        curves, drafting = self.costs.curves.copy(), self.costs.drafting.copy()
        curves[list(levels)] = drafting[list(levels)] = np.inf
        return replace(self, costs=replace(self.costs, curves=curves, drafting=drafting))


def context_bucket(context: int) -> int:
    """Contexts within about 10 % of each other share curves."""
    return int(2 ** (round(4 * math.log2(max(context, 1))) / 4))
