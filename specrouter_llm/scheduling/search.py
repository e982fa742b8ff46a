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
from specrouter_llm.scheduling.estimates import Estimates, moments
from specrouter_llm.scheduling.offers import Ints, all_offers
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.sharing import Lookups, Share, Sharing

CHAINS = 64
"""Offers among which the best of every chain is looked for."""
CANDIDATES = 24
"""Offers that are compared row by row; the others lose on the rows' mean already."""


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
        numbers = self._ranked[:CANDIDATES]
        sharing = Sharing(self._estimates, self._table.taken(numbers), self._refused_levels, self._lookups)
        share = sharing.better_than(best.tokens, best.seconds)
        return best if share is None else StepChoice(self._plans(share, numbers), share.tokens, share.seconds)

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
            estimates.overhead + table.seconds[:, 0] + self._target_seconds(table.survival) + tokens * table.catch_up
        )
        return tokens, seconds / tokens

    def _target_seconds(self, reach: Array) -> Array:
        """[K] of forwards to which every row proposes at least so many tokens with [K, MAX_WINDOW] chances."""
        estimates, rows = self._estimates, self._estimates.num_rows
        if rows == 1:
            return estimates.expected_seconds(reach[None])
        mean, variance = moments(reach)
        return estimates.batch_seconds(rows * mean, rows * variance)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Plain decoding, the best offer of each chain, and the best of what is looked up first, best first."""
        estimates = self._estimates
        found = [Candidate(Plan((estimates.target,)), estimates.plain_seconds / estimates.num_rows), *self.chains()]
        if self._either is not None:
            found.append(Candidate(self._either.plans[0], self._either.seconds_per_token))
        return tuple(sorted(found, key=lambda candidate: candidate.seconds_per_token))

    def chains(self, below: float = np.inf) -> list[Candidate]:
        """The best offer of each chain, best first, of those that take less than so many seconds per token."""
        ranked = self._ranked[:CHAINS]
        ranked = ranked[self._price[ranked] < below]
        _, best = np.unique(self._table.members[ranked], return_index=True)  # the first of each chain is its best
        return [
            Candidate(self._plan(number, int(self._table.window[number])), float(self._price[number]))
            for number in ranked[np.sort(best)].tolist()
        ]

    @cached_property
    def _either(self) -> StepChoice | None:
        """The best of what one row may look up first, with the drafts of models where that finds nothing; of more rows none,
        for they share one forward, and few would draft."""
        estimates, table, lookups = self._estimates, self._table, self._lookups
        refused = int(np.bitwise_or.reduce(self._refused_levels)) | (1 << estimates.num_lookups) - 1
        numbers = self._ranked[(table.members[self._ranked] & refused) == 0][:CANDIDATES]
        if not estimates.num_lookups or not len(numbers) or estimates.num_rows > 1:
            return None
        reach, accepted = lookups.reach[0], lookups.accepted[0]
        drafts, rise = table.taken(numbers), np.diff(estimates.costs.target)[1:]
        missed = (1.0 - reach[:, 0])[:, None]
        drafted = (drafts.worth * self._survival[0, drafts.level]).sum(axis=1)
        tokens = 1.0 + accepted[:, None] + missed * drafted
        seconds = missed * (drafts.seconds[:, 0] + drafts.survival @ rise) + (lookups.seconds + reach @ rise)[:, None]
        seconds += estimates.overhead + estimates.costs.target[1] + tokens * drafts.catch_up
        first, other = np.unravel_index(np.argmin(seconds / tokens), tokens.shape)
        plan = Plan.either(self._lookup_plan(int(first)), self._plan(int(numbers[other]), int(drafts.window[other])))
        return StepChoice((plan,), float(tokens[first, other]), float(seconds[first, other]))

    @cached_property
    def _lookups(self) -> Lookups:
        return Lookups.of(self._estimates)

    @cached_property
    def _refused_levels(self) -> Ints:
        """[R] a bit for each level that a row cannot use."""
        bits: Ints = (self._estimates.blocked > 0) @ (1 << np.arange(len(self._estimates.lower)))
        return bits

    # ---------------------------------------------------------------- plans

    def _plan(self, number: int, window: int) -> Plan:
        """A candidate as a plan of which a row takes `window` tokens; its group is formed by levels and rounds."""
        estimates = self._estimates
        chain = self._table.chain(number)
        names = (*(estimates.lower[level] for level in chain.levels), estimates.target)
        return Plan(names, (*chain.windows[:-1], window), (*chain.rounds, 1))

    def _plans(self, share: Share, numbers: Ints) -> tuple[Plan, ...]:
        """One plan per row."""
        plans = []
        for taken, lookup in zip(share.taken.tolist(), share.lookup.tolist(), strict=True):
            if taken:
                plans.append(self._plan(int(numbers[share.offer]), taken))
            else:
                plans.append(self._lookup_plan(lookup) if lookup >= 0 else Plan((self._estimates.target,)))
        return tuple(plans)

    def _lookup_plan(self, number: int) -> Plan:
        level, window = Lookups.asked(number)
        return Plan((self._estimates.lower[level], self._estimates.target), (window,), (1, 1))
