"""Agreement: how often the target accepts what two levels agree on.

A middle level offers what it has accepted from the level below it and now and then a token of its own. Where two levels
agree they are right more often than either of them is. With a and b the shares of places in which they are right, and c in
which they agree, both are right in a b of all places if their mistakes are independent, and at most in min(a, b, c). Over
c, and no less than b, that is the prior: of levels that nobody has seen it says nothing. What was counted outweighs it.
Where the middle level does not agree it is right as often as makes its rate b altogether.
"""

from __future__ import annotations

import numpy as np

from specrouter_llm.scheduling.counts import Array, Counts, Memory

STRENGTH = 12.0
"""Trials that the prior is worth."""


class Agreement:
    """Counts of tokens that a middle level had accepted from a lower one, held against what the target committed."""

    def __init__(self, num_lower: int, num_models: int, num_lookups: int, memory: Memory) -> None:
        self._num_lookups = num_lookups
        self.counts = Counts((num_lower, num_models - 1), memory)

    def rates(self, pairs: Array) -> Array:
        """[L, M - 1] chance that the target accepts a token of the lower level that the middle one has accepted.

        Args:
            pairs: [L, M] alpha of each lower level to each model, the target last.
        """
        lower, agree = pairs[:, -1:], pairs[:, :-1]
        middle = pairs[None, self._num_lookups :, -1]
        most = np.minimum(np.minimum(lower, middle), agree)
        prior = np.minimum(np.maximum(lower * middle / agree, middle), most / agree)
        rates = (self.counts.hits + STRENGTH * prior) / (self.counts.total + STRENGTH)
        least = (middle + agree - 1) / agree  # else it would have to be right more than always where they do not agree
        return np.asarray(np.minimum(np.maximum(rates, least), np.minimum(middle / agree, 1.0)))
