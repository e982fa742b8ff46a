"""What the choice rule needs to know about a grammar; `structured/` holds the machinery behind it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from torch import Tensor


class Progress(Enum):
    """Where a row's output stands with regard to its grammar."""

    FREE = "free"
    """Before the grammar begins: any text."""
    OPEN = "open"
    """More has to follow."""
    VALID = "valid"
    """The output may end here, or go on."""
    COMPLETE = "complete"
    """The output satisfies the grammar and nothing may follow: it ends here."""
    CLOSED = "closed"
    """The last token ended the output."""
    DEAD = "dead"
    """No legal output: a token that the grammar forbids, or one that cannot be closed within the budget."""


LIVE = frozenset({Progress.FREE, Progress.OPEN, Progress.VALID})
"""The output goes on."""
ENDED = frozenset({Progress.COMPLETE, Progress.CLOSED})
"""The output has ended well."""


class Constraint(Protocol):
    """A row's grammar: pure functions of (parameters, committed output + hypothesis)."""

    def progress(self, hypothesis: Sequence[int]) -> Progress:
        """Where the output stands after committed + hypothesis."""
        ...

    def allowed(self, hypothesis: Sequence[int]) -> Tensor | None:
        """Mask, bool [V] on the CPU, of the tokens that may follow; None where anything may, or nothing is to follow."""
        ...

    def fitting(self, hypothesis: Sequence[int], token_id: int) -> int:
        """The token, or the next one of a way to close the output if it could not be closed in time after the token."""
        ...

    def draft(self, hypothesis: Sequence[int], proposal: Sequence[int], max_tokens: int) -> list[int]:
        """The legal beginning of a proposal, and then tokens that the grammar leaves no choice about."""
        ...

    def commit(self, token_ids: Sequence[int]) -> None:
        """Tokens became final."""
        ...
