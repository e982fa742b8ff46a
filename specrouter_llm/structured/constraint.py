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
    matched: int = 0
    """In free text: how much of its last string it ends with, in bytes."""
    fed: tuple[int, ...] = ()
    """What the matcher consumed for the last token of the context."""


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
        self._consumed: list[int] = []
        """What the matcher has consumed for the committed output."""
        self._path: list[tuple[int, int]] = []
        """Where the matcher stands: the tokens behind the committed ones, and how many it consumed for each."""
        closing = grammar.shortest or ()
        first = self._live(closing, ()) if grammar.opening is None else _State(Progress.FREE, closing)
        self._states: dict[tuple[int, ...], _State] = {(): first}
        self._masks: dict[tuple[int, ...], Tensor | None] = {}

    # ---------------------------------------------------------------- questions

    def progress(self, hypothesis: Sequence[int]) -> Progress:
        """Where the output stands after committed + hypothesis."""
        return self._state(tuple(hypothesis)).progress

    def allowed(self, hypothesis: Sequence[int]) -> Tensor | None:
        """Mask, bool [V] on the CPU, of the tokens that may follow; None where anything may, or nothing is to follow."""
        context = tuple(hypothesis)
        state = self._state(context)
        if state.progress not in LIVE:
            return None
        if context not in self._masks:
            free = state.progress is Progress.FREE
            self._masks[context] = self._free_mask(state, context) if free else self._mask(state)
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
            for end in range(1, len(context) + 1):
                self._consumed.extend(self._states[context[:end]].fed)
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

    # ---------------------------------------------------------------- masks

    def _mask(self, state: _State) -> Tensor:
        packed = torch.frombuffer(bytearray(state.mask), dtype=torch.uint8)
        mask = (packed[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
        mask = mask[: len(self._grammar.texts)]
        if state.progress is Progress.VALID:
            mask[self._end_ids] = True
        return mask

    def _free_mask(self, state: _State, context: tuple[int, ...]) -> Tensor | None:
        """Free text may be anything; but it must not lead into the grammar wrongly or too late, nor end if it has to."""
        grammar, left = self._grammar, self._budget - len(context) - 1
        assert grammar.opening is not None
        banned = [] if grammar.optional else list(grammar.eos_ids)
        ends = self._end_ids if grammar.optional else ()
        for token_id in grammar.opening.enders(state.matched):
            _, rest = grammar.opening.advance(state.matched, token_id)
            entry = grammar.entry(rest or b"")
            if token_id not in ends and (entry is None or len(entry.closing) > left):
                banned.append(token_id)
        if not banned:
            return None
        mask = torch.ones(len(grammar.texts), dtype=torch.bool)
        mask[banned] = False
        return mask

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
        free = state.progress is Progress.FREE
        if state.progress not in LIVE:
            return _DEAD
        if token_id in self._end_ids and (state.progress is Progress.VALID or (free and self._grammar.optional)):
            return _CLOSED
        left = self._budget - len(context) - 1
        if not 0 <= token_id < len(self._grammar.texts) or left < 0:
            return _DEAD
        try:
            return (self._after_free if free else self._after_bound)(state, context, token_id, left)
        except MatcherError:  # where the backend gives up the output must not go
            self._restart()
            return _DEAD

    def _after_free(self, state: _State, context: tuple[int, ...], token_id: int, left: int) -> _State:
        grammar, opening = self._grammar, self._grammar.opening
        assert opening is not None
        matched, rest = opening.advance(state.matched, token_id)
        if rest is not None:
            entry = grammar.entry(rest)
            if entry is None or len(entry.closing) > left:
                return _DEAD
            self._move(context)
            self._feed(token_id, entry.token_ids)
            return self._live(entry.closing, entry.token_ids)
        if grammar.optional:
            return _State(Progress.FREE, matched=matched)
        if token_id in grammar.eos_ids:
            return _DEAD
        on_way = state.closing[:1] == (token_id,)
        closing = state.closing[1:] if on_way else grammar.closing_of_free_text(matched)
        return _DEAD if closing is None or len(closing) > left else _State(Progress.FREE, closing, matched=matched)

    def _after_bound(self, state: _State, context: tuple[int, ...], token_id: int, left: int) -> _State:
        self._move(context)
        if not self._feed(token_id, (token_id,)):
            return _DEAD
        closing = self._closing(state, token_id, left)
        return _DEAD if closing is None else self._live(closing, (token_id,))

    def _live(self, closing: tuple[int, ...], fed: tuple[int, ...]) -> _State:
        """The state where the matcher stands."""
        if self._matcher.complete:
            return _State(Progress.COMPLETE)
        progress = Progress.VALID if self._matcher.accepts else Progress.OPEN
        return _State(progress, closing, self._matcher.allowed(), fed=fed)

    def _closing(self, state: _State, token_id: int, limit: int) -> tuple[int, ...] | None:
        """At most `limit` tokens that close the output where the matcher stands, `token_id` after `state`."""
        if self._matcher.accepts:
            return ()
        old = state.closing
        if old and old[0] == token_id:
            return old[1:]
        for skipped in range(min(len(old) - 1, _SKIPPED), -1, -1):
            if self._matcher.closes(old[skipped:]):
                return old[skipped:] if len(old) - skipped <= limit else None
        return self._grammar.closing(self._matcher, limit)

    # ---------------------------------------------------------------- the matcher

    def _move(self, context: tuple[int, ...]) -> None:
        """Puts the matcher behind a context whose state is live. Raises MatcherError."""
        common = 0
        while common < min(len(self._path), len(context)) and self._path[common][0] == context[common]:
            common += 1
        self._matcher.rollback(sum(num_consumed for _, num_consumed in self._path[common:]))
        del self._path[common:]
        for end in range(common + 1, len(context) + 1):
            if not self._feed(context[end - 1], self._states[context[:end]].fed):
                raise MatcherError(f"token {context[end - 1]} was legal before and is not now")

    def _feed(self, token_id: int, consumed: tuple[int, ...]) -> bool:
        """Makes the matcher consume what one more token stands for; False, and nothing has changed, if it may not follow."""
        for done, i in enumerate(consumed):
            if not self._matcher.advance(i):
                self._matcher.rollback(done)
                return False
        self._path.append((token_id, len(consumed)))
        return True

    def _restart(self) -> None:
        """A matcher that failed cannot be used again: a new one follows the committed output."""
        self._matcher = self._grammar.start.copy()
        self._path = []
        for token_id in self._consumed:
            self._matcher.advance(token_id)
