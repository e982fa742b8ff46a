"""What two levels agree on: bounds that hold whatever was counted, and what is counted in a running chain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.scheduling.agreement import Agreement
from specrouter_llm.scheduling.counts import Memory
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import FixedPolicy
from specrouter_llm.scheduling.similarity import Similarity
from specrouter_llm.scheduling.simulation import SimulatedLookup, SimulatedModel, SimulatedPool, SimulatedRow, Simulator

MEMORY = Memory(2000.0, 100.0, 2000.0)
SHARE = st.floats(0.005, 0.995)


@given(lower=SHARE, middle=SHARE, agree=SHARE, right=st.integers(0, 200), wrong=st.integers(0, 200))
def test_a_rate_leaves_a_rate_where_they_do_not_agree(lower, middle, agree, right, wrong):
    """Whatever is known and was counted, both are chances, and together the middle level is right as often as it is."""
    agreement = Agreement(2, 2, 1, MEMORY)
    agreement.counts.add((0, 0), right, wrong, 0)
    rate = agreement.rates(np.array([[agree, lower], [0.5, middle]]))[0, 0]
    differing = (middle - agree * rate) / (1 - agree)
    assert -1e-9 <= rate <= 1 + 1e-9
    assert -1e-9 <= differing <= 1 + 1e-9


@given(st.lists(st.integers(1, 100), min_size=4, max_size=4), st.integers(1, 100))
def test_the_prior_is_that_of_independent_mistakes(counts, both_right):
    """Of a joint table of who is right, with mistakes that never agree; no less than what the middle level says by itself."""
    lower_only, middle_only, neither, _ = counts
    total = lower_only + middle_only + neither + both_right
    lower, middle, agree = (lower_only + both_right) / total, (middle_only + both_right) / total, both_right / total
    rate = Agreement(2, 2, 1, MEMORY).rates(np.array([[agree, lower], [0.5, middle]]))[0, 0]
    assert rate == pytest.approx(min(max(lower * middle / agree, middle), 1.0))


def test_of_levels_that_nobody_has_seen_agreement_says_nothing():
    """Else chains of unknown levels would look better than what they are made of."""
    seen = Similarity(["a", "b", "target"], ["ngram"]).acceptance([(0, 0)])
    assert seen.agreed == pytest.approx(seen.target[0, 1:] * np.ones((3, 1)))


@pytest.mark.parametrize(
    "plan", [Plan.chain(["a", "b", "target"], [3, 8]), Plan.chain(["ngram", "b", "target"], [4, 8])]
)
def test_the_rate_is_found_in_a_running_chain(plan):
    """By the choices themselves at many places: models that share their mistakes agree on wrong tokens, too."""
    models = {
        "a": SimulatedModel(0.001, 0.0, 0.5, 0.9),
        "b": SimulatedModel(0.004, 0.0, 0.6, 0.9),
        "target": SimulatedModel(0.03, 0.0),
    }
    pool = SimulatedPool(models, {"ngram": SimulatedLookup(0.6, 0.8, 0.7)})
    similarity = Similarity(list(models), ["ngram"])
    simulator = Simulator(pool, [SimulatedRow(0, 64, 10**6)])

    class Watching(FixedPolicy):
        def observe(self, step):
            for row in step.rows:
                similarity.observe(row.row_id, 0, row.trials, simulator.steps, row.scores)

    simulator.run(Watching(plan), 8000)
    found = similarity.acceptance([(0, 0)]).agreed[similarity.lower.index(plan.levels[0]), 1]
    if plan.levels[0] == "ngram":  # its mistakes are nobody's
        assert found == pytest.approx(1.0, abs=0.03)
        return
    choices = [tuple(pool.choice(name, context, 1.0) for name in "ab") for context in range(20_000)]
    alike = [a == 0 for a, b in choices if a == b]
    assert 0.55 < sum(alike) / len(alike) < 0.65
    assert found == pytest.approx(sum(alike) / len(alike), abs=0.04)
