"""`completion.stats.route`: what a completion's chains did, and why they were chosen."""

import pytest

from specrouter_llm import SpecRouter
from specrouter_llm.scheduling.policy import FixedPolicy, Reasons
from specrouter_llm.types import RouteCandidate, RouteSwitch


@pytest.fixture(scope="module")
def engine():
    with SpecRouter.from_pretrained("demo", policy="adaptive", max_context=512, progress=False) as engine:
        yield engine


def test_legs_add_up(engine):
    """Every committed token belongs to one leg; the last leg's chains are the engine's levels."""
    completion = engine.generate("def add(a, b):", max_tokens=60, ignore_eos=True)[0]
    route = completion.stats.route
    assert completion.usage.completion_tokens == route.tokens
    assert completion.stats.num_target_steps == route.steps
    assert all(set(leg.levels) <= set(engine.levels) and leg.levels[-1] == engine.target for leg in route.legs)
    assert sorted((leg.tokens for leg in route.legs), reverse=True) == [leg.tokens for leg in route.legs]
    assert 0 < route.measured_seconds_per_token
    assert route.candidates
    predicted = [candidate.predicted_seconds_per_token for candidate in route.candidates]
    assert sorted(predicted) == predicted


def test_a_forced_chain_has_one_leg_and_no_reasons(engine):
    """Nobody chose: there is nothing to explain. The first token is always decoded plainly."""
    chain = ["demo/draft", "demo/target"]
    route = engine.generate("one two", max_tokens=30, ignore_eos=True, chain=chain)[0].stats.route
    assert {("demo/target",), tuple(chain)} == {leg.levels for leg in route.legs}
    assert (route.switches, route.candidates, route.predicted_seconds_per_token) == ((), (), None)


class Talkative(FixedPolicy):
    """A third party's policy with something to say; `broken` makes it fail."""

    broken = False

    def reasons(self, row_id):
        if self.broken:
            raise RuntimeError("no idea")
        switch = RouteSwitch(row_id, ("a",), ("b",), "because", 0.5)
        return Reasons((switch,), (RouteCandidate(("b",), (), 0.1),), 0.1)


@pytest.mark.parametrize("broken", [False, True])
def test_any_policy_may_explain(broken):
    """The protocol is open; a policy that fails to explain costs no answer."""
    from specrouter_llm.scheduling.plan import Plan

    policy = Talkative(Plan(("demo/target",)))
    policy.broken = broken
    with SpecRouter.from_pretrained("demo", policy=policy, max_context=512, progress=False) as engine:
        completion = engine.generate("one", max_tokens=5)[0].raise_for_error()
    assert [s.reason for s in completion.stats.route.switches] == ([] if broken else ["because"])
