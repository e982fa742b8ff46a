"""What a runner is asked to run: for every row, which tokens go to which positions of which slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one row: fed at positions start .. end of its slot, over what the slot holds before start."""

    slot: int
    start: int
    token_ids: Sequence[int]
    num_logits: int
    """Logits are wanted for the last num_logits tokens (0 in the middle of a prompt)."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)
