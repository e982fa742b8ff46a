"""The search: the plan of every row of a step, at the least expected seconds per token.

All rows of a batch wait for one target forward, so the plans are made for the step. The objective is the expected
tokens of all rows over the expected seconds of the step,

    sum_r A_r / (overhead + draft phases + V_T(sum_r (w_r + 1)))

with A = 1 + sum_k S[k] alpha^k, which is (1 - alpha^(w + 1)) / (1 - alpha) for a draft of w tokens. A chain is paid once
for the rows that use it; each row then takes the best on offer: the chain's proposal or the beginning of it, a
model-free one, or nothing. The ratio is maximised as Dinkelbach does: at a price of theta tokens per second every row
chooses for itself, and theta follows. With one row this is T_eff = min(V_T(1), min [C(w) + V_T(w + 1)] / A(alpha, w)).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from specrouter_llm.scheduling.counts import Array
from specrouter_llm.scheduling.estimates import Estimates, Fed
from specrouter_llm.scheduling.offers import LOOKUP_WINDOWS, PLACES, WITHIN, Ints, Offers, all_offers
from specrouter_llm.scheduling.plan import Plan

CANDIDATES = 24
"""Offers that are compared row by row; the others lose on the rows' mean already."""
PASSES = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the whole batch."""

    plan: Plan
    seconds_per_token: float
    """Predicted; all rows together, so a batch of R rows shows each row R times this."""


@dataclass(frozen=True, slots=True)
class StepChoice:
    """What a search found."""

    plans: tuple[Plan, ...]
    tokens: float
    """Expected tokens of the step, all rows."""
    seconds: float
    """Expected duration of the step."""

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / self.tokens


@dataclass(frozen=True, slots=True)
class _Shares:
    """What rows take of C candidates at one price: the step's tokens and seconds with each."""

    taken: Ints
    """[R, C] tokens asked of the candidate, 0 where the row does without."""
    tokens: Array
    seconds: Array

    @property
    def best(self) -> int:
        return int(np.argmin(self.seconds / self.tokens))


@dataclass(frozen=True, slots=True)
class _Aside:
    """What each row does without a model."""

    gain: Array
    """[R] at this price."""
    lookup: Ints
    """[R] -1 for none."""
    window: Ints
    tokens: Array
    """[R] that are expected to be accepted."""
    reach: Array
    """[R, MAX_WINDOW] chance that at least so many are offered."""


