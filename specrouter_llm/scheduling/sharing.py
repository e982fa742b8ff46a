"""Sharing: what every row of a batch takes of a draft that all of them may share.

All rows wait for one target forward and for one draft phase. At a price of theta tokens per second each row takes for itself
what pays: the whole of the draft, its beginning, what a model-free level proposes, or nothing. The price follows from what
they take, as in Dinkelbach's method for ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specrouter_llm.scheduling.counts import Array
from specrouter_llm.scheduling.estimates import ODD, Estimates, moments
from specrouter_llm.scheduling.offers import LOOKUP_WINDOWS, PLACES, WITHIN, Ints, Offers
from specrouter_llm.scheduling.similarity import MAX_WINDOW

PASSES = 3


@dataclass(frozen=True, slots=True)
class Share:
    """What the rows take in one step."""

    tokens: float
    """Expected, of the step."""
    seconds: float
    offer: int
    """Which one, of those that were compared."""
    taken: Ints
    """[R] tokens asked of it, 0 where a row does without."""
    lookup: Ints
    """[R] what such a row looks up instead (`Lookups.asked`), -1 for nothing."""


@dataclass(frozen=True, slots=True)
class Lookups:
    """What P model-free levels would bring to R rows with each of W windows."""

    reach: Array
    """[R, P * W, MAX_WINDOW] chance of at least so many offered tokens."""
    accepted: Array
    """[R, P * W] tokens that are expected to be accepted."""
    seconds: Array
    """[P * W] of one row's lookup."""

    @classmethod
    def of(cls, estimates: Estimates) -> Lookups:
        """A level that a row cannot use offers it nothing."""
        count, acceptance, rows = estimates.num_lookups, estimates.acceptance, estimates.num_rows
        offered = acceptance.hits[:, :, None] * acceptance.stays[:, :, None] ** (PLACES - 1)
        offered = np.where(estimates.blocked[:, :count, None] > 0, 0.0, offered)
        accepted = np.cumsum(offered * acceptance.target_survival[:, :count], axis=2)[:, :, LOOKUP_WINDOWS - 1]
        reach = offered[:, :, None, :] * WITHIN
        seconds = estimates.costs.curves[:count, 1, 1].repeat(len(LOOKUP_WINDOWS))
        return cls(reach.reshape(rows, -1, MAX_WINDOW), accepted.reshape(rows, -1), seconds)

    @staticmethod
    def asked(number: int) -> tuple[int, int]:
        """The level and the window of one of the P * W."""
        level, window = divmod(number, len(LOOKUP_WINDOWS))
        return level, int(LOOKUP_WINDOWS[window])


