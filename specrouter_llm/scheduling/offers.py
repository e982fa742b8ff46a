"""Offers: what each level can propose, at what cost. Dynamic programming from the lowest level up.

An offer is a sub-chain with its windows and rounds. It costs seconds and brings a random number of tokens, given by its
survival function S[k] = P(at least k tokens), k = 1 ... 16. A level that verifies an offer of the level below accepts
at least k of it with chance S[k] alpha^k and adds one token of its own, so

    seconds of a round = seconds(offer) + V(1) + sum_k S[k] (V(k + 1) - V(k))      yield Y:  P(Y > k) = S[k] alpha^k

and r rounds bring the sum of r yields; for a lowest model, which drafts w tokens in w forwards, S is 1 up to w. Since alpha
depends on the pair only, what an offer brings does not depend on what lies above it: each level keeps of each expected
length the offer that would be best if the target came next.

Acceptances are taken as independent but for one thing, without which long rounds look worse than they are: tokens that a
middle level has accepted from below are likelier to be right than those of its own (see `Agreement`). So an offer carries
a second survival, its worth W: the target accepts at least k of its tokens with chance W[k] alpha^k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specrouter_llm.scheduling.counts import Array, mean_of
from specrouter_llm.scheduling.estimates import Estimates
from specrouter_llm.scheduling.similarity import MAX_WINDOW

Ints = npt.NDArray[np.int64]

ROUNDS = np.array([1, 2, 3, 4, 6, 8])
LOOKUP_WINDOWS = np.array([1, 2, 4, 6, 8, 10, 12, 16])
PLACES = np.arange(1, MAX_WINDOW + 1)
MOST_LEVELS = 62
"""Below the target: a set of them is the bits of one whole number."""
_OWN_SURVIVAL = np.tril(np.ones((MAX_WINDOW, MAX_WINDOW)))
_LATER = np.arange(MAX_WINDOW)[None, :] - np.arange(MAX_WINDOW)[:, None]
_SHIFT = np.where(_LATER < 0, MAX_WINDOW, _LATER)
"""[s, t] t - s, of which 16 stands for less than nothing."""
WITHIN = (LOOKUP_WINDOWS[:, None] >= PLACES).astype(np.float64)
_LENGTHS = np.array([1.5, 2.5, 3.5, 5.5, 8.5, 12.5])
"""Offers of which the mean lies between two of these compete to be verified."""
_NO_SUB = -1


@dataclass(frozen=True, slots=True)
class Chain:
    """A sub-chain by level number, lowest first. `windows[-1]` is what the top offers at most."""

    levels: tuple[int, ...]
    windows: tuple[int, ...]
    rounds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offers:
    """K offers, of one level or of many, as two tables: small arrays are as dear to handle as large ones."""

    numbers: Ints
    """[K, 5]"""
    values: Array
    """[K, 3 + 2 MAX_WINDOW]"""

    @classmethod
    def of(
        cls,
        *,
        level: int,
        seconds: Array,
        survival: Array,
        worth: Array,
        window: Ints,
        rounds: Ints | int,
        catch_up: Array | float,
        sub: Ints | int,
        members: Ints | int,
    ) -> Offers:
        """K offers of one level; see the properties for what is what. Equal ones may be given once for all."""
        numbers = np.empty((len(survival), 5), np.int64)
        values = np.empty((len(survival), 3 + 2 * MAX_WINDOW))
        numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 3], numbers[:, 4] = level, window, rounds, sub, members
        values[:, :2], values[:, 2] = seconds, catch_up
        values[:, 3 : 3 + MAX_WINDOW], values[:, 3 + MAX_WINDOW :] = survival, worth
        return cls(numbers, values)

    @classmethod
    def none(cls) -> Offers:
        """No offer at all."""
        return cls(np.zeros((0, 5), np.int64), np.zeros((0, 3 + 2 * MAX_WINDOW)))

    @classmethod
    def single(cls, level: int, seconds: Array, survival: Array) -> Offers:
        """One offer to a level above, whatever its chain: [2] seconds and [MAX_WINDOW] survival."""
        return cls.of(
            level=level,
            seconds=seconds[None],
            survival=survival[None],
            worth=survival[None],
            window=np.array([MAX_WINDOW]),
            rounds=1,
            catch_up=0.0,
            sub=_NO_SUB,
            members=1 << level,
        )

    @classmethod
    def joined(cls, parts: Sequence[Offers]) -> Offers:
        """All offers of all parts, in order."""
        return cls(np.concatenate([part.numbers for part in parts]), np.concatenate([part.values for part in parts]))

    def taken(self, index: Ints) -> Offers:
        """Some of the offers."""
        return Offers(self.numbers[index], self.values[index])

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def level(self) -> Ints:
        """[K] who offers."""
        return self.numbers[:, 0]

    @property
    def window(self) -> Ints:
        """[K] tokens at most."""
        return self.numbers[:, 1]

    @property
    def rounds(self) -> Ints:
        """[K] rounds of the level itself."""
        return self.numbers[:, 2]

    @property
    def sub(self) -> Ints:
        """[K] number of the offer below in the table, -1 for none."""
        return self.numbers[:, 3]

    @property
    def members(self) -> Ints:
        """[K] a bit for each level of the chain."""
        return self.numbers[:, 4]

    @property
    def seconds(self) -> Array:
        """[K, 2] of the whole batch, of one row alone."""
        return self.values[:, :2]

    @property
    def catch_up(self) -> Array:
        """[K] seconds per committed token."""
        return self.values[:, 2]

    @property
    def survival(self) -> Array:
        """[K, MAX_WINDOW] chance of at least so many tokens."""
        return self.values[:, 3 : 3 + MAX_WINDOW]

    @property
    def worth(self) -> Array:
        """[K, MAX_WINDOW] what the level's rate alpha^k is multiplied by for the chance that the target accepts so many."""
        return self.values[:, 3 + MAX_WINDOW :]

    def chain(self, number: int) -> Chain:
        """The sub-chain behind an offer of the whole table."""
        levels: list[int] = []
        windows: list[int] = []
        rounds: list[int] = []
        while number != _NO_SUB:
            levels.insert(0, int(self.level[number]))
            windows.insert(0, int(self.window[number]))
            rounds.insert(0, int(self.rounds[number]))
            number = int(self.sub[number])
        return Chain(tuple(levels), tuple(windows), tuple(rounds))


