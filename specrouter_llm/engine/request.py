"""A request inside the engine, and its samples from waiting to finished."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from specrouter_llm.engine.handle import Mailbox
from specrouter_llm.errors import RequestFailedError
from specrouter_llm.sampling.constraint import Constraint, Progress
from specrouter_llm.sampling.logprobs import token_logprobs
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Reasons
from specrouter_llm.state.row import Row
from specrouter_llm.structured.constraint import RowConstraint
from specrouter_llm.structured.grammar import Grammar
from specrouter_llm.text.stream import TextStream
from specrouter_llm.types import (
    Completion,
    Delta,
    FinishReason,
    Guarantee,
    Route,
    SpeculationStats,
    StageStats,
    StepInfo,
    Timings,
    TokenLogprob,
    Usage,
)


@dataclass(slots=True, eq=False)
class Request:
    """What the caller asked for, encoded and checked."""

    prompt_index: int
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    plan: Plan | None
    """The chain that the caller forces; None leaves it to the policy."""
    draft_sources: Sequence[Sequence[int]]
    bad_words: Sequence[Sequence[int]]
    end_ids: frozenset[int]
    """Tokens that end the text: end-of-sequence unless ignored, and the caller's stop tokens."""
    eos_ids: frozenset[int]
    max_length: int
    """Prompt and output tokens together."""
    timeout: float | None
    """Seconds from when it is queued."""
    on_step: Callable[[StepInfo], None] | None
    grammar: Grammar | None = None
    """What the output has to satisfy."""
    keep_special_tokens: tuple[str, ...] = ()
    """Special tokens that are part of the text; all others have none."""
    mailbox: Mailbox[Delta | Completion] = field(default_factory=Mailbox)
    submitted: float = 0.0
    """When it was queued, on the monotonic clock."""
    deadline: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def max_output(self) -> int:
        """Tokens that a sample may have."""
        return min(self.params.max_tokens, self.max_length - len(self.prompt_ids))

    def queued(self, worker: threading.Thread) -> None:
        """It waits for this worker from now on."""
        self.mailbox.writer, self.submitted = worker, time.monotonic()
        self.deadline = self.submitted + self.timeout if self.timeout is not None else None

    def constraint(self) -> Constraint | None:
        """The grammar for one sample."""
        return None if self.grammar is None else RowConstraint(self.grammar, self.end_ids, self.max_output)


