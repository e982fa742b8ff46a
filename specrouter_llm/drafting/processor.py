"""The DraftProcessor: runs level 0 for a group of rows, and cuts what it proposes at the first illegal token."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Mapping, Sequence

from specrouter_llm.drafting.proposer import Proposer
from specrouter_llm.errors import told
from specrouter_llm.scheduling.policy import Forward
from specrouter_llm.state.row import Row


class DraftProcessor:
    """Model-free proposers by name."""

    def __init__(self, proposers: Mapping[str, Proposer]) -> None:
        self._proposers = dict(proposers)

    def __contains__(self, name: str) -> bool:
        return name in self._proposers

    def propose(
        self,
        name: str,
        rows: Sequence[Row],
        hypotheses: Sequence[Sequence[int]],
        wants: Sequence[int],
        *,
        log: list[Forward],
    ) -> list[list[int]]:
        """At most wants[r] tokens after each hypothesis. A proposer that raises is set aside for that row alone."""
        started = time.perf_counter()
        proposer = self._proposers[name]
        proposals: list[list[int]] = []
        for row, hypothesis, want in zip(rows, hypotheses, wants, strict=True):
            try:
                proposed = itertools.islice(proposer.propose(row, hypothesis, want), want)
                proposals.append(_lawful(row, hypothesis, [operator.index(token_id) for token_id in proposed], want))
            except BaseException as error:  # a third party's code: whatever it does, the answer goes on
                row.set_aside[name] = f"raised {told(error)}"
                proposals.append([])
        num_tokens = sum(len(proposal) for proposal in proposals)
        log.append(Forward(name, len(rows), num_tokens, 0, time.perf_counter() - started))
        return proposals


def _lawful(row: Row, hypothesis: Sequence[int], proposal: list[int], want: int) -> list[int]:
    """The proposal up to the first token that the row's grammar forbids, and what the grammar then forces."""
    constraint = row.sampler.constraint
    return proposal if constraint is None else constraint.draft(hypothesis, proposal, want)
