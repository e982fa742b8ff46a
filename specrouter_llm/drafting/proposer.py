"""What a model-free drafter is. Any proposer is lossless: the target's choices are what is committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from specrouter_llm.state.row import Row


@runtime_checkable
class Proposer(Protocol):
    """Proposes tokens from what is already there. Must not modify the row, but for its own entry of `row.scratch`."""

    name: str

    def propose(self, row: Row, hypothesis: Sequence[int], max_tokens: int) -> Sequence[int]:
        """At most `max_tokens` tokens to follow row.token_ids + hypothesis; none is a legal answer.

        May raise: the drafter is then set aside for the row, and the answer goes on.
        """
        ...