class Sample:
    """One of a request's n samples."""

    def __init__(self, request: Request, index: int, stream: TextStream) -> None:
        self.request = request
        self.index = index
        self.row: Row | None = None
        """Set while the sample owns a slot."""
        self.cached_tokens = 0
        self._stream = stream
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._token_ids: list[int] = []
        self._admitted: float | None = None
        self._first_token: float | None = None
        self._last_token: float | None = None
        self.finish_reason: FinishReason | None = None
        self._stop_reason: str | int | None = None
        self._error: Exception | None = None

    # ---------------------------------------------------------------- progress

    def admit(self, row: Row, cached_tokens: int) -> None:
        self.row = row
        self.cached_tokens = cached_tokens
        self._admitted = time.monotonic()

    @property
    def started(self) -> bool:
        """Whether a token has been committed."""
        return bool(self._token_ids)

    def accept(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
        """Takes tokens one by one until one ends the text; returns those taken and the text they release.

        Text that nobody is going to read before the completion is made then, all at once.
        """
        taken: list[int] = []
        pieces: list[str] = []
        constraint = self.row.sampler.constraint if self.row is not None else None
        most = self.request.max_output
        for token_id in token_ids:
            taken.append(token_id)
            self._token_ids.append(token_id)
            pieces.append(self._advance(token_id, most, constraint.progress(taken) if constraint is not None else None))
            if self.finish_reason is not None:
                break
        now = time.monotonic()
        self._first_token = self._first_token if self._first_token is not None else now
        self._last_token = now
        if self.request.mailbox.is_awaited(Delta):
            pieces.append(self._stream.release())
        return taken, "".join(pieces)

    def _advance(self, token_id: int, most: int, progress: Progress | None) -> str:
        """The text that the last of the tokens, of `most`, releases; sets the finish reason if it ends the text. `progress` is
        where the output stands with regard to its grammar, if it has one."""
        request, length = self.request, len(self._token_ids)
        may_stop = length > request.params.min_tokens
        if progress is Progress.CLOSED or (progress is None and token_id in request.end_ids and may_stop):
            self.finish_reason = FinishReason.STOP
            self._stop_reason = None if token_id in request.eos_ids else token_id
            return ""
        inside = progress not in (None, Progress.FREE)
        text, stop = self._stream.push(token_id, check_stops=not inside and length >= request.params.min_tokens)
        if stop is not None:
            self.finish_reason, self._stop_reason = FinishReason.STOP, stop
        elif progress is Progress.COMPLETE or (progress is Progress.VALID and length >= most):
            self.finish_reason = FinishReason.STOP
        elif length >= most:
            self.finish_reason = FinishReason.LENGTH
        return text

    def emit(self, taken: Sequence[int], text: str, logprobs: Sequence[TokenLogprob] | None) -> None:
        """Delivers what a step made final; the rest of the text with the last piece."""
        if self.finish_reason is not None:
            text += self._rest()
        self._text.append(text)
        if logprobs is not None:
            self._logprobs.extend(logprobs)
        values = tuple(logprobs) if logprobs is not None else None
        self.request.mailbox.put(Delta(self.index, text, tuple(taken), values, self.finish_reason))

    def _rest(self) -> str:
        """Text held back for a stop string or a character that never came. It may turn out to hold a stop string."""
        text = self._stream.finish()
        if self._stream.hit is not None and self.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.finish_reason, self._stop_reason = FinishReason.STOP, self._stream.hit
        return text

    # ---------------------------------------------------------------- the end

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends a sample from outside: cancelled, timed out or failed. What was held back is delivered, if it can be had."""
        self.finish_reason, self._error = reason, error
        try:
            self.emit((), "", None)
        except Exception as broken:  # whoever waits must be told of the end all the same
            self.finish_reason = FinishReason.ERROR
            self._error = error or RequestFailedError(f"the rest of the text cannot be had: {broken}")
            self.request.mailbox.put(Delta(self.index, "", (), None, self.finish_reason))

    def completion(self, guarantee: Guarantee, order: Sequence[str], reasons: Reasons) -> Completion:
        """The finished sample; `order` names all levels, lowest first and the target last."""
        params, tokens = self.request.params, tuple(self._token_ids)
        return Completion(
            prompt_index=self.request.prompt_index,
            index=self.index,
            text="".join(self._text),
            token_ids=tokens,
            finish_reason=self.finish_reason or FinishReason.ERROR,
            stop_reason=self._stop_reason,
            seed=self.request.seed,
            guarantee=guarantee,
            usage=Usage(len(self.request.prompt_ids), len(tokens), self.cached_tokens),
            stats=_speculation(self.row, order, len(tokens), reasons),
            timings=self._timings(),
            logprobs=tuple(self._logprobs) if params.logprobs else None,
            error=self._error,
        )

    def logprobs_of(self, taken: Sequence[int], logits: Tensor | None) -> list[TokenLogprob] | None:
        """Raw log-probabilities of tokens just taken, if the request wants them."""
        if not self.request.params.logprobs or logits is None:
            return None
        return token_logprobs(logits, taken, self.request.params.top_logprobs)

    def _timings(self) -> Timings:
        submitted, now = self.request.submitted, time.monotonic()
        admitted = self._admitted if self._admitted is not None else now
        first = self._first_token if self._first_token is not None else now
        last = self._last_token if self._last_token is not None else first
        decode, later = last - first, len(self._token_ids) - 1
        return Timings(
            queue_s=admitted - submitted,
            prefill_s=max(0.0, first - admitted),
            decode_s=decode,
            time_to_first_token_s=first - submitted,
            tokens_per_second=later / decode if decode > 0 and later > 0 else 0.0,
        )


def _route(row: Row, reasons: Reasons) -> Route:
    return Route(
        legs=tuple(sorted(row.legs.values(), key=lambda leg: -leg.tokens)),
        switches=reasons.switches,
        candidates=reasons.candidates,
        predicted_seconds_per_token=reasons.predicted_seconds_per_token,
    )


def _speculation(row: Row | None, order: Sequence[str], committed: int, reasons: Reasons) -> SpeculationStats:
    """The counters of a row under vLLM's names."""
    target = order[-1]
    if row is None:
        return SpeculationStats(0, 0, 0, 0, (), 0, 0, (StageStats(target, "target", 0, 0),))
    lengths = row.accepted_lengths
    used = [name for name in order[:-1] if row.proposed[name]]
    stages = [
        StageStats(name, "middle" if i else "draft", row.proposed[name], row.accepted[name])
        for i, name in enumerate(used)
    ]
    return SpeculationStats(
        num_draft_tokens=row.num_draft_tokens,
        num_accepted_draft_tokens=sum(n * count for n, count in lengths.items()),
        num_spec_steps=sum(lengths.values()),
        num_spec_tokens=row.max_proposal,
        acceptance_histogram=tuple(lengths[n] for n in range(max(lengths) + 1)) if lengths else (),
        num_target_steps=row.num_steps,
        num_committed_tokens=committed,
        chain=(*stages, StageStats(target, "target", committed, committed)),
        fallback="; ".join(f"{name}: {reason}" for name, reason in row.set_aside.items()) or None,
        route=_route(row, reasons),
    )
