"""Offers: what each level can propose, at what cost. Dynamic programming from the lowest level up.

An offer is a sub-chain with its windows and rounds. It costs seconds and brings a random number of tokens, given by its
survival function S[k] = P(at least k tokens), k = 1 ... 16. A level that verifies an offer of the level below accepts
at least k of it with chance S[k] alpha^k and adds one token of its own, so

    seconds of a round = seconds(offer) + V(1) + sum_k S[k] (V(k + 1) - V(k))      yield Y:  P(Y > k) = S[k] alpha^k

and r rounds bring the sum of r yields. This is exact where acceptances are independent; for a lowest model, which
drafts w tokens in w forwards, S is 1 up to w. Since alpha depends on the pair only, the best offers of a level do not
depend on what lies above it: each level keeps the cheapest offer of each expected length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specrouter_llm.scheduling.counts import Array
from specrouter_llm.scheduling.estimates import Estimates
from specrouter_llm.scheduling.similarity import MAX_WINDOW

Ints = npt.NDArray[np.int64]

ROUNDS = np.array([1, 2, 3, 4, 6, 8])
LOOKUP_WINDOWS = np.array([1, 2, 4, 6, 8, 10, 12, 16])
PLACES = np.arange(1, MAX_WINDOW + 1)
MOST_LEVELS = 62
"""Below the target: a set of them is the bits of one whole number."""
_OWN_SURVIVAL = np.tril(np.ones((MAX_WINDOW, MAX_WINDOW)))
_SHIFT = np.maximum(np.arange(MAX_WINDOW)[None, :] - np.arange(MAX_WINDOW)[:, None], 0)
_FORWARD = np.triu(np.ones((MAX_WINDOW, MAX_WINDOW)))
WITHIN = (LOOKUP_WINDOWS[:, None] >= PLACES).astype(np.float64)
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
    """[K, 3 + MAX_WINDOW]"""

    @classmethod
    def of(
        cls,
        *,
        level: int,
        seconds: Array,
        survival: Array,
        window: Ints,
        rounds: Ints | int,
        catch_up: Array | float,
        sub: Ints | int,
        members: Ints | int,
    ) -> Offers:
        """K offers of one level; see the properties for what is what."""
        numbers = np.empty((len(seconds), 5), np.int64)
        values = np.empty((len(seconds), 3 + MAX_WINDOW))
        numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 3], numbers[:, 4] = level, window, rounds, sub, members
        values[:, :2], values[:, 2], values[:, 3:] = seconds, catch_up, survival
        return cls(numbers, values)

    @classmethod
    def none(cls) -> Offers:
        """No offer at all."""
        return cls(np.zeros((0, 5), np.int64), np.zeros((0, 3 + MAX_WINDOW)))

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
        return self.values[:, 3:]

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
    powers = estimates.acceptance.pair_survival
    middle = _middle_levels(estimates, powers[:, -1])
    for level in range(estimates.num_lookups, len(estimates.lower)):
        curve = estimates.costs.curves[level]
        if not np.isfinite(curve[0, 1]):
            continue
        offers = own_offers(level, estimates)
        if parts and middle[level]:
            column = level - estimates.num_lookups
            verified = _verified_offers(level, curve, powers[:, column], estimates, Offers.joined(parts))
            if verified is not None:
                offers = _cheapest(Offers.joined([offers, verified]))
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
        window=PLACES,
        rounds=PLACES,
        catch_up=float(estimates.catch_up[level]),
        sub=_NO_SUB,
        members=1 << level,
    )


def lookup_offers(level: int, estimates: Estimates) -> Offers:
    """A model-free level: with chance h it proposes, and goes on after each token with chance s: S[k] = h s^(k - 1)."""
    hit, stay = estimates.acceptance.hits[:, level].mean(), estimates.acceptance.stays[:, level].mean()
    return Offers.of(
        level=level,
        seconds=np.broadcast_to(estimates.costs.curves[level][:, 1], (len(LOOKUP_WINDOWS), 2)),
        survival=WITHIN * (hit * stay ** (PLACES - 1)),
        window=LOOKUP_WINDOWS,
        rounds=1,
        catch_up=0.0,
        sub=_NO_SUB,
        members=1 << level,
    )


def round_of(seconds: Array, survival: Array, powers: Array, curve: Array) -> tuple[Array, Array]:
    """One verification of offers by a level: ([K, 2] seconds, [K, MAX_WINDOW + 1] survival of the yield)."""
    accepted = survival * powers
    cost = seconds + curve[:, 1] + survival @ (curve[:, 2:] - curve[:, 1:-1]).T
    return cost, np.concatenate([np.ones((len(survival), 1)), accepted], axis=1)


def rounds_of(cost: Array, yields: Array, counts: Ints) -> tuple[Array, Array]:
    """Up to r rounds, ending early at 16 tokens: [C, K, 2] seconds and [C, K, MAX_WINDOW] survival, r by counts."""
    chance = np.zeros((len(yields), MAX_WINDOW))  # P(Y = y), y = 0 ... 15
    chance[:, 1:] = yields[:, : MAX_WINDOW - 1] - yields[:, 1:MAX_WINDOW]
    step = chance[:, _SHIFT] * _FORWARD
    grown = np.empty((int(counts[-1]), len(yields), MAX_WINDOW))  # P(sum = s) after each round
    grown[0] = chance
    for done in range(1, len(grown)):
        np.matmul(grown[done - 1][:, None, :], step, out=grown[done][:, None, :])
    below = np.cumsum(grown, axis=2)
    run = np.ones((len(grown), len(yields)))
    np.cumsum(below[:-1, :, -1], axis=0, out=run[1:])
    run[1:] += 1.0
    return cost * run[counts - 1][:, :, None], np.maximum(1.0 - below[counts - 1], 0.0)


def _verified_offers(level: int, curve: Array, powers: Array, estimates: Estimates, below: Offers) -> Offers | None:
    """Rounds of a model over the offers below it, as far as they beat its drafting alone."""
    cost, yields = round_of(below.seconds, below.survival, powers[below.level], curve)
    mean = yields.sum(axis=1)
    price = cost[:, 0] / mean
    useful = np.flatnonzero(price < estimates.costs.drafting[level, 0])
    if not len(useful):
        return None
    length = np.searchsorted((1.5, 2.5, 3.5, 5.5, 8.5, 12.5), mean[useful])
    best = useful[_first_of_each(length, price[useful])]
    seconds, survival = rounds_of(cost[best], yields[best], ROUNDS)
    sub, rounds = np.tile(best, len(ROUNDS)), np.repeat(ROUNDS, len(best))
    return Offers.of(
        level=level,
        seconds=seconds.reshape(-1, 2),
        survival=survival.reshape(-1, MAX_WINDOW),
        window=np.minimum(MAX_WINDOW, rounds * (below.window[sub] + 1)),
        rounds=rounds,
        catch_up=below.catch_up[sub] + estimates.catch_up[level],
        sub=sub,
        members=below.members[sub] | 1 << level,
    )


def _cheapest(offers: Offers) -> Offers:
    """For each expected length the offer with the least seconds per token."""
    mean = offers.survival.sum(axis=1)
    return offers.taken(_first_of_each(np.rint(mean).astype(np.int64), offers.seconds[:, 0] / mean))


def _first_of_each(group: Ints, key: Array) -> Ints:
    """The index of the least key in each group."""
    order = np.lexsort((key, group))
    sorted_groups = group[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    chosen: Ints = order[first]
    return chosen
