"""Frozen values that cross the borders between rooms: what a caller gets back, and what callbacks see.

The field names of the speculation statistics are vLLM's, so that existing dashboards read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ChatMessage: TypeAlias = "dict[str, Any]"
Prompt: TypeAlias = "str | list[int] | list[ChatMessage]"

Guarantee: TypeAlias = Literal["bitwise", "near-tie"]
"""What "the same tokens" rests on: equal bits of the logits, or equality up to near-ties of the target's choice."""


class PackingBytes(NamedTuple):
    """What a runner that packs weights takes beside a model's own."""

    copies: int = 0
    """Packed weights whose plain ones stay."""
    kernels: frozenset[tuple[int, int, int]] = frozenset()
    """(in, out, bytes): what the library keeps for good for each shape of matrix; models with equal ones share it."""


NO_PACKING = PackingBytes()


class Packing(Protocol):
    """Says what runners that pack weights will take."""

    def __call__(self, model: PreTrainedModel, keep: bool, dtype: torch.dtype) -> PackingBytes | None:
        """For a model, on `meta` if need be, whose caller keeps it or not, to be computed with in `dtype`.

        None if its weights, being of another dtype, cannot be computed with in this one.
        """


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """An end-of-sequence token, a stop token id or a stop string."""
    LENGTH = "length"
    """`max_tokens` or the end of the context."""
    CANCELLED = "cancelled"
    """The caller cancelled, dropped the iterator or closed the engine."""
    TIMEOUT = "timeout"
    """The deadline of the request passed; what was produced is kept."""
    ERROR = "error"
    """The request failed; `Completion.error` says how, what was produced is kept."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one committed token under the target's raw distribution (before any processing, T = 1)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The `top_logprobs` most likely (token id, logprob) pairs, most likely first."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one completion."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values the target reused from an earlier request."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class StageStats:
    """What one member of the chain did for a request."""

    model: str
    role: Literal["draft", "middle", "target"]
    proposed: int
    """Tokens offered to the level above; for the target, tokens committed."""
    accepted: int
    """Tokens of those that the level above kept; for the target, tokens committed."""


@dataclass(frozen=True, slots=True)
class RouteLeg:
    """All steps that a completion took with one chain, its prefill aside."""

    levels: tuple[str, ...]
    """Lowest first, the target last."""
    steps: int
    tokens: int
    """Committed."""
    seconds: float
    """Duration of these steps; other rows of the batch share them."""


@dataclass(frozen=True, slots=True)
class RouteSwitch:
    """A change of chain that the policy decided on while the completion was running."""

    at_token: int
    """Tokens of the completion that had been committed."""
    before: tuple[str, ...]
    after: tuple[str, ...]
    reason: str
    predicted_gain: float
    """1 - predicted time per token after / before, of the whole batch."""


@dataclass(frozen=True, slots=True)
class RouteCandidate:
    """A chain that the policy considered in its last search."""

    levels: tuple[str, ...]
    windows: tuple[int, ...]
    predicted_seconds_per_token: float
    """All rows of the batch together."""
    lookup_first: bool = False
    """Whether the lowest level offers to the target itself, and the others draft only where it finds nothing."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a completion was decoded, and why."""

    legs: tuple[RouteLeg, ...]
    """One per chain, most tokens first."""
    switches: tuple[RouteSwitch, ...] = ()
    candidates: tuple[RouteCandidate, ...] = ()
    """Best first, as the policy saw them when the completion ended; empty with a forced chain or a fixed policy."""
    predicted_seconds_per_token: float | None = None
    """Of the chain in use at the end, all rows of the batch together."""

    @property
    def steps(self) -> int:
        return sum(leg.steps for leg in self.legs)

    @property
    def tokens(self) -> int:
        return sum(leg.tokens for leg in self.legs)

    @property
    def measured_seconds_per_token(self) -> float | None:
        """Duration of the steps by tokens committed; a step's duration is shared with the other rows."""
        return sum(leg.seconds for leg in self.legs) / self.tokens if self.tokens else None


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """Speculative decoding of one completion, counted at the target (field names as in vLLM)."""

    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_spec_steps: int
    """Target forwards that verified at least one drafted token."""
    num_spec_tokens: int
    """The longest proposal that was verified."""
    acceptance_histogram: tuple[int, ...]
    """`[n]` counts the speculative steps in which exactly n drafted tokens were accepted."""
    num_target_steps: int
    """Target forwards that committed tokens, speculative or not."""
    num_committed_tokens: int
    chain: tuple[StageStats, ...]
    """Every member that took part, lowest level first, the target last."""
    fallback: str | None = None
    """Why a member was set aside, if one was."""
    route: Route = Route(())

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted / drafted. Describes the work done; biased as an estimate of the match rate (trials are censored)."""
        return self.num_accepted_draft_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens committed per target forward, the bonus or recovered token included."""
        return self.num_committed_tokens / self.num_target_steps if self.num_target_steps else 0.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds on the wall clock, from submission."""

    queue_s: float
    prefill_s: float
    """From admission to the first committed token."""
    decode_s: float
    """From the first committed token to the last."""
    time_to_first_token_s: float
    tokens_per_second: float
    """Completion tokens after the first, per second of decoding."""


@dataclass(frozen=True, slots=True)
class LevelStep:
    """One level's share of one step of one row."""

    model: str
    drafted: int
    """Tokens this level offered to the level above."""
    accepted: int
    """Tokens of those that the level above kept."""


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What `on_step` callbacks see after each step of their row."""

    sample_index: int
    chain: tuple[str, ...]
    """Names of the levels used in this step, lowest first, the target last."""
    levels: tuple[LevelStep, ...]
    """One entry for every level below the target, lowest first."""
    committed: tuple[int, ...]
    """Token ids that this step committed for this row."""
    seconds: float
    """Duration of the step, shared with the other rows of the batch."""
    seconds_per_level: tuple[tuple[str, float], ...]
    """Time within the step spent in each level, shared with the batch."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed completion: all that one step made final."""

    index: int
    """Which of the request's n samples this belongs to."""
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    """Set on the last delta of a sample."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample of one prompt."""

    prompt_index: int
    """Position of the prompt in the call's list of prompts."""
    index: int
    """Position of the sample among the n of its prompt."""
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    """The stop string, or the stop token id, that ended the text."""
    seed: int
    """The seed that was used: the caller's, or the one drawn for this request."""
    guarantee: Guarantee
    usage: Usage
    stats: SpeculationStats
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: Exception | None = field(default=None, compare=False)

    def raise_for_error(self) -> Completion:
        """Return self, or raise the error that ended this completion."""
        if self.error is not None:
            raise self.error
        return self
