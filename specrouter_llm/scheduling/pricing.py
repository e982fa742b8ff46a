"""What given plans are expected to cost and to bring, and which gain is worth a change.

The same arithmetic as the search, for plans it did not make.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from specrouter_llm.scheduling.counts import Array
from specrouter_llm.scheduling.estimates import Estimates
from specrouter_llm.scheduling.offers import PLACES, Offers, right_of, round_of, rounds_of, worth_of
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.similarity import MAX_WINDOW

SAME_CHAIN_GAIN, OTHER_CHAIN_GAIN = 0.003, 0.015
"""Predicted gain below which the plans stay: of another window, and of another chain."""
PLAIN_GAIN = 0.03
"""Predicted gain over plain decoding below which rows are decoded plainly: the best of many estimates is too good to be true.
Whoever drafts goes on until half of it is gone."""


def price(plans: Sequence[Plan], estimates: Estimates) -> tuple[float, float]:
    """Expected tokens and seconds of a step, all rows; infinite seconds if a plan cannot be run."""
    rows = estimates.num_rows
    tokens, seconds = float(rows), estimates.overhead
    reach: Array = np.zeros((rows, MAX_WINDOW))
    accepted = estimates.acceptance.target_survival
    groups: dict[Plan, list[_Run]] = {}
    for run in _runs(plans, estimates):
        if run.plan.below is not None:
            groups.setdefault(run.plan.below, []).append(run)
    if not groups:
        return tokens, estimates.plain_seconds
    for below, members in groups.items():
        numbers = [estimates.lower.index(level) if level in estimates.lower else -1 for level in below.levels]
        if min(numbers) < 0:
            return tokens, np.inf
        longest = max(run.plan.window for run in members)
        cost, survival, worth = _offer(below, numbers, longest, [run.row for run in members], estimates)
        share = (len(members) - 1) / max(1, rows - 1)
        gained = 0.0
        for run in members:
            within = run.chance * (run.plan.window >= PLACES)
            reach[run.row] += within * survival
            gained += float((within * worth) @ accepted[run.row, numbers[-1]])
        catch_up = float(estimates.catch_up[numbers].sum()) * len(members) / rows
        tokens += gained
        chance = sum(run.chance for run in members) / len(members)
        seconds += chance * float(cost[1] + share * (cost[0] - cost[1])) + catch_up * tokens
    return tokens, seconds + float(estimates.expected_seconds(reach))


class _Run(NamedTuple):
    """A plan of one row, and the chance that it is run."""

    row: int
    plan: Plan
    chance: float


def _runs(plans: Sequence[Plan], estimates: Estimates) -> Iterator[_Run]:
    """All plans; of those that look up first both alternatives. (What is looked up is found or not: that is in its offer.)"""
    for row, plan in enumerate(plans):
        if not plan.lookup_first:
            yield _Run(row, plan, 1.0)
            continue
        lookup, drafts = plan.alternatives
        level = lookup.levels[0]
        hit = float(estimates.acceptance.hits[row, estimates.lower.index(level)]) if level in estimates.lower else 0.0
        yield _Run(row, lookup, 1.0)
        yield _Run(row, drafts, 1.0 - hit)


def pays(seconds_per_token: float, estimates: Estimates, least: float) -> bool:
    """Whether this is at least so much faster than plain decoding of all rows."""
    return seconds_per_token <= (1 - least) * estimates.plain_seconds / estimates.num_rows


def least_gain(held: Sequence[Plan], others: Sequence[Plan]) -> float:
    """The gain that a switch must promise: more if levels change, for then the estimates of two chains differ."""
    same = all(old.route == new.route for old, new in zip(held, others, strict=True))
    return SAME_CHAIN_GAIN if same else OTHER_CHAIN_GAIN


def best_draft(estimates: Estimates, level: int, alpha: float) -> float:
    """Seconds per token, all rows together, if one level drafted for all at this acceptance and its best window."""
    rows = estimates.num_rows
    tokens = rows * (1 + np.cumsum(alpha**PLACES))
    lookup = level < estimates.num_lookups
    draft = estimates.costs.curves[level, 0, 1] if lookup else estimates.costs.drafting[level, 0] * PLACES
    seconds = estimates.overhead + draft + estimates.target_seconds(rows * (1 + PLACES).astype(np.float64))
    return float((seconds / tokens).min())


def _offer(
    below: Plan, numbers: Sequence[int], window: int, members: Sequence[int], estimates: Estimates
) -> tuple[Array, Array, Array]:
    """[2] seconds for the batch and for one row, [MAX_WINDOW] survival and worth of a sub-chain."""
    lookup = numbers[0] < estimates.num_lookups
    windows = (*below.windows, window)
    cost: Array = np.zeros(2)
    survival: Array = np.zeros(MAX_WINDOW)
    worth = survival
    for position, number in enumerate(numbers):
        within = windows[position] >= PLACES
        if position == 0 and lookup:
            hit = float(estimates.acceptance.hits[list(members), number].mean())
            stay = float(estimates.acceptance.stays[list(members), number].mean())
            cost = estimates.costs.curves[number][:, 1]
            survival = worth = np.asarray(within * hit * np.power(stay, PLACES - 1, dtype=np.float64))
        elif position == 0:
            drafted = min(below.rounds[0], windows[0])
            cost = drafted * estimates.costs.drafting[number]
            survival = worth = (drafted >= PLACES).astype(np.float64)
        else:
            rounds = np.array([below.rounds[position]])
            sub = Offers.single(numbers[position - 1], cost, survival)
            each, yields = round_of(number, sub, estimates)
            right = right_of(number, sub, yields, estimates)
            seconds, reached, accepted = rounds_of(each, yields, right, rounds)
            cost, survival = seconds[0, 0], within * reached[0, 0]
            worth = within * worth_of(number, reached[0, 0], accepted[0, 0], estimates)
    return cost, survival, worth
