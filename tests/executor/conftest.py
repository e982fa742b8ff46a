"""Rows over a target, a drafter that is right two times of three, and a model-free level."""

from __future__ import annotations

import pytest

from specrouter_llm.executor import Executor
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.testing import ContextRunner, hashed_logits

V = 8


class Stage:
    """Rows of 16 tokens, each of the second ones sampled."""

    def __init__(self, proposer, num_rows=1):
        target, other = hashed_logits(0, V), hashed_logits(1, V)
        near = {"target": target, "draft": lambda ids: target(ids) if len(ids) % 3 else other(ids)}
        self.runners = {name: ContextRunner(name, near[name], V, num_slots=num_rows) for name in ("draft", "target")}
        self.state = StateManager(self.runners, num_rows)
        self.proposer = proposer
        self.executor = Executor(self.state, self.runners, {proposer.name: proposer}, "target")
        self.rows = [self._row(i) for i in range(num_rows)]

    def _row(self, seed):
        prompt = [1 + seed] * (2 + seed)
        slot, _ = self.state.admit(prompt)
        sampler = RowSampler(SamplingParams(temperature=seed % 2), seed=seed, prompt_ids=prompt)
        return Row(slot, self.state.tokens(slot), len(prompt), sampler, len(prompt) + 16)

    def step(self, plans, asides=()):
        live = [row for row in self.rows if row.remaining]
        result = self.executor.step(live, plans[: len(live)], asides=asides)
        for outcome in result.outcomes:
            self.executor.commit(outcome.row, outcome.token_ids)
        self.state.check()
        return result

    def answers(self, plans_of, asides_of=tuple):
        while any(row.remaining for row in self.rows):
            self.step(plans_of(len(self.rows)), asides_of())
        return [row.output_ids for row in self.rows]


@pytest.fixture(scope="session")
def stage_of() -> type[Stage]:
    """`stage_of(proposer, num_rows)`, for test modules, which cannot import a conftest."""
    return Stage