class Search:
    """One search over one set of estimates."""

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._table = all_offers(estimates)
        self._survival = estimates.acceptance.target_survival
        self._tokens, self._price = self._alike()
        self._ranked = np.argsort(self._price)

    def choice(self) -> StepChoice:
        """The best step. Plain decoding of every row is always among what is compared."""
        best = self._choice_alike()
        if self._estimates.num_rows == 1:
            return min((best, *filter(None, [self._either])), key=lambda choice: choice.seconds_per_token)
        for _ in range(PASSES):
            theta = best.tokens / best.seconds
            aside, before = self._aside(theta), best
            for shares in self._all_shares(theta, aside):
                i = shares.best
                tokens, seconds = float(shares.tokens[i]), float(shares.seconds[i])
                if tokens / seconds > best.tokens / best.seconds * (1 + 1e-9):
                    best = StepChoice(tuple(self._plans(shares.taken[:, i], i, aside)), tokens, seconds)
            if best.tokens / best.seconds <= before.tokens / before.seconds * (1 + 1e-6):
                break
        return best

    # ---------------------------------------------------------------- all rows alike

    def levels(self, count: int) -> set[int]:
        """The lower levels of the best `count` offers."""
        used = int(np.bitwise_or.reduce(self._table.members[self._ranked[:count]]))
        return {level for level in range(len(self._estimates.lower)) if used >> level & 1}

    def _choice_alike(self) -> StepChoice:
        """The best step in which all rows do the same: with one row, the best step."""
        estimates, rows = self._estimates, self._estimates.num_rows
        plain = StepChoice((Plan((estimates.target,)),) * rows, float(rows), estimates.plain_seconds)
        refused = int(np.bitwise_or.reduce(self._refused_levels))
        number = next((int(n) for n in self._ranked if not self._table.members[n] & refused), None)
        if number is None or self._price[number] >= plain.seconds_per_token:
            return plain
        plan, tokens = self._plan(number, int(self._table.window[number])), float(self._tokens[number])
        return StepChoice((plan,) * rows, tokens, tokens * float(self._price[number]))

    def _alike(self) -> tuple[Array, Array]:
        """Tokens, and seconds per token, of the step in which every row takes the whole of an offer."""
        estimates, table = self._estimates, self._table
        rows = estimates.num_rows
        if not len(table):
            return np.zeros(0), np.zeros(0)
        accepted = (table.worth * self._survival.sum(axis=0)[table.level]).sum(axis=1)
        tokens = rows + accepted
        seconds = (
            estimates.overhead
            + table.seconds[:, 0]
            + estimates.expected_seconds(Fed(np.broadcast_to(table.survival, (rows, *table.survival.shape))))
            + tokens * table.catch_up
        )
        return tokens, seconds / tokens

    def candidates(self, below: float = np.inf) -> tuple[Candidate, ...]:
        """Plain decoding, the best offer of each chain, and the best of what is looked up first, best first; of them those
        that take less than so many seconds per token."""
        estimates = self._estimates
        plain = Candidate(Plan((estimates.target,)), estimates.plain_seconds / estimates.num_rows)
        ranked = self._ranked[:64]
        _, best = np.unique(self._table.members[ranked], return_index=True)  # the first of each chain is its best
        found = [
            Candidate(self._plan(int(number), int(self._table.window[number])), float(self._price[number]))
            for number in ranked[best]
        ]
        if self._either is not None:
            found.append(Candidate(self._either.plans[0], self._either.seconds_per_token))
        kept = (candidate for candidate in (plain, *found) if candidate.seconds_per_token < below)
        return tuple(sorted(kept, key=lambda candidate: candidate.seconds_per_token))

    @cached_property
    def _either(self) -> StepChoice | None:
        """The best of what one row may look up first, with the drafts of models where that finds nothing; of more rows none,
        for they share one forward, and few would draft."""
        estimates, table, lookups = self._estimates, self._table, self._lookup_offers
        refused = int(np.bitwise_or.reduce(self._refused_levels)) | (1 << estimates.num_lookups) - 1
        numbers = self._ranked[(table.members[self._ranked] & refused) == 0][:CANDIDATES]
        if lookups is None or not len(numbers) or estimates.num_rows > 1:
            return None
        (reach,), _, (accepted,), cost = lookups
        drafts, rise = table.taken(numbers), np.diff(estimates.costs.target)[1:]
        missed = (1.0 - reach[:, 0])[:, None]
        drafted = (drafts.worth * self._survival[0, drafts.level]).sum(axis=1)
        tokens = 1.0 + accepted[:, None] + missed * drafted
        seconds = missed * (drafts.seconds[:, 0] + drafts.survival @ rise) + (cost + reach @ rise)[:, None]
        seconds += estimates.overhead + estimates.costs.target[1] + tokens * drafts.catch_up
        first, other = np.unravel_index(np.argmin(seconds / tokens), tokens.shape)
        level, window = divmod(int(first), len(LOOKUP_WINDOWS))
        lookup = Plan((estimates.lower[level], estimates.target), (int(LOOKUP_WINDOWS[window]),), (1, 1))
        plan = Plan.either(lookup, self._plan(int(numbers[other]), int(drafts.window[other])))
        return StepChoice((plan,), float(tokens[first, other]), float(seconds[first, other]))

    # ---------------------------------------------------------------- each row for itself

    @cached_property
    def _numbers(self) -> Ints:
        """Of the offers that are compared row by row."""
        return self._ranked[:CANDIDATES]

    @cached_property
    def _offers(self) -> Offers:
        return self._table.taken(self._numbers)

    @cached_property
    def _accepted(self) -> Array:
        """[R, C, MAX_WINDOW] chance that a row takes and the target accepts at least so many tokens of an offer."""
        offers = self._offers
        return np.asarray(offers.worth * self._survival[:, offers.level])

    @cached_property
    def _lookup_offers(self) -> tuple[Array, Array, Array, Array] | None:
        """[R, P * W, 16] chance of so many offered tokens of each model-free level with each window, [R, P * W] their mean
        and that of those accepted, and [P * W] seconds."""
        count, rows = self._estimates.num_lookups, self._estimates.num_rows
        if not count:
            return None
        acceptance = self._estimates.acceptance
        offered = acceptance.hits[:, :, None] * acceptance.stays[:, :, None] ** (PLACES - 1)
        offered = np.where(self._estimates.blocked[:, :count, None] > 0, 0.0, offered)
        accepted = np.cumsum(offered * self._survival[:, :count], axis=2)[:, :, LOOKUP_WINDOWS - 1].reshape(rows, -1)
        reach = (offered[:, :, None, :] * WITHIN).reshape(rows, -1, len(PLACES))
        cost = np.repeat(self._estimates.costs.curves[:count, 1, 1], len(LOOKUP_WINDOWS))
        return reach, reach.sum(axis=2), accepted, cost

    def _aside(self, theta: float) -> _Aside:
        rows = self._estimates.num_rows
        if self._lookup_offers is None:
            nothing = np.zeros(rows)
            return _Aside(nothing, np.full(rows, -1), nothing.astype(np.int64), nothing, np.zeros((rows, len(PLACES))))
        reach, offered, accepted, cost = self._lookup_offers
        gains = accepted - theta * (self._slope * offered + cost)
        best = np.argmax(gains, axis=1)
        every = np.arange(rows)
        gain = gains[every, best]
        used = gain > 0
        return _Aside(
            gain * used,
            np.where(used, best // len(LOOKUP_WINDOWS), -1),
            np.where(used, LOOKUP_WINDOWS[best % len(LOOKUP_WINDOWS)], 0),
            accepted[every, best] * used,
            reach[every, best] * used[:, None],
        )

    @cached_property
    def _slope(self) -> float:
        """Seconds per further token of the target's forward."""
        rows = self._estimates.num_rows
        low, high = self._estimates.target_seconds(np.array([rows * 2.0, rows * 6.0]))
        return float(high - low) / (4.0 * rows)

    def _all_shares(self, theta: float, aside: _Aside) -> list[_Shares]:
        """Candidates taken by all rows whole, and taken by each row as far as they pay; the last one is none at all."""
        offers, rows = self._offers, self._estimates.num_rows
        blocked = (self._refused_levels[:, None] & offers.members) != 0
        width = len(self._numbers)
        whole = np.broadcast_to(offers.window, (rows, width)) * ~blocked
        shares = [self._share(whole, aside)]
        if width:
            extra = np.maximum(offers.seconds[:, 0] - offers.seconds[:, 1], 0.0) / (rows - 1)
            draft = extra / np.maximum(offers.survival.sum(axis=1), 1e-9)
            value = self._accepted - offers.survival * (theta * (self._slope + draft))[:, None]
            total = np.cumsum(value, axis=2)
            end = np.argmax(total, axis=2)
            reached = np.take_along_axis(total, end[:, :, None], axis=2)[:, :, 0]
            part = np.where((reached > aside.gain[:, None]) & ~blocked, np.minimum(end + 1, offers.window), 0)
            shares.append(self._share(part, aside))
        return shares

    @cached_property
    def _refused_levels(self) -> Ints:
        """[R] a bit for each level that a row cannot use."""
        bits: Ints = (self._estimates.blocked > 0) @ (1 << np.arange(len(self._estimates.lower)))
        return bits

    def _share(self, taken: Ints, aside: _Aside) -> _Shares:
        """Tokens and seconds of the step with each candidate, and without any (the last entry)."""
        estimates, offers = self._estimates, self._offers
        rows, width = taken.shape
        taken = np.concatenate([taken, np.zeros((rows, 1), dtype=taken.dtype)], axis=1)
        reach = np.repeat(aside.reach[:, None, :], width + 1, axis=1)
        accepted = np.repeat(aside.tokens[:, None], width + 1, axis=1)
        alone = taken == 0
        inside = np.where(taken[:, :width, None] >= PLACES, offers.survival, 0.0)
        own = np.where(inside > 0, self._accepted, 0.0).sum(axis=2)
        reach[:, :width] = np.where(alone[:, :width, None], reach[:, :width], inside)
        accepted[:, :width] = np.where(alone[:, :width], accepted[:, :width], own)
        tokens = 1.0 * rows + accepted.sum(axis=0)
        users = rows - alone.sum(axis=0)
        share = (users[:width] - 1) / max(1, rows - 1)
        draft = np.zeros(width + 1)
        draft[:width] = offers.seconds[:, 1] + share * (offers.seconds[:, 0] - offers.seconds[:, 1])
        draft[:width] += tokens[:width] * offers.catch_up * users[:width] / rows
        if estimates.num_lookups:
            cost = np.where(aside.lookup >= 0, estimates.costs.curves[np.maximum(aside.lookup, 0), 1, 1], 0.0)
            draft += (alone * cost[:, None]).sum(axis=0)
        draft[:width] = np.where(users[:width] > 0, draft[:width], np.inf)
        seconds = estimates.overhead + draft + estimates.expected_seconds(Fed(reach))
        return _Shares(taken, tokens, seconds)

    # ---------------------------------------------------------------- plans

    def _plan(self, number: int, window: int) -> Plan:
        """A candidate as a plan of which a row takes `window` tokens; its group is formed by levels and rounds."""
        estimates = self._estimates
        chain = self._table.chain(number)
        names = (*(estimates.lower[level] for level in chain.levels), estimates.target)
        return Plan(names, (*chain.windows[:-1], window), (*chain.rounds, 1))

    def _plans(self, taken: Ints, candidate: int, aside: _Aside) -> list[Plan]:
        """One plan per row; candidates behind the last one are none at all."""
        estimates = self._estimates
        plans = []
        for row in range(estimates.num_rows):
            if taken[row]:
                plans.append(self._plan(int(self._numbers[candidate]), int(taken[row])))
            elif aside.lookup[row] >= 0:
                lookup, window = estimates.lower[aside.lookup[row]], int(aside.window[row])
                plans.append(Plan((lookup, estimates.target), (window,), (1, 1)))
            else:
                plans.append(Plan((estimates.target,)))
        return plans
