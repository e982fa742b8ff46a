"""What a step says about levels that the target did not verify itself: their proposals, held against what it committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from specrouter_llm.scheduling.policy import Score


class InnerProposal(NamedTuple):
    """Tokens that a level proposed to a middle level right behind the committed ones.

    Not those behind a hypothesis: where one came true the text is easy, and a level would seem better than it is.
    """

    level: str
    token_ids: Sequence[int]


def scores_of(proposals: Iterable[InnerProposal], committed: Sequence[int]) -> tuple[Score, ...]:
    """How often the levels would have been right had they drafted for the target: each token up to the first wrong one.

    Where the known part ends, after `committed`, does not depend on what a level says there, so no count is biased.
    """
    found = []
    for level, token_ids in proposals:
        known = committed[: len(token_ids)]
        matched = next((i for i, (a, b) in enumerate(zip(token_ids, known, strict=False)) if a != b), len(known))
        if known:
            found.append(Score(level, matched + (matched < len(known)), matched))
    return tuple(found)
