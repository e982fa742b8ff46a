"""The LoopProcessor: all that the lowest model of a chain proposes, in one launch, where its runner can do that.

What it does is what `VerifyProcessor` does over no proposal at all, `count` times in a row, and so are its results; only
the host is not asked between the tokens. So it is for rows whose choices need nothing of the host.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from specrouter_llm.errors import ModelFailure
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.draft_loop import LoopingRunner
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.sampling.choice import BROKEN
from specrouter_llm.sampling.noise import row_keys
from specrouter_llm.sampling.row import Warp
from specrouter_llm.scheduling.evidence import LEAST_SCORED
from specrouter_llm.scheduling.policy import Forward
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row


class Looped(NamedTuple):
    """What a level says after one row's hypothesis."""

    row: int
    """Its index among those given."""
    token_ids: list[int]
    """`count` tokens; fewer if it failed."""
    failed: bool
    """The logits behind the next one held NaN or nothing finite."""


class LoopProcessor:
    """Runs levels that can go on by themselves."""

    def __init__(self, state: StateManager, runners: Mapping[str, Runner]) -> None:
        self._state = state
        self._runners = {name: runner for name, runner in runners.items() if isinstance(runner, LoopingRunner)}

    def __contains__(self, model: str) -> bool:
        return model in self._runners

    def propose(
        self, model: str, rows: Sequence[Row], hypotheses: Sequence[Sequence[int]], count: int, *, log: list[Forward]
    ) -> list[Looped]:
        """The next `count` choices of the model after row.token_ids + hypotheses[r], of the rows that can have them so.

        Raises:
            ModelFailure: the forward raised; the lengths of all models are the caller's to restore.
        """
        alike: dict[Warp, list[tuple[int, Span]]] = {}
        for i, (row, hypothesis) in enumerate(zip(rows, hypotheses, strict=True)):
            if row.sampler.contextual or not self._runners[model].loops(row.sampler.warp):
                continue
            span = self._state.span(model, row.slot, hypothesis, 1)
            if self._fits(model, span, count):
                alike.setdefault(row.sampler.warp, []).append((i, span))
        looped: list[Looped] = []
        for some in alike.values():
            members, spans = [i for i, _ in some], [span for _, span in some]
            looped += self._run(model, members, [rows[i] for i in members], spans, count, log)
        return looped

    def _fits(self, model: str, span: Span, count: int) -> bool:
        """Not beyond the context; who has to catch up is scored on the way."""
        return len(span.token_ids) <= LEAST_SCORED and count <= self._runners[model].context_length - span.end + 1

    def _run(
        self,
        model: str,
        members: Sequence[int],
        rows: Sequence[Row],
        spans: Sequence[Span],
        count: int,
        log: list[Forward],
    ) -> list[Looped]:
        started = time.perf_counter()
        warp = rows[0].sampler.warp
        keys = [_keys(row, span.end, count) if warp.temperature else [] for row, span in zip(rows, spans, strict=True)]
        try:
            chosen = self._runners[model].loop(spans, count, warp, keys)
            tokens = chosen.tolist() if chosen is not None else []  # the one wait for the device
        except Exception as error:
            raise ModelFailure(model, error) from error
        looped: list[Looped] = []
        for i, span, ids in zip(members, spans, tokens, strict=bool(tokens)):
            self._state.wrote(model, Span(span.slot, span.start, [*span.token_ids, *ids[:-1]], 0))
            size = ids.index(BROKEN) if BROKEN in ids else count
            looped.append(Looped(i, ids[:size], failed=size < count))
        if looped:
            self._log(model, spans, count, time.perf_counter() - started, log)
        return looped

    @staticmethod
    def _log(model: str, spans: Sequence[Span], count: int, seconds: float, log: list[Forward]) -> None:
        """As so many forwards, of equal duration: the first, which feeds what was missing too, and the others."""
        rows, each = len(spans), seconds / count
        fed, context = sum(len(span.token_ids) for span in spans), sum(span.end for span in spans)
        log.append(Forward(model, rows, fed, context, each, looped=True))
        if count > 1:
            later = context + rows * count // 2
            log.append(Forward(model, rows, rows, later, each, looped=True, turns=count - 1))


def _keys(row: Row, position: int, count: int) -> list[tuple[int, int]]:
    return [row_keys(row.sampler.seed, row.sampler.sample, position + i) for i in range(count)]
