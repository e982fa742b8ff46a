"""The VerifyProcessor: one ragged forward of a level over [catch-up + proposal], then the choice rule.

Terms as in vLLM: *accepted* tokens equal the verifier's own choices; the *recovered* token is its choice at the first
mismatch, the *bonus* token its choice after a proposal that was accepted whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specrouter_llm.errors import ModelFailure
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.sampling.choice import Segment, choose
from specrouter_llm.scheduling.evidence import num_scored
from specrouter_llm.scheduling.policy import Forward, Score
from specrouter_llm.state.manager import StateManager, common_prefix
from specrouter_llm.state.row import Row
from specrouter_llm.verification.ahead import ForwardAhead


@dataclass(frozen=True, slots=True)
class Verification:
    """What a level makes of one proposal."""

    token_ids: list[int]
    """Accepted tokens and one of the level's own. Without the latter if its logits there were broken; see `failed`."""
    num_proposed: int
    """Tokens of the proposal that were put to the test."""
    num_accepted: int
    failed: bool = False
    """The level's logits held NaN or nothing finite where its first choice had to be made."""
    logits: Tensor | None = None
    """[num_proposed + 1, V], the raw logits behind the choices; kept on request."""
    score: Score | None = None
    """How the level's choices agree with the committed tokens that it lacked, if it had to catch up with some."""


@dataclass(frozen=True, slots=True)
class _Test:
    """What one row puts to a level."""

    row: Row
    hypothesis: Sequence[int]
    proposal: Sequence[int]
    scored: int
    """Committed tokens whose choice is asked for too."""

    @property
    def context(self) -> list[int]:
        return [*self.hypothesis, *self.proposal]

    @property
    def count(self) -> int:
        """Choices to be made."""
        return self.scored + len(self.proposal) + 1

    def segment(self) -> Segment:
        position = len(self.row.token_ids) + len(self.hypothesis) - self.scored
        return Segment(self.row.sampler, position, self.context, self.count)

    def score(self, level: str, choices: Sequence[int | None]) -> Score:
        committed = self.row.token_ids[-self.scored :]
        return Score(level, self.scored, sum(a == b for a, b in zip(choices, committed, strict=False)))


