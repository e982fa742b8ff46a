"""Evidence of how alike levels are: proposals that were verified, and choices of levels that the target did not verify, held
against what it committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from specrouter_llm.scheduling.policy import Score, Trial

LEAST_SCORED = 3
"""Tokens that a level which catches up is scored on at least: two may be its own last proposal, which was accepted, and the
token behind it."""
MOST_SCORED, MOST_OF_EACH = 32, 8
"""At most: over all rows where they are few; of each row of a batch, and where a choice needs noise for a whole vocabulary."""


def num_scored(missed: int, num_rows: int, *, sampled: bool) -> int:
    """How many of the output tokens that a level missed it is asked about while it catches up with `num_rows` rows.

    They are known, so they cost no step and are not censored: the best evidence of how alike two models are.
    """
    most = MOST_OF_EACH if sampled else max(MOST_OF_EACH, MOST_SCORED // num_rows)
    return min(missed, most) if missed >= LEAST_SCORED else 0


ASIDE_WINDOW = 8
"""Tokens that a model-free level is asked for beside what a row runs: a step rarely commits more."""


class InnerProposal(NamedTuple):
    """Tokens that a level proposed to a middle level right behind the committed ones, or beside what the row ran.

    Not those behind a hypothesis: where one came true the text is easy, and a level would seem better than it is.
    """

    level: str
    token_ids: Sequence[int]
    upper: str = ""
    accepted: int = 0
    """Tokens that the middle level would have chosen, too."""


def scores_of(proposals: Iterable[InnerProposal], committed: Sequence[int]) -> tuple[Score, ...]:
    """How often the levels would have been right had they drafted for the target: each token up to the first wrong one;
    and the same of those that the middle level agreed on.

    Where the known part ends, after `committed`, does not depend on what a level says there, so no count is biased.
    """
    found = []
    for level, token_ids, upper, accepted in proposals:
        for some, agreed in ((token_ids, ""), (token_ids[:accepted], upper)):
            known = committed[: len(some)]
            matched = next((i for i, (a, b) in enumerate(zip(some, known, strict=False)) if a != b), len(known))
            if known:
                found.append(Score(level, matched + (matched < len(known)), matched, agreed))
    return tuple(found)


class Matches(NamedTuple):
    """How often one level's tokens were another's choices, in proposals that were verified."""

    lower: str
    upper: str
    first: tuple[int, int]
    """Accepted tokens and first rejections in the first place of a proposal,"""
    others: tuple[int, int]
    """and behind accepted ones."""

    @property
    def together(self) -> tuple[str, str, int, int]:
        """(lower, upper, accepted tokens, first rejections), wherever."""
        return self.lower, self.upper, self.first[0] + self.others[0], self.first[1] + self.others[1]


def matches_of(trials: Sequence[Trial]) -> list[Matches]:
    """Of each pair of levels in these trials."""
    merged: dict[tuple[str, str], list[int]] = {}
    for trial in trials:
        if trial.proposed > 0:
            found = merged.setdefault((trial.lower, trial.upper), [0, 0, 0, 0])
            found[not trial.accepted] += 1
            found[2] += max(trial.accepted - 1, 0)
            found[3] += 0 < trial.accepted < trial.proposed
    return [Matches(*pair, (a, b), (c, d)) for pair, (a, b, c, d) in merged.items()]
