"""What a row looks up first goes to the target itself; drafters are asked where there is nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.scheduling.plan import Plan

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


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_plain_decoding(stage_of, data):
    """Beside any other plans of the batch, greedy and sampled."""
    plans = st.sampled_from([EITHER, EITHER, LOOKUP, DRAFTS, PLAIN, Plan.chain(["echo", "draft", "target"], [2, 3])])
    number = data.draw(st.integers(1, 3))
    expected = stage_of(Echo(), number).answers(lambda n: [PLAIN] * n)
    assert expected == stage_of(Echo(), number).answers(lambda n: [data.draw(plans) for _ in range(n)])


def test_each_row_runs_what_it_has(stage_of):
    """The outcome names what was run; one lookup and one draft phase serve all rows; nobody verifies what was looked up but
    the target."""
    stage = stage_of(Echo(), 3)
    assert [len(row.token_ids) for row in stage.rows] == [2, 3, 4]
    result = stage.step([EITHER] * 3)
    assert [outcome.plan for outcome in result.outcomes] == [LOOKUP, DRAFTS, LOOKUP]
    assert [(t.lower, t.upper, t.proposed) for o in result.outcomes for t in o.trials] == [
        ("echo", "target", 3),
        ("draft", "target", 2),
        ("echo", "target", 3),
    ]
    assert stage.proposer.asked == 3
    drafted = [forward for forward in result.forwards if forward.level == "draft"]
    assert {forward.num_rows for forward in drafted} == {1}
    assert [forward.level for forward in result.forwards].count("echo") == 1


def test_no_drafter_is_asked_where_all_find_something(stage_of):
    stage = stage_of(Echo())
    result = stage.step([EITHER])
    assert {forward.level for forward in result.forwards} == {"echo", "target"}


@pytest.mark.parametrize("error", [ValueError("broken"), KeyError("x")])
def test_a_lookup_that_raises_leaves_the_drafts(stage_of, error):
    """It is set aside for the row, and the very step goes on with the drafter."""
    stage = stage_of(Echo(error))
    result = stage.step([EITHER])
    assert result.outcomes[0].plan == DRAFTS
    assert "raised" in stage.rows[0].set_aside["echo"]
    result = stage.step([EITHER])
    assert (result.outcomes[0].plan, stage.proposer.asked) == (DRAFTS, 1)


def test_a_drafter_that_fails_leaves_the_lookup(stage_of):
    stage = stage_of(Echo())
    stage.runners["draft"].forward = lambda spans: 1 / 0
    expected = stage_of(Echo()).answers(lambda n: [PLAIN] * n)
    assert expected == stage.answers(lambda n: [EITHER] * n)
    assert "ZeroDivisionError" in stage.rows[0].set_aside["draft"]
    assert stage.rows[0].set_aside.keys() == {"draft"}
