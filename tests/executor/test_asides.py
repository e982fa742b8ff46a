"""A model-free level that is asked beside what runs: nothing is decoded otherwise, and what it would have brought is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.scheduling.evidence import ASIDE_WINDOW
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Aside, Score

V = 8
PLAIN = Plan(("target",))
DRAFTS = Plan.chain(["draft", "target"], [3])
LOOKUP = Plan.chain(["oracle", "target"], [2])
EITHER = Plan.either(LOOKUP, DRAFTS)
CHAIN = Plan.chain(["oracle", "draft", "target"], [2, 3])


class Oracle:
    """Knows what follows, but for every fourth place, where it has nothing to say."""

    name = "oracle"

    def __init__(self, answer, error=None):
        self.answer, self.asked, self._error = answer, 0, error

    def propose(self, row, hypothesis, max_tokens):
        self.asked += 1
        if self._error is not None:
            raise self._error
        place = len(row.output_ids) + len(hypothesis)
        return self.answer[place : place + max_tokens] if place % 4 else []


@pytest.fixture(scope="session")
def plain(stage_of):
    """What so many rows say without drafts."""
    return lambda number=1: stage_of(Oracle([]), number).answers(lambda n: [PLAIN] * n)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_plain_decoding(stage_of, plain, data):
    """Whatever runs, whoever is asked, greedy and sampled."""
    plans, asides = st.sampled_from([PLAIN, DRAFTS, LOOKUP, EITHER, CHAIN]), st.sampled_from([(), ("oracle",)])
    number = data.draw(st.integers(1, 3))
    stage = stage_of(Oracle(plain(number)[0]), number)
    found = stage.answers(lambda n: [data.draw(plans) for _ in range(n)], lambda: data.draw(asides))
    assert found == plain(number)


@pytest.mark.parametrize("plan", [PLAIN, DRAFTS])
def test_what_would_have_come_is_told(stage_of, plain, plan):
    """How long the proposal would have been, and how much of it is what the step commits: no trial, and no counted draft."""
    (answer,) = plain()
    stage = stage_of(Oracle(answer))
    while stage.rows[0].remaining > 1:
        place, left = len(stage.rows[0].output_ids), stage.rows[0].remaining
        result = stage.step([plan], ["oracle"])
        (outcome,) = result.outcomes
        want = min(ASIDE_WINDOW, left - 1)
        proposed = want if place % 4 else 0
        assert outcome.asides == (Aside("oracle", want, proposed),)
        matched = min(proposed, len(outcome.token_ids))
        assert [s for s in outcome.scores if s.level == "oracle"] == (
            [Score("oracle", matched, matched)] if matched else []
        )
        assert all(trial.lower != "oracle" for trial in outcome.trials)
        assert [forward.level for forward in result.forwards].count("oracle") == 1


@pytest.mark.parametrize("plan", [LOOKUP, EITHER, CHAIN])
def test_who_uses_it_is_not_asked_beside(stage_of, plain, plan):
    """Its trials tell; other rows of the batch are asked."""
    stage = stage_of(Oracle(plain(2)[0]), 2)
    first, other = stage.step([plan, DRAFTS], ["oracle"]).outcomes
    assert first.asides == ()
    assert [aside.level for aside in other.asides] == ["oracle"]


def test_a_wrong_proposal_is_scored_up_to_its_first_mistake(stage_of, plain):
    (answer,) = plain()
    stage = stage_of(Oracle(answer))
    stage.step([PLAIN], [])
    wrong = [*answer[:2], (answer[2] + 1) % V, *answer[3:]]
    stage.proposer.answer = wrong
    (outcome,) = stage.step([DRAFTS], ["oracle"]).outcomes
    committed = len(outcome.token_ids)
    assert committed > 1
    assert outcome.scores[-1] == Score("oracle", 2, 1)


def test_one_that_raises_is_set_aside_and_the_answer_goes_on(stage_of, plain):
    (answer,) = plain()
    stage = stage_of(Oracle(answer, ValueError("broken")))
    (outcome,) = stage.step([DRAFTS], ["oracle"]).outcomes
    assert (outcome.asides, outcome.error) == ((), None)
    assert "raised ValueError" in stage.rows[0].set_aside["oracle"]
    assert stage.answers(lambda n: [DRAFTS] * n, lambda: ["oracle"]) == [answer]
    assert stage.proposer.asked == 1


def test_nobody_is_asked_for_a_last_token(stage_of, plain):
    """There is nothing to propose, and no forward to count."""
    (answer,) = plain()
    stage = stage_of(Oracle(answer))
    while stage.rows[0].remaining > 1:
        stage.step([PLAIN], [])
    result = stage.step([PLAIN], ["oracle"])
    assert result.outcomes[0].asides == ()
    assert [forward.level for forward in result.forwards] == ["target"]