def all_offers(estimates: Estimates) -> Offers:
    """The table: the best offers of every level, model-free ones first, then model by model from the smallest."""
    parts = [lookup_offers(level, estimates) for level in range(estimates.num_lookups)]
    middle = _middle_levels(estimates, estimates.acceptance.pair_survival[:, -1])
    for level in range(estimates.num_lookups, len(estimates.lower)):
        if not np.isfinite(estimates.costs.curves[level, 0, 1]):
            continue
        offers = own_offers(level, estimates)
        if parts and middle[level]:
            verified = _verified_offers(level, estimates, Offers.joined(parts))
            if verified is not None:
                offers = _cheapest(Offers.joined([offers, verified]), estimates)
        parts.append(offers)
    return Offers.joined(parts) if parts else Offers.none()


def _middle_levels(estimates: Estimates, powers: Array) -> npt.NDArray[np.bool_]:
    """[L] whether a level can pay as a verifier: even if its drafts were free and all the target accepts came at once,
    a step would take V_i(1) + V_T(1) for the mean of what is accepted and one more; that must beat the best draft by one
    model alone."""
    rows = estimates.num_rows
    first = estimates.costs.curves[:, 0, 1]
    fed = estimates.target_seconds(rows * (1 + PLACES).astype(np.float64))
    tokens = rows * (1.0 + np.cumsum(powers, axis=1))
    drafted = (estimates.overhead + PLACES * estimates.costs.drafting[:, :1] + fed) / tokens
    drafted = drafted[estimates.num_lookups :]
    best = min(float(drafted.min()) if drafted.size else np.inf, estimates.plain_seconds / rows)
    following = powers[:, 1] / powers[:, 0]
    floor = (first + estimates.plain_seconds) / (1.0 + powers[:, 0] / (1.0 - following)) / rows
    useful: npt.NDArray[np.bool_] = floor < best
    return useful


