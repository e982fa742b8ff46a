"""A row that looks up first and drafts where that finds nothing: chosen where it is best, and learnt from as what it is."""

import statistics

import pytest

from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.lookups import Calls
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import FixedPolicy, RowObservation, Trial
from specrouter_llm.scheduling.rows import PATIENCE, RowMemory
from specrouter_llm.scheduling.simulation import SimulatedLookup, SimulatedModel, SimulatedPool, Simulator
from specrouter_llm.scheduling.sweep import calibration, requests

LOOKUP, DRAFTS = Plan(("ngram", "target"), (8,), (1, 1)), Plan.chain(["a", "target"], [4])
EITHER = Plan.either(LOOKUP, DRAFTS)
POOL = SimulatedPool(
    {"a": SimulatedModel(0.0002, 0.00002, 0.7), "target": SimulatedModel(0.015, 0.0008)},
    {"ngram": SimulatedLookup(0.5, 0.97, 0.92)},
    overhead=0.0005,
)
"""Lookup finds something half of the time and is right for long then; the drafter is cheap and often wrong."""


def policy_of(deferred=False):
    return AdaptivePolicy(list(POOL.models), list(POOL.lookups), calibration(POOL), deferred=deferred)


def pace(policy, tokens=6000):
    return Simulator(POOL, requests(40, 200), slots=1).run(policy, tokens)


def test_the_pair_is_better_than_both_and_is_found():
    """Against every chain of the pool, and as good as the best pair."""
    windows = (2, 4, 6, 8, 12)
    chains = [Plan.chain([name, "target"], [w]) for name in ("a", "ngram") for w in windows]
    chains += [Plan.chain(["ngram", "a", "target"], [v, w]) for v in (4, 8) for w in windows]
    pairs = [
        Plan.either(Plan.chain(["ngram", "target"], [v]), Plan.chain(["a", "target"], [w]))
        for v in (8, 12)
        for w in windows
    ]
    best_chain, best_pair = (min(pace(FixedPolicy(plan)) for plan in plans) for plans in (chains, pairs))
    assert best_pair < 0.95 * best_chain
    policy = policy_of()
    assert pace(policy) <= 1.03 * best_pair
    told = policy.explain()
    assert all(plan.lookup_first for plan in told.chosen)
    assert told.probes < 12  # what a pair runs anyway is not tried beside it
    assert told.candidates[0].plan.lookup_first
    (finds,) = policy.similarity._workload[0].lookups.hits[:, 0] / policy.similarity._workload[0].lookups.total[:, 0]
    assert finds == pytest.approx(0.5, abs=0.06)
    assert policy.similarity.alpha("a", "target") == pytest.approx(0.7, abs=0.06)


def test_a_batch_has_no_pairs_and_what_one_held_is_priced():
    """A row alone looks up first; where others come, all take what the search finds for a batch."""
    policy = policy_of()
    simulator = Simulator(POOL, requests(1, 2000), slots=1)
    simulator.run(policy, 600)
    assert policy.explain().chosen[0].lookup_first
    simulator.waiting, simulator._slots = requests(4, 300)[1:], 4
    paces = [simulator.run(policy, 100) for _ in range(8)]
    assert not any(plan.lookup_first for plan in policy.explain().chosen)
    assert statistics.median(paces) < simulator.pool.models["target"].first


def observed(plan, *trials):
    return RowObservation(0, plan, trials, 1, False)


@pytest.mark.parametrize(
    ("row", "remaining", "planned", "expected"),
    [
        (observed(LOOKUP, Trial("ngram", "target", 5, 3)), 100, EITHER, Calls([5], 0, 1)),
        (observed(DRAFTS, Trial("a", "target", 4, 3)), 100, EITHER, Calls([], 1, 0)),
        (observed(DRAFTS, Trial("a", "target", 4, 3)), 100, DRAFTS, Calls([], 0, 0)),
        (observed(Plan(("target",))), 1, EITHER, Calls([], 0, 0)),
        (observed(DRAFTS, Trial("a", "target", 4, 3)), 100, None, Calls([], 0, 0)),
    ],
)
def test_a_lookup_that_found_nothing_is_a_miss(row, remaining, planned, expected):
    """It was asked, but for the last token, which nobody drafts."""
    assert Calls.of("ngram", row, remaining, planned) == expected


@pytest.mark.parametrize(("run", "blocked"), [(LOOKUP, set()), (DRAFTS, set()), (Plan(("target",)), {"a"})])
def test_only_what_should_have_run_counts_as_left_out(run, blocked):
    """Where the lookup found something, no drafter was to run, and the other way round."""
    row = RowMemory()
    for step in range(PATIENCE + 20):
        row.observe(EITHER, observed(run), 10 + step)
    assert row.blocked == blocked
    assert row.seen.keys() == set(run.levels)
