"""A model-free level that is asked beside what runs: nothing is decoded otherwise, and what it would have brought is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.executor import Executor
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.evidence import ASIDE_WINDOW
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Aside, Score
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.testing import ContextRunner, hashed_logits

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


class Stage:
    """Rows over a target and a drafter that is right two times of three."""

    def __init__(self, answers=(), number=1, error=None):
        target, other = hashed_logits(0, V), hashed_logits(1, V)
        near = {"target": target, "draft": lambda ids: target(ids) if len(ids) % 3 else other(ids)}
        runners = {name: ContextRunner(name, near[name], V, num_slots=number) for name in ("draft", "target")}
        self.state = StateManager(runners, number)
        self.oracle = Oracle(answers[0] if answers else [], error)
        self.executor = Executor(self.state, runners, {"oracle": self.oracle}, "target")
        self.rows = [self._row(i) for i in range(number)]

    def _row(self, seed):
        prompt = [1 + seed] * (2 + seed)
        slot, _ = self.state.admit(prompt)
        sampler = RowSampler(SamplingParams(temperature=seed % 2), seed=seed, prompt_ids=prompt)
        return Row(slot, self.state.tokens(slot), len(prompt), sampler, len(prompt) + 16)

    def step(self, plans, asides):
        live = [row for row in self.rows if row.remaining]
        result = self.executor.step(live, plans[: len(live)], asides=asides)
        for outcome in result.outcomes:
            self.executor.commit(outcome.row, outcome.token_ids)
        self.state.check()
        return result

    def answers(self, plans_of, asides_of):
        while any(row.remaining for row in self.rows):
            self.step(plans_of(len(self.rows)), asides_of())
        return [row.output_ids for row in self.rows]


def plain(number=1):
    return Stage(number=number).answers(lambda n: [PLAIN] * n, tuple)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_plain_decoding(data):
    """Whatever runs, whoever is asked, greedy and sampled."""
    plans, asides = st.sampled_from([PLAIN, DRAFTS, LOOKUP, EITHER, CHAIN]), st.sampled_from([(), ("oracle",)])
    number = data.draw(st.integers(1, 3))
    stage = Stage(plain(number), number)
    found = stage.answers(lambda n: [data.draw(plans) for _ in range(n)], lambda: data.draw(asides))
    assert found == plain(number)


@pytest.mark.parametrize("plan", [PLAIN, DRAFTS])
def test_what_would_have_come_is_told(plan):
    """How long the proposal would have been, and how much of it is what the step commits: no trial, and no counted draft."""
    (answer,) = plain()
    stage = Stage([answer])
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
def test_who_uses_it_is_not_asked_beside(plan):
    """Its trials tell; other rows of the batch are asked."""
    stage = Stage(plain(2), 2)
    first, other = stage.step([plan, DRAFTS], ["oracle"]).outcomes
    assert first.asides == ()
    assert [aside.level for aside in other.asides] == ["oracle"]


def test_a_wrong_proposal_is_scored_up_to_its_first_mistake():
    (answer,) = plain()
    stage = Stage([answer])
    stage.step([PLAIN], [])
    wrong = [*answer[:2], (answer[2] + 1) % V, *answer[3:]]
    stage.oracle.answer = wrong
    (outcome,) = stage.step([DRAFTS], ["oracle"]).outcomes
    committed = len(outcome.token_ids)
    assert committed > 1
    assert outcome.scores[-1] == Score("oracle", 2, 1)


def test_one_that_raises_is_set_aside_and_the_answer_goes_on():
    (answer,) = plain()
    stage = Stage([answer], error=ValueError("broken"))
    (outcome,) = stage.step([DRAFTS], ["oracle"]).outcomes
    assert (outcome.asides, outcome.error) == ((), None)
    assert "raised ValueError" in stage.rows[0].set_aside["oracle"]
    assert stage.answers(lambda n: [DRAFTS] * n, lambda: ["oracle"]) == [answer]
    assert stage.oracle.asked == 1


def test_nobody_is_asked_for_a_last_token():
    """There is nothing to propose, and no forward to count."""
    (answer,) = plain()
    stage = Stage([answer])
    while stage.rows[0].remaining > 1:
        stage.step([PLAIN], [])
    result = stage.step([PLAIN], ["oracle"])
    assert result.outcomes[0].asides == ()
    assert [forward.level for forward in result.forwards] == ["target"]
