"""What a row looks up first goes to the target itself; drafters are asked where there is nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.executor import Executor
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.testing import ContextRunner, hashed_logits

V = 8
PLAIN = Plan(("target",))
LOOKUP, DRAFTS = Plan(("echo", "target"), (3,), (1, 1)), Plan.chain(["draft", "target"], [2])
EITHER = Plan.either(LOOKUP, DRAFTS)


class Echo:
    """Proposes its own last token again, behind even positions."""

    name = "echo"

    def __init__(self, error=None):
        self.asked = 0
        self._error = error

    def propose(self, row, hypothesis, max_tokens):
        self.asked += 1
        if self._error is not None:
            raise self._error
        return [row.token_ids[-1]] * max_tokens if len(row.token_ids) % 2 == 0 else []


class Stage:
    """Rows of 12 tokens over a target and a drafter that often agree."""

    def __init__(self, num_rows, echo=None):
        target, other = hashed_logits(0, V), hashed_logits(1, V)
        near = {"target": target, "draft": lambda ids: target(ids) if len(ids) % 3 else other(ids)}
        self.runners = {name: ContextRunner(name, near[name], V, num_slots=num_rows) for name in ("draft", "target")}
        self.state = StateManager(self.runners, num_rows)
        self.echo = echo or Echo()
        self.executor = Executor(self.state, self.runners, {"echo": self.echo}, "target")
        self.rows = [self._row(i) for i in range(num_rows)]

    def _row(self, seed):
        prompt = [1 + seed] * (2 + seed)
        slot, _ = self.state.admit(prompt)
        sampler = RowSampler(SamplingParams(temperature=seed % 2), seed=seed, prompt_ids=prompt)
        return Row(slot, self.state.tokens(slot), len(prompt), sampler, len(prompt) + 12)

    def step(self, plans):
        live = [row for row in self.rows if row.remaining]
        lengths = [len(row.token_ids) for row in live]
        result = self.executor.step(live, plans[: len(live)])
        for outcome in result.outcomes:
            self.executor.commit(outcome.row, outcome.token_ids)
        self.state.check()
        return lengths, result

    def answers(self, plans_of):
        while any(row.remaining for row in self.rows):
            self.step(plans_of(len(self.rows)))
        return [row.output_ids for row in self.rows]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_plain_decoding(data):
    """Beside any other plans of the batch, greedy and sampled."""
    plans = st.sampled_from([EITHER, EITHER, LOOKUP, DRAFTS, PLAIN, Plan.chain(["echo", "draft", "target"], [2, 3])])
    number = data.draw(st.integers(1, 3))
    expected = Stage(number).answers(lambda n: [PLAIN] * n)
    assert expected == Stage(number).answers(lambda n: [data.draw(plans) for _ in range(n)])


def test_each_row_runs_what_it_has():
    """The outcome names what was run; one lookup and one draft phase serve all rows; nobody verifies what was looked up but
    the target."""
    stage = Stage(3)
    lengths, result = stage.step([EITHER] * 3)
    assert lengths == [2, 3, 4]
    assert [outcome.plan for outcome in result.outcomes] == [LOOKUP, DRAFTS, LOOKUP]
    assert [(t.lower, t.upper, t.proposed) for o in result.outcomes for t in o.trials] == [
        ("echo", "target", 3),
        ("draft", "target", 2),
        ("echo", "target", 3),
    ]
    assert stage.echo.asked == 3
    drafted = [forward for forward in result.forwards if forward.level == "draft"]
    assert {forward.num_rows for forward in drafted} == {1}
    assert [forward.level for forward in result.forwards].count("echo") == 1


def test_no_drafter_is_asked_where_all_find_something():
    stage = Stage(1)
    _, result = stage.step([EITHER])
    assert {forward.level for forward in result.forwards} == {"echo", "target"}


@pytest.mark.parametrize("error", [ValueError("broken"), KeyError("x")])
def test_a_lookup_that_raises_leaves_the_drafts(error):
    """It is set aside for the row, and the very step goes on with the drafter."""
    stage = Stage(1, Echo(error))
    _, result = stage.step([EITHER])
    assert result.outcomes[0].plan == DRAFTS
    assert "raised" in stage.rows[0].set_aside["echo"]
    _, result = stage.step([EITHER])
    assert (result.outcomes[0].plan, stage.echo.asked) == (DRAFTS, 1)


def test_a_drafter_that_fails_leaves_the_lookup():
    stage = Stage(1)
    stage.runners["draft"].forward = lambda spans: 1 / 0
    expected = Stage(1).answers(lambda n: [PLAIN] * n)
    assert expected == stage.answers(lambda n: [EITHER] * n)
    assert "ZeroDivisionError" in stage.rows[0].set_aside["draft"]
    assert stage.rows[0].set_aside.keys() == {"draft"}
