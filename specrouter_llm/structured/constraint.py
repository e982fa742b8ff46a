"""One row's grammar: what may follow, and how the output is closed within its budget.

Everything is a function of (grammar, budget, committed output + hypothesis). Each context has a *closing*: tokens that
satisfy the grammar from there, no more than the budget leaves. It is defined along the output: after the first token of
a context's closing it is the rest; else the shortest end of the old one that is still valid; else it is searched anew.
A token after which no closing fits is as illegal as one that the grammar forbids, so an output can always be closed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specrouter_llm.sampling.constraint import ENDED, LIVE, Progress
from specrouter_llm.structured.grammar import Grammar
from specrouter_llm.structured.matcher import MatcherError

_SKIPPED = 8
"""How much of a closing the output may have made superfluous with one token; more means a new search."""


@dataclass(frozen=True, slots=True)
class _State:
    """Where the output stands after some context."""

    progress: Progress
    closing: tuple[int, ...] = ()
    mask: bytes = b""
    tail: bytes | None = None
    """The end of the free text; None if the grammar has begun."""


_DEAD = _State(Progress.DEAD)
_CLOSED = _State(Progress.CLOSED)


class RowConstraint:
    """The `Constraint` of one row. Its matcher stands wherever it was asked for last and moves by rollback."""

    def __init__(self, grammar: Grammar, end_ids: Collection[int], max_output: int) -> None:
        """`max_output` counts the tokens that the output may have, the end-of-sequence token included."""
        self._grammar = grammar
        self._end_ids = sorted(end_ids)
        self._budget = max_output
        self._matcher = grammar.start.copy()
        self._committed: list[int] = []
        self._path: list[int] = []
        """Tokens beyond the committed ones that the matcher has consumed."""
        tail = b"" if grammar.opening is not None else None
        self._states: dict[tuple[int, ...], _State] = {(): self._live(grammar.shortest or (), tail)}
        self._masks: dict[tuple[int, ...], Tensor] = {}

    # ---------------------------------------------------------------- questions

    def progress(self, hypothesis: Sequence[int]) -> Progress:
        """Where the output stands after committed + hypothesis."""
        return self._state(tuple(hypothesis)).progress

    def allowed(self, hypothesis: Sequence[int]) -> Tensor | None:
        """Mask, bool [V] on the CPU, of the tokens that may follow; None where nothing is to follow."""
        context = tuple(hypothesis)
        state = self._state(context)
        if state.progress not in LIVE:
            return None
        if context not in self._masks:
            packed = torch.frombuffer(bytearray(state.mask), dtype=torch.uint8)
            mask = (packed[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
            mask = mask[: len(self._grammar.texts)]
            if state.progress is Progress.VALID:
                mask[self._end_ids] = True
            self._masks[context] = mask
        return self._masks[context]

    def fitting(self, hypothesis: Sequence[int], token_id: int) -> int:
        """The token, or the next one of a way to close the output if it could not be closed in time after the token."""
        context = tuple(hypothesis)
        state = self._state(context)
        if state.progress not in LIVE or self._state((*context, token_id)).progress is not Progress.DEAD:
            return token_id
        return state.closing[0] if state.closing else self._end_ids[0]

    def draft(self, hypothesis: Sequence[int], proposal: Sequence[int], max_tokens: int) -> list[int]:
        """The legal beginning of a proposal, and then tokens that the grammar leaves no choice about."""
        drafted: list[int] = []
        self._extend(hypothesis, drafted, proposal[:max_tokens])
        while len(drafted) < max_tokens and self.progress(context := (*hypothesis, *drafted)) is Progress.OPEN:
            self._move(context)
            before = len(drafted)
            self._extend(hypothesis, drafted, self._matcher.forced()[: max_tokens - before])
            if len(drafted) == before:
                break
        return drafted

    # ---------------------------------------------------------------- progress

    def commit(self, token_ids: Sequence[int]) -> None:
        """Tokens became final."""
        context = tuple(token_ids)
        state = self._state(context)
        if state.progress in LIVE:
            self._move(context)
        self._committed.extend(context)
        self._budget -= len(context)
        self._path = []
        self._states, self._masks = {(): state}, {}

    def _extend(self, hypothesis: Sequence[int], drafted: list[int], token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            progress = self.progress((*hypothesis, *drafted, token_id))
            if progress is Progress.DEAD:
                return
            drafted.append(token_id)
            if progress in ENDED:
                return

    # ---------------------------------------------------------------- states

    def _state(self, context: tuple[int, ...]) -> _State:
        known = len(context)
        while context[:known] not in self._states:
            known -= 1
        state = self._states[context[:known]]
        for end in range(known + 1, len(context) + 1):
            state = self._states[context[:end]] = self._after(state, context[: end - 1], context[end - 1])
        return state

    def _after(self, state: _State, context: tuple[int, ...], token_id: int) -> _State:
        """The state after one more token."""
        if state.progress not in LIVE:
            return _DEAD
        if state.progress is Progress.VALID and token_id in self._end_ids:
            return _CLOSED
        if not 0 <= token_id < len(self._grammar.texts) or len(context) >= self._budget:
            return _DEAD
        try:
            self._move(context)
            if not self._matcher.advance(token_id):
                return _DEAD
            self._path.append(token_id)
            tail = self._tail(state, token_id)
            closing = self._closing(state, token_id, self._budget - len(self._path), free=tail is not None)
            return _DEAD if closing is None else self._live(closing, tail)
        except MatcherError:  # where the backend gives up the output must not go
            self._restart()
            return _DEAD

    def _live(self, closing: tuple[int, ...], tail: bytes | None) -> _State:
        """The state where the matcher stands."""
        if self._matcher.complete:
            return _State(Progress.COMPLETE)
        unfinished = Progress.OPEN if tail is None else Progress.FREE
        progress = Progress.VALID if self._matcher.accepts else unfinished
        return _State(progress, closing, self._matcher.allowed(), tail)

    def _tail(self, state: _State, token_id: int) -> bytes | None:
        opening = self._grammar.opening
        if state.tail is None or opening is None:
            return None
        return opening.tail(state.tail, token_id, self._grammar.texts[token_id])

    def _closing(self, state: _State, token_id: int, limit: int, *, free: bool) -> tuple[int, ...] | None:
        """At most `limit` tokens that close the output where the matcher stands, `token_id` after `state`."""
        if self._matcher.accepts:
            return ()
        old = state.closing
        if old and old[0] == token_id:
            return old[1:]
        for skipped in range(min(len(old) - 1, _SKIPPED), -1, -1):
            if self._matcher.closes(old[skipped:]):
                return old[skipped:] if len(old) - skipped <= limit else None
        return self._grammar.closing(self._matcher, limit, free=free)

    # ---------------------------------------------------------------- the matcher

    def _move(self, context: tuple[int, ...]) -> None:
        """Puts the matcher behind a context whose state is live. Raises MatcherError."""
        common = 0
        while common < min(len(self._path), len(context)) and self._path[common] == context[common]:
            common += 1
        self._matcher.rollback(len(self._path) - common)
        del self._path[common:]
        for token_id in context[common:]:
            if not self._matcher.advance(token_id):
                raise MatcherError(f"token {token_id} was legal before and is not now")
            self._path.append(token_id)

    def _restart(self) -> None:
        """A matcher that failed cannot be used again: a new one follows the committed output."""
        self._matcher = self._grammar.start.copy()
        self._path = []
        for token_id in self._committed:
            self._matcher.advance(token_id)
