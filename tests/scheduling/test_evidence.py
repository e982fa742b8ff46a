"""Proposals to middle levels, held against what the target committed: evidence about pairs that never met."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.scheduling.evidence import (
    LEAST_SCORED,
    MOST_OF_EACH,
    MOST_SCORED,
    InnerProposal,
    num_scored,
    scores_of,
)
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import FixedPolicy, Score
from specrouter_llm.scheduling.similarity import Similarity
from specrouter_llm.scheduling.simulation import SimulatedLookup, SimulatedModel, SimulatedPool, SimulatedRow, Simulator

TOKENS = st.lists(st.integers(0, 2), max_size=6)


def came_true(tokens, committed):
    """Counted one by one: each token whose whole past is what was committed, if something was committed there."""
    total = matched = 0
    while total < min(len(tokens), len(committed)) and matched == total:
        matched += tokens[total] == committed[total]
        total += 1
    return total, matched


@given(proposal=TOKENS, committed=TOKENS, accepted=st.integers(0, 6))
def test_tokens_count_up_to_the_first_that_did_not_come_true(proposal, committed, accepted):
    """All of them for the level, and for both levels those that the middle one accepted."""
    given = ((proposal, ""), (proposal[:accepted], "b"))
    expected = tuple(
        Score("a", *came_true(tokens, committed), agreed) for tokens, agreed in given if tokens and committed
    )
    assert scores_of([InnerProposal("a", proposal, "b", accepted)], committed) == expected


@pytest.mark.parametrize(
    "plan",
    [
        Plan.chain(["a", "b", "target"], [3, 8]),
        Plan.chain(["ngram", "b", "target"], [4, 8]),
    ],
)
def test_a_level_below_a_middle_one_is_known_to_the_target(plan):
    """Its rate towards the target is found without a single draft for it, however wrong the prior was."""
    models = {
        "a": SimulatedModel(0.001, 0.0, 0.7),
        "b": SimulatedModel(0.004, 0.0, 0.85),
        "target": SimulatedModel(0.03, 0.0),
    }
    pool = SimulatedPool(models, {"ngram": SimulatedLookup(0.6, 0.8, 0.7)})
    lower = plan.levels[0]
    truth = pool.match(lower, "target", 20_000)
    similarity = Similarity(list(models), ["ngram"], {(lower, "target"): 0.2})
    simulator = Simulator(pool, [SimulatedRow(0, 64, 10**6)])

    class Watching(FixedPolicy):
        def observe(self, step):
            for row in step.rows:
                assert all(trial.upper != "target" or trial.lower == "b" for trial in row.trials)
                similarity.observe(row.row_id, 0, row.trials, simulator.steps, row.scores)

    simulator.run(Watching(plan), 6000)
    assert similarity.alpha(lower, "target") == pytest.approx(truth, abs=0.04)


@given(missed=st.integers(0, 100), num_rows=st.integers(1, 64), sampled=st.booleans())
def test_a_batch_is_asked_for_no_more_choices_than_a_few_rows(missed, num_rows, sampled):
    """What a forward is asked for in passing is bounded, and so is the memory of its logits."""
    found = num_scored(missed, num_rows, sampled=sampled)
    assert (found == 0) == (missed < LEAST_SCORED)
    assert found <= missed
    assert num_rows * found <= max(MOST_SCORED, num_rows * MOST_OF_EACH)
    assert not sampled or found <= MOST_OF_EACH
    assert missed < MOST_SCORED or sampled or num_rows > 1 or found == MOST_SCORED
