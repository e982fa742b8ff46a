"""What is tried of what does not run: the least known first, and nothing is forgotten because rows are short."""

import random

import pytest

from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.probing import most_telling
from specrouter_llm.scheduling.search import Candidate
from specrouter_llm.scheduling.simulation import SimulatedModel, SimulatedPool, SimulatedRow, Simulator
from specrouter_llm.scheduling.sweep import calibration

MODELS = ("a", "b", "c", "target")


def chain(*levels):
    return Candidate(Plan.chain([*levels, "target"], [2] * len(levels)), 1.0)


def test_chains_with_the_least_known_level_come_first():
    """Of those with the same one the chains of few models, lookups not counted, and else the most hopeful."""
    known = {"ngram": 500.0, "a": 900.0, "b": 13.0, "c": 40.0}
    chains = [
        chain("a", "c"),
        chain("a", "b", "c"),
        chain("c"),
        chain("ngram", "a"),
        chain("ngram", "b"),
        chain("a", "b"),
    ]
    order = ["ngram > b", "a > b", "a > b > c", "c", "a > c", "ngram > a"]
    found = [" > ".join(one.plan.levels[:-1]) for one in most_telling(chains, known, MODELS)]
    assert found == order
    assert most_telling(chains[::-1], known, MODELS)[-1] == chain("ngram", "a")


@pytest.mark.parametrize("seed", range(20))
def test_every_hopeful_chain_has_its_turn(seed):
    """Nothing is lost, and what is tried alone is tried last the next time if it has taught more than the others."""
    rng = random.Random(seed)
    chains = [chain(*sorted(rng.sample("abc", rng.randint(1, 3)))) for _ in range(6)]
    known = {level: rng.uniform(0, 100) for level in "abc"}
    found = most_telling(chains, known, MODELS)
    assert sorted(map(str, found)) == sorted(map(str, chains))
    least = min(known, key=known.__getitem__)
    with_it = [least in one.plan.levels for one in found]
    assert with_it == sorted(with_it, reverse=True)
    known[least] = 1000.0
    alone = [one for one in most_telling(chains, known, MODELS) if one.plan.levels[:-1] == (least,)]
    assert not alone or most_telling(chains, known, MODELS)[-1] == alone[-1]


def test_a_level_that_looked_hopeless_is_tried_again_though_rows_are_short():
    """The better drafter was of no use at first; rows of 40 tokens end before one of them could have missed it for long."""

    def pool(quality):
        models = {
            "a": SimulatedModel(0.004, 0.00012, 0.5),
            "b": SimulatedModel(0.006, 0.00018, quality),
            "target": SimulatedModel(0.05, 0.0015),
        }
        return SimulatedPool(models, overhead=0.0005)

    policy = AdaptivePolicy(["a", "b", "target"], [], calibration(pool(0.02)))
    simulator = Simulator(pool(0.02), [SimulatedRow(number, 20, 40) for number in range(200)], slots=1)
    simulator.run(policy, 4000)
    simulator.pool = pool(0.97)
    simulator.run(policy, 2000)
    assert "b" in policy.explain().chosen[0].levels
