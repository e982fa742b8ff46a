"""What a step says about levels that the target did not verify itself: their proposals, held against what it committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from specrouter_llm.scheduling.policy import Score


class InnerProposal(NamedTuple):
    """Tokens that a level proposed to a middle level, behind a hypothesis of the step."""

    level: str
    hypothesis: Sequence[int]
    token_ids: Sequence[int]


def scores_of(proposals: Iterable[InnerProposal], committed: Sequence[int]) -> tuple[Score, ...]:
    """How often the levels would have been right had they drafted for the target, as far as it is known.

    A proposal counts if its hypothesis came true, and each of its tokens up to the first that did not. Where the known part
    ends does not depend on what the level says there, so no count is biased.
    """
    found = []
    for level, hypothesis, token_ids in proposals:
        start = len(hypothesis)
        if list(hypothesis) != list(committed[:start]):
            continue
        known = committed[start : start + len(token_ids)]
        matched = next((i for i, (a, b) in enumerate(zip(token_ids, known, strict=False)) if a != b), len(known))
        if known:
            found.append(Score(level, matched + (matched < len(known)), matched))
    return tuple(found)
