"""One row's life in the engine: where it lies, what it has committed, what was set aside, what was counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.types import RouteLeg


@dataclass(slots=True, eq=False)
class Row:
    """One sample of one request, from admission to its end."""

    slot: int
    token_ids: list[int]
    """Committed tokens, prompt first: the StateManager's own list of the slot."""
    num_prompt_tokens: int
    sampler: RowSampler
    max_length: int
    """Committed tokens at which the row must end."""
    end_ids: Collection[int] = ()
    """Tokens that end the row; a draft is not continued past one."""
    draft_sources: Sequence[Sequence[int]] = ()
    """Documents, tool outputs and predictions that model-free drafters may copy from."""
    set_aside: dict[str, str] = field(default_factory=dict)
    """Levels that this row no longer uses, with the reason."""
    scratch: dict[str, Any] = field(default_factory=dict)
    """What model-free drafters keep about this row, by drafter name."""
    proposed: Counter[str] = field(default_factory=Counter)
    """Tokens that each level offered to the level above it."""
    accepted: Counter[str] = field(default_factory=Counter)
    """Tokens of those that the level above kept."""
    accepted_lengths: Counter[int] = field(default_factory=Counter)
    """Speculative target steps by number of accepted tokens."""
    num_draft_tokens: int = 0
    """Tokens that the target verified."""
    max_proposal: int = 0
    """The longest proposal among them."""
    num_steps: int = 0
    legs: dict[tuple[str, ...], RouteLeg] = field(default_factory=dict)
    """What each chain did for the row so far."""
    row_id: int = 0
    """Unique within the engine."""
    max_token_id: int = field(init=False)

    def __post_init__(self) -> None:
        self.max_token_id = max(self.token_ids)

    @property
    def remaining(self) -> int:
        """Tokens that may still be committed."""
        return self.max_length - len(self.token_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    def commit(self, token_ids: Sequence[int]) -> None:
        """Tokens became final (the StateManager has already appended them to `token_ids`)."""
        self.max_token_id = max(self.max_token_id, max(token_ids, default=0))
        self.sampler.commit(token_ids)
        self.num_steps += 1

    def travel(self, levels: tuple[str, ...], committed: int, seconds: float) -> None:
        """One step with one chain."""
        before = self.legs.get(levels)
        steps, tokens, spent = (before.steps, before.tokens, before.seconds) if before is not None else (0, 0, 0.0)
        self.legs[levels] = RouteLeg(levels, steps + 1, tokens + committed, spent + seconds)

    def count(self, level: str, proposed: int, accepted: int, *, final: bool) -> None:
        """One verification of a proposal of `level` by the level above it; `final` if that is the target."""
        self.proposed[level] += proposed
        self.accepted[level] += accepted
        if final:
            self.num_draft_tokens += proposed
            self.accepted_lengths[accepted] += 1
            self.max_proposal = max(self.max_proposal, proposed)
