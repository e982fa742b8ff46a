"""What a runner is asked to run: for every row, which tokens go to which positions of which slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


def packed_inputs(spans: Sequence[Span], device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [N], their positions [N], and the indices [sum of num_logits] whose logits are wanted, in span order."""
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for span in spans:
        ids.extend(span.token_ids)
        positions.extend(range(span.start, span.end))
        wanted.extend(range(len(ids) - span.num_logits, len(ids)))
    fed = torch.tensor([ids, positions], dtype=torch.long, device=device)
    return fed[0], fed[1], torch.tensor(wanted, dtype=torch.long, device=device)