def own_offers(level: int, estimates: Estimates) -> Offers:
    """A model that drafts alone: w tokens in w forwards."""
    return Offers.of(
        level=level,
        seconds=PLACES[:, None] * estimates.costs.drafting[level],
        survival=_OWN_SURVIVAL,
        worth=_OWN_SURVIVAL,
        window=PLACES,
        rounds=PLACES,
        catch_up=float(estimates.catch_up[level]),
        sub=_NO_SUB,
        members=1 << level,
    )


def lookup_offers(level: int, estimates: Estimates) -> Offers:
    """A model-free level: with chance h it proposes, and goes on after each token with chance s: S[k] = h s^(k - 1)."""
    hit, stay = mean_of(estimates.acceptance.hits)[level], mean_of(estimates.acceptance.stays)[level]
    survival = WITHIN * (hit * stay ** (PLACES - 1))
    return Offers.of(
        level=level,
        seconds=estimates.costs.curves[level][:, 1],
        survival=survival,
        worth=survival,
        window=LOOKUP_WINDOWS,
        rounds=1,
        catch_up=0.0,
        sub=_NO_SUB,
        members=1 << level,
    )


def round_of(level: int, below: Offers, estimates: Estimates) -> tuple[Array, Array]:
    """One verification of K offers by a level: ([K, 2] seconds, [K, MAX_WINDOW + 1] survival of the yield)."""
    column, curve = level - estimates.num_lookups, estimates.costs.curves[level]
    cost = below.seconds + curve[:, 1] + below.survival @ (curve[:, 2:] - curve[:, 1:-1]).T
    yields = np.ones((len(below), MAX_WINDOW + 1))
    yields[:, 1:] = below.survival * estimates.acceptance.pair_survival[below.level, column]
    return cost, yields


def right_of(level: int, below: Offers, yields: Array, estimates: Estimates) -> tuple[Array, Array]:
    """Of the yield of such rounds: [K, MAX_WINDOW] chance of at least 1, 2, ... tokens of which the target accepts as many,
    and of 0, 1, ... tokens that it accepts all."""
    acceptance, pair = estimates.acceptance, (below.level, level - estimates.num_lookups)
    powers, run = acceptance.pair_survival[pair], acceptance.agreed_survival[pair]
    alpha, agree = acceptance.mean_target[level], acceptance.pairs[pair]
    differing = np.minimum(np.maximum((alpha - agree * acceptance.agreed[pair]) / (1.0 - agree), 0.0), 1.0)
    # The round ends behind j accepted tokens: with the level's own one instead of a refused one, or with one more.
    refused = below.survival * np.concatenate([1.0 - powers[:, :1], powers[:, :-1] - powers[:, 1:]], axis=1)
    ended = yields[:, :-1] - yields[:, 1:] - refused
    last = run[:, :-1] * (differing[:, None] * refused + alpha * ended)
    whole = np.zeros_like(last)
    whole[:, 1:] = last[:, :-1]
    return yields[:, 1:] * run[:, 1:] + last, whole


def rounds_of(cost: Array, yields: Array, right: tuple[Array, Array], counts: Ints) -> tuple[Array, Array, Array]:
    """Up to r rounds, ending early at 16 tokens, r by counts: [C, K, 2] seconds, [C, K, MAX_WINDOW] survival, and the chance
    of at least 1, 2, ... tokens of which the target accepts as many."""
    size = len(cost)
    chance = np.zeros((2 * size, MAX_WINDOW + 1))  # of 0 ... 15 tokens in one round; that they are all right, too
    np.subtract(yields[:, : MAX_WINDOW - 1], yields[:, 1:MAX_WINDOW], out=chance[:size, 1:-1])
    chance[size:, :-1] = right[1]
    step = chance.take(_SHIFT, axis=1)
    reached = np.empty((int(counts[-1]), 2 * size, MAX_WINDOW))  # in the last round, last two ... rounds
    reached[0, :size], reached[0, size:] = yields[:, :MAX_WINDOW], right[0]
    for done in range(1, len(reached)):  # a round that did not suffice, and what is left behind it
        np.matmul(reached[done - 1][:, None, :], step, out=reached[done][:, None, :])
        reached[done] += reached[0]
    begun = np.ones((len(reached), size))
    begun[1:] += np.cumsum(1.0 - reached[:-1, :size, -1], axis=0)
    found = reached[counts - 1]
    return cost * begun[counts - 1][:, :, None], np.minimum(found[:, :size], 1.0), found[:, size:]


