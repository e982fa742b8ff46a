"""Lookups that do not run are known all the same: they are asked beside what runs, at no cost in tokens."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.lookups import ASIDE_SHARE, OFTEN, SELDOM, Asides, Calls
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Aside, AskingPolicy, Forward, RowObservation, StepObservation
from specrouter_llm.scheduling.simulation import SimulatedLookup, SimulatedModel, SimulatedPool, Simulator
from specrouter_llm.scheduling.sweep import calibration, requests

DRAFTS = Plan.chain(["a", "target"], [4])


def pool_of(hit=0.6, stay=0.9, quality=0.8):
    models = {"a": SimulatedModel(0.0002, 0.00002, 0.9), "target": SimulatedModel(0.012, 0.0008)}
    return SimulatedPool(models, {"ngram": SimulatedLookup(hit, stay, quality)}, overhead=0.0005)


def policy_of(pool):
    return AdaptivePolicy(list(pool.models), list(pool.lookups), calibration(pool))


class Drafting(AdaptivePolicy):
    """Learns, and lets the drafter draft all the same."""

    def plan(self, rows):
        super().plan(rows)
        return [DRAFTS] * len(rows)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize(("hit", "stay", "quality"), [(0.3, 0.95, 0.9), (0.8, 0.7, 0.4)])
def test_a_lookup_that_never_runs_is_estimated_right(hit, stay, quality, slots):
    """How often it proposes, how long it goes on and how often it is right, with no bias by where steps end."""
    pool = pool_of(hit, stay, quality)
    policy = Drafting(list(pool.models), list(pool.lookups), calibration(pool))
    Simulator(pool, requests(24, 400), slots=slots).run(policy, 9000)
    counts = policy.similarity._workload[0].lookups
    hits, stays = (counts.hits / counts.total)[0]
    assert hits == pytest.approx(hit, abs=0.07)
    assert stays == pytest.approx(stay, abs=0.05)
    assert policy.similarity.alpha("ngram", "target") == pytest.approx(quality, abs=0.07)


def test_a_lookup_that_was_of_no_use_is_found():
    """A text that repeats nothing at first, and later all of it: in most runs within 100 tokens. Who waits for a probe has not
    found it after 400 in two of three."""
    pool, later = pool_of(hit=0.02), pool_of(hit=0.98, stay=0.99, quality=0.99)
    found = []
    for seed in range(12):
        policy = policy_of(pool)
        simulator = Simulator(pool, requests(20, 400), slots=1, seed=seed)
        simulator.run(policy, 2000)
        before = policy.explain().chosen[0].levels
        simulator.pool = later
        simulator.run(policy, 100)
        found.append(before == DRAFTS.levels and policy.explain().chosen[0].levels[0] == "ngram")
    assert sum(found) >= 7


def observed(asides, seconds=0.01, spent=1e-5):
    rows = (RowObservation(0, DRAFTS, (), 1, False, asides=asides),)
    return StepObservation(rows, (Forward("ngram", 1, 1, 0, spent), Forward("target", 1, 5, 50, 0.01)), seconds)


def steps_asked(asides, number, spent=1e-5):
    """The steps of so many in which the level is asked."""
    found = []
    for step in range(number):
        due = asides.due(step)
        found += [step] * due
        asides.observe(observed((Aside("ngram", 8, 3),) if due else (), spent=spent), step + 1)
    return found


def test_often_at_first_and_seldom_later():
    found = steps_asked(Asides(["ngram"]), 2000)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert gaps[: OFTEN - 1] == [1] * (OFTEN - 1)
    assert gaps == sorted(gaps)
    assert max(gaps) == SELDOM + 1


@given(st.floats(1e-6, 1.0))
def test_a_slow_lookup_is_asked_so_seldom_that_it_costs_next_to_nothing(spent):
    found = steps_asked(Asides(["ngram"]), 3000, spent)
    assert (len(found) - 1) * spent <= ASIDE_SHARE * 3000 * 0.01 + spent


def test_where_all_rows_use_it_the_next_one_that_does_not_is_asked_at_once():
    asides = Asides(["ngram"])
    for step in range(50):
        assert asides.due(step)
        asides.observe(observed(()), step + 1)
    assert not Asides([]).due(0)


def test_only_steps_that_the_policy_planned_are_asked_in():
    pool = pool_of()
    policy = policy_of(pool)
    assert isinstance(policy, AskingPolicy)
    assert policy.asides() == ()
    policy.plan([requests(1, 10)[0].view()])
    assert policy.asides() == ("ngram",)


def test_calls_beside_what_runs():
    """A miss leaves no proposal; one that is shorter than what was asked has ended by itself."""
    asides = Aside("ngram", 8, 3), Aside("other", 8, 8)
    row = RowObservation(0, DRAFTS, (), 2, False, asides=asides)
    assert Calls.of("ngram", row, 50, DRAFTS) == ([3], 0, 1)
    assert Calls.of("other", row, 50, DRAFTS) == ([8], 0, 0)
    nothing = RowObservation(0, DRAFTS, (), 2, False, asides=(Aside("ngram", 8, 0),))
    assert Calls.of("ngram", nothing, 50, DRAFTS) == ([], 1, 0)


def test_routing_is_no_worse_for_it():
    """Ten random lookups beside a drafter: asked and not asked, the mean time per token."""
    ratios = []
    for seed in range(10):
        rng = random.Random(seed)
        pool = pool_of(rng.uniform(0.1, 0.9), rng.uniform(0.6, 0.99), rng.uniform(0.2, 0.95))
        paces = []
        for asks in (True, False):
            policy = policy_of(pool)
            if not asks:
                policy.asides = tuple
            paces.append(Simulator(pool, requests(10, 200), slots=1, seed=seed).run(policy, 2000))
        ratios.append(paces[1] / paces[0])
    assert sum(ratios) / len(ratios) > 0.995