class VerifyProcessor:
    """Runs one level over the proposals of the level below it."""

    def __init__(self, state: StateManager, runners: Mapping[str, Runner]) -> None:
        self._state = state
        self._runners = dict(runners)
        self._ahead = ForwardAhead(runners)

    def verify(
        self,
        model: str,
        rows: Sequence[Row],
        hypotheses: Sequence[Sequence[int]],
        proposals: Sequence[Sequence[int]],
        *,
        log: list[Forward],
        keep_logits: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Verification]:
        """Verifies proposals[r] after row.token_ids + hypotheses[r], all rows in one forward, which is added to `log`.

        `meanwhile`, which a step's last forward has, is called when all is launched and nothing waited for; the next step's
        forward may be launched by then too.

        Raises:
            ModelFailure: the forward, or a choice, raised; the lengths of all models are the caller's to restore.
        """
        started = time.perf_counter()
        tests = [self._test(model, len(rows), *each) for each in zip(rows, hypotheses, proposals, strict=True)]
        spans = [self._state.span(model, test.row.slot, test.context, test.count) for test in tests]
        begun, dropped = self._ahead.take(model, rows, spans) if meanwhile is not None else (None, False)
        logits = self._forward(model, spans, begun)
        blocks = logits.split([test.count for test in tests]) if keep_logits else [None] * len(rows)
        try:
            chosen = self._choose(model, rows, spans, logits, [test.segment() for test in tests], meanwhile)
        except Exception as error:  # of one row's grammar, penalties or noise: the others go on without it
            raise ModelFailure(model, error) from error
        verified = []
        for test, choices, block in zip(tests, chosen, blocks, strict=True):
            score = test.score(model, choices) if test.scored else None
            verified.append(_accept(test.proposal, choices[test.scored :], block, score))
        fed, context = [len(span.token_ids) for span in spans], sum(span.end for span in spans)
        seconds = time.perf_counter() - started
        log.append(Forward(model, len(rows), sum(fed), context, seconds, longest=max(fed), shifted=begun is not None))
        if dropped and begun is None:
            self._shift_first(log)
        return verified

    def _choose(
        self,
        model: str,
        rows: Sequence[Row],
        spans: Sequence[Span],
        logits: Tensor,
        segments: Sequence[Segment],
        meanwhile: Callable[[], None] | None,
    ) -> list[list[int | None]]:
        """The choices; in a step's last forward with what there is to do meanwhile, the next step's forward first."""
        if meanwhile is None:
            return choose(logits, segments)
        if not self._ahead.follows(model, rows, spans):
            meanwhile()
            return choose(logits, segments)

        def waiting(ids: Tensor) -> None:
            self._ahead.begin(model, spans, ids)
            meanwhile()

        return choose(logits, segments, waiting)

    def _shift_first(self, log: list[Forward]) -> None:
        """What this step has run first on the device has waited for the forward that was begun in vain: all of it, if it was
        a loop."""
        first = next(i for i, forward in enumerate(log) if forward.level in self._runners)
        begun = log[first]
        log[first] = begun._replace(shifted=True)
        if begun.looped and (later := log[first + 1]).looped and later.level == begun.level:  # its other turns
            log[first + 1] = later._replace(shifted=True)

    def fits(self, model: str, row: Row, hypothesis: Sequence[int]) -> bool:
        """Whether the model can take in the row with this hypothesis: its context is long enough, its vocabulary wide."""
        runner = self._runners[model]
        known = all(token_id < runner.vocab_size for token_id in hypothesis)
        return known and len(row.token_ids) + len(hypothesis) <= runner.context_length

    def prefill(self, model: str, slots: Sequence[int], max_tokens: int) -> int:
        """Feeds the next committed tokens of some slots, at most `max_tokens` in all; returns how many were fed.

        They have been when it returns: a device takes any number of chunks at once, and what comes would wait behind all.

        Raises:
            ModelFailure: the forward raised; the lengths are as before.
        """
        spans: list[Span] = []
        left = max_tokens
        for slot in slots:
            span = self._state.prefill_span(model, slot, left)
            if span.token_ids:
                spans.append(span)
                left -= len(span.token_ids)
            if left <= 0:
                break
        if spans:
            self._forward(model, spans, to_the_end=True)
        return max_tokens - left

    def _test(self, model: str, num_rows: int, row: Row, hypothesis: Sequence[int], proposal: Sequence[int]) -> _Test:
        fitting = self._fitting(self._runners[model], row, hypothesis, proposal)
        return _Test(row, hypothesis, fitting, 0 if hypothesis else self._num_scored(model, row, num_rows))

    def _num_scored(self, model: str, row: Row, num_rows: int) -> int:
        """Committed output tokens that the model lacks and whose choice it is asked for in passing. None while what a
        choice depends on beside the logits has moved on since."""
        if row.sampler.contextual:
            return 0
        known = max(self._state.num_valid(model, row.slot), row.num_prompt_tokens - 1)
        return num_scored(len(row.token_ids) - 1 - known, num_rows, sampled=row.sampler.params.temperature > 0)

    def _forward(
        self, model: str, spans: Sequence[Span], begun: Tensor | None = None, *, to_the_end: bool = False
    ) -> Tensor:
        """Logits of the spans: those that are `begun` already, if any; `to_the_end` waits until a device has them."""
        try:
            logits = self._runners[model].forward(spans) if begun is None else begun
            if to_the_end:
                wait_for(logits)
        except Exception as error:
            raise ModelFailure(model, error) from error
        for span in spans:
            self._state.wrote(model, span)
        return logits

    @staticmethod
    def _fitting(runner: Runner, row: Row, hypothesis: Sequence[int], proposal: Sequence[int]) -> Sequence[int]:
        """The proposal up to the first token that the model does not know, and within its context."""
        room = runner.context_length - len(row.token_ids) - len(hypothesis)
        size = next((i for i, token_id in enumerate(proposal) if not 0 <= token_id < runner.vocab_size), len(proposal))
        return proposal[: max(0, min(size, room))]


def wait_for(logits: Tensor) -> None:
    """Until a device has done all that was begun so far."""
    if logits.is_cuda:
        torch.cuda.current_stream(logits.device).synchronize()


def _accept(
    proposal: Sequence[int], choices: Sequence[int | None], logits: Tensor | None, score: Score | None
) -> Verification:
    """The longest prefix of the proposal that equals the level's own choices, plus its next choice.

    Only choices up to the first mismatch count: what a level would say after tokens that it rejects may be anything, NaN
    included. If the next choice is broken the accepted tokens stand alone, and the next step will fail as plain decoding
    fails there.
    """
    accepted = common_prefix(proposal, choices)
    own = choices[accepted]
    tokens = [*proposal[:accepted], *([own] if own is not None else [])]
    return Verification(tokens, len(proposal), accepted, failed=not tokens, logits=logits, score=score)
