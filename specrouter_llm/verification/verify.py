"""The VerifyProcessor: one ragged forward of a level over [catch-up + proposal], then the choice rule.

Terms as in vLLM: *accepted* tokens equal the verifier's own choices; the *recovered* token is its choice at the first
mismatch, the *bonus* token its choice after a proposal that was accepted whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from specrouter_llm.errors import ModelFailure
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.sampling.choice import Segment, choose
from specrouter_llm.state.manager import StateManager, common_prefix
from specrouter_llm.state.row import Row


@dataclass(frozen=True, slots=True)
class Verification:
    """What a level makes of one proposal."""

    token_ids: list[int]
    """Accepted tokens and one of the level's own; empty if the level could not choose (see `failed`)."""
    num_proposed: int
    """Tokens of the proposal that were put to the test."""
    num_accepted: int
    failed: bool = False
    """The level's logits for this row held NaN or nothing finite."""
    logits: Tensor | None = None
    """[num_proposed + 1, V], the raw logits behind the choices; kept on request."""


class VerifyProcessor:
    """Runs one level over the proposals of the level below it."""

    def __init__(self, state: StateManager, runners: Mapping[str, Runner]) -> None:
        self._state = state
        self._runners = dict(runners)

    def verify(
        self,
        model: str,
        rows: Sequence[Row],
        hypotheses: Sequence[Sequence[int]],
        proposals: Sequence[Sequence[int]],
        *,
        keep_logits: bool = False,
    ) -> list[Verification]:
        """Verifies proposals[r] after row.token_ids + hypotheses[r], all rows in one forward.

        Raises:
            ModelFailure: the forward raised; the lengths of all models are the caller's to restore.
        """
        runner = self._runners[model]
        tested = [
            self._fitting(runner, row, hypothesis, proposal)
            for row, hypothesis, proposal in zip(rows, hypotheses, proposals, strict=True)
        ]
        contexts = [[*hypothesis, *proposal] for hypothesis, proposal in zip(hypotheses, tested, strict=True)]
        logits = self._forward(
            model,
            [
                self._state.span(model, row.slot, context, len(proposal) + 1)
                for row, context, proposal in zip(rows, contexts, tested, strict=True)
            ],
        )
        segments = [
            Segment(row.sampler, len(row.token_ids) + len(hypothesis), context, len(proposal) + 1)
            for row, hypothesis, context, proposal in zip(rows, hypotheses, contexts, tested, strict=True)
        ]
        blocks = logits.split([segment.count for segment in segments]) if keep_logits else [None] * len(rows)
        return [
            _accept(proposal, choices, block)
            for proposal, choices, block in zip(tested, choose(logits, segments), blocks, strict=True)
        ]

    def prefill(self, model: str, slots: Sequence[int], max_tokens: int) -> int:
        """Feeds the next committed tokens of some slots, at most `max_tokens` in all; returns how many were fed.

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
            self._forward(model, spans)
        return max_tokens - left

    def _forward(self, model: str, spans: Sequence[Span]) -> Tensor:
        try:
            logits = self._runners[model].forward(spans)
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


def _accept(proposal: Sequence[int], choices: Sequence[int] | None, logits: Tensor | None) -> Verification:
    """The longest prefix of the proposal that equals the level's own choices, plus its next choice."""
    if choices is None:
        return Verification([], len(proposal), 0, failed=True)
    accepted = common_prefix(list(proposal), choices)
    return Verification(list(choices[: accepted + 1]), len(proposal), accepted, logits=logits)