def worth_of(level: int, survival: Array, accepted: Array, estimates: Estimates) -> Array:
    """[..., MAX_WINDOW] of a level's offers. What is accepted has been offered, and the level's own choices up to there are
    right: no row's chance is above either."""
    acceptance = estimates.acceptance
    most = np.minimum(survival / acceptance.most_survival[level], 1.0)
    return np.asarray(np.minimum(accepted / acceptance.mean_powers[level], most))


def _verified_offers(level: int, estimates: Estimates, below: Offers) -> Offers | None:
    """Rounds of a model over the offers below it, as far as they beat its drafting alone."""
    cost, yields = round_of(level, below, estimates)
    mean = yields.sum(axis=1)
    useful = np.flatnonzero(cost[:, 0] < mean * estimates.costs.drafting[level, 0])
    if not len(useful):
        return None
    right, whole = right_of(level, below.taken(useful), yields[useful], estimates)
    length = np.searchsorted(_LENGTHS, mean[useful])
    alone = _step_price(cost[useful, 0], mean[useful], right.sum(axis=1), estimates)
    often = cost[useful, 0] / mean[useful]
    chosen = np.zeros(len(useful), dtype=bool)
    both = np.concatenate([length, length + len(_LENGTHS) + 1])  # one round, and many
    chosen[_first_of_each(both, np.concatenate([alone, often])) % len(useful)] = True
    first = np.flatnonzero(chosen)
    best = useful[first]
    seconds, survival, accepted = rounds_of(cost[best], yields[best], (right[first], whole[first]), ROUNDS)
    sub, rounds = np.concatenate([best] * len(ROUNDS)), ROUNDS.repeat(len(best))
    return Offers.of(
        level=level,
        seconds=seconds.reshape(-1, 2),
        survival=survival.reshape(-1, MAX_WINDOW),
        worth=worth_of(level, survival, accepted, estimates).reshape(-1, MAX_WINDOW),
        window=np.minimum(MAX_WINDOW, rounds * (below.window[sub] + 1)),
        rounds=rounds,
        catch_up=below.catch_up[sub] + estimates.catch_up[level],
        sub=sub,
        members=below.members[sub] | 1 << level,
    )


def _cheapest(offers: Offers, estimates: Estimates) -> Offers:
    """Of one level: for each expected length the offer with which the target would take the least seconds per token, and that
    of those that look nothing up: they serve where a lookup has found nothing, too."""
    mean = offers.survival.sum(axis=1)
    accepted = offers.worth @ estimates.acceptance.mean_survival[offers.level[0]]
    price = _step_price(offers.seconds[:, 0], mean, accepted, estimates)
    looks_up = (offers.members & (1 << estimates.num_lookups) - 1) > 0
    return offers.taken(_first_of_each(2 * np.rint(mean).astype(np.int64) + looks_up, price))


def _step_price(seconds: Array, offered: Array, accepted: Array, estimates: Estimates) -> Array:
    """Seconds per token, of each row, of steps in which the target verifies so many tokens in the mean."""
    target = estimates.target_seconds(estimates.num_rows * (1.0 + offered))
    return np.asarray((estimates.overhead + seconds + target) / (1.0 + accepted))


def _first_of_each(group: Ints, key: Array) -> Ints:
    """The index of the least key in each group."""
    order = np.lexsort((key, group))
    sorted_groups = group[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    chosen: Ints = order[first]
    return chosen