class Sharing:
    """The best step of a batch of R rows over C offers. All tables have one entry more, for nothing at all."""

    def __init__(self, estimates: Estimates, offers: Offers, refused: Ints, lookups: Lookups) -> None:
        """`refused`: [R] a bit for each level that a row cannot use."""
        rows = estimates.num_rows
        self._estimates = estimates
        self._rows = np.arange(rows)
        low, high = estimates.target_seconds(np.array([rows * 2.0, rows * 6.0]))
        slope = float(high - low) / (4.0 * rows)  # seconds per further token of the target's forward
        self._set_offers(offers, refused, slope)
        self._set_lookups(lookups, slope)

    def _set_offers(self, offers: Offers, refused: Ints, slope: float) -> None:
        rows, width = len(self._rows), len(offers)
        survival, whole, one = offers.survival, offers.seconds[:, 0], offers.seconds[:, 1]
        self._window = np.zeros((rows, width + 1), np.int64)
        self._window[:, :width] = np.where(refused[:, None] & offers.members, 0, offers.window)
        self._accepted = np.zeros((rows, width + 1, MAX_WINDOW + 1))
        own = self._estimates.acceptance.target_survival[:, offers.level]
        np.cumsum(offers.worth * own, axis=2, out=self._accepted[:, :width, 1:])
        self._offered = np.zeros((2, width + 1, MAX_WINDOW + 1))  # the number of tokens and its square, in the mean
        np.cumsum(survival, axis=1, out=self._offered[0, :width, 1:])
        np.cumsum(survival * ODD, axis=1, out=self._offered[1, :width, 1:])
        drafting = np.maximum(whole - one, 0.0) / (rows - 1) / np.maximum(survival.sum(axis=1), 1e-9)
        self._price = self._offered[0].copy()  # seconds that a row's tokens cost the others
        self._price[:width] *= (slope + drafting)[:, None]
        self._seconds = np.zeros((3, width + 1))  # for one row, for the other rows, per committed token
        self._seconds[:, :width] = one, whole - one, offers.catch_up
        self._seconds = np.concatenate([self._seconds, self._seconds], axis=1)
        columns = (MAX_WINDOW + 1) * np.arange(width + 1)
        self._columns = np.concatenate([columns, columns])

    def _set_lookups(self, lookups: Lookups, slope: float) -> None:
        mean, variance = moments(lookups.reach)
        # Accepted, offered, its variance, seconds.
        self._looked_up = np.zeros((4, len(self._rows), len(lookups.seconds) + 1))
        self._looked_up[:, :, 1:] = lookups.accepted, mean, variance, np.broadcast_to(lookups.seconds, mean.shape)
        self._lookup_price = slope * self._looked_up[1] + self._looked_up[3]

    def better_than(self, tokens: float, seconds: float) -> Share | None:
        """The best step at a higher rate than so many tokens in so many seconds; None if there is none."""
        best: Share | None = None
        for _ in range(PASSES):
            found = self._best_at(tokens / seconds)
            gain = found.tokens / found.seconds / (tokens / seconds)
            if gain > 1 + 1e-9:
                best, tokens, seconds = found, found.tokens, found.seconds
            if gain <= 1 + 1e-6:
                break
        return best

    def _best_at(self, theta: float) -> Share:
        """Every offer, taken whole by all rows that can, and taken by each row as far as it pays."""
        value = self._looked_up[0] - theta * self._lookup_price
        lookup = value.argmax(axis=1)
        without = value[self._rows, lookup]
        total = self._accepted - theta * self._price
        part = np.where((total.max(axis=2) > without[:, None]) & (self._window > 0), total.argmax(axis=2), 0)
        taken = np.concatenate([self._window, part], axis=1)
        tokens, seconds = self._outcomes(taken, self._looked_up[:, self._rows, lookup])
        best = int(np.argmin(seconds / tokens))
        return Share(
            float(tokens[best]), float(seconds[best]), best % self._window.shape[1], taken[:, best], lookup - 1
        )

    def _outcomes(self, taken: Ints, without: Array) -> tuple[Array, Array]:
        """[2 (C + 1)] tokens and seconds of the steps in which rows take so many [R, 2 (C + 1)] tokens of every offer, and
        what they look up, [4, R], where they take none."""
        rows, alone = len(taken), taken == 0
        place = self._columns + taken
        accepted = self._accepted.reshape(rows, -1)[self._rows[:, None], place]
        offered, squares = self._offered.reshape(2, -1)[:, place]
        tokens = rows + np.where(alone, without[0][:, None], accepted).sum(axis=0)
        mean = np.where(alone, without[1][:, None], offered).sum(axis=0)
        variance = np.where(alone, without[2][:, None], squares - offered**2).sum(axis=0)
        users = rows - alone.sum(axis=0)
        one, others, catch_up = self._seconds
        draft = one + others * (users - 1) / max(1, rows - 1) + tokens * catch_up * users / rows
        lookups = without[3] @ alone
        fixed = self._estimates.overhead + lookups + self._estimates.batch_seconds(mean, variance)
        return tokens, fixed + np.where(users > 0, draft, 0.0)
