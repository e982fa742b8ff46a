"""The adaptive policy of an engine that waits for a device: between two steps it only looks up what it has decided."""

import pytest

from specrouter_llm.scheduling.adaptive import TOGETHER, AdaptivePolicy
from specrouter_llm.scheduling.decision import NEW_ROW, Decision
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.simulation import SimulatedLookup, SimulatedModel, SimulatedPool, Simulator
from specrouter_llm.scheduling.sweep import calibration, requests

PLAIN = Plan(("target",))
POOL = SimulatedPool(
    {"a": SimulatedModel(0.002, 0.0001, 0.8), "target": SimulatedModel(0.05, 0.0005)},
    {"ngram": SimulatedLookup(0.4, 0.8, 0.6)},
    overhead=0.001,
)


def policy_of(deferred, pool=POOL):
    return AdaptivePolicy(list(pool.models), list(pool.lookups), calibration(pool), deferred=deferred)


class Between:
    """Calls `reconsider` while a step is running, and notes what is decided and learnt between two steps."""

    def __init__(self, policy):
        self.policy = policy
        self.plans = []
        self.decided = self.learnt = 0
        self._between = True
        self._decide, self._learn = policy._decide, policy._learn
        policy._decide, policy._learn = self.counted_decide, self.counted_learn

    def counted_decide(self, *given):
        self.decided += self._between
        return self._decide(*given)

    def counted_learn(self):
        self.learnt += self._between and bool(self.policy._seen)
        self._learn()

    def plan(self, rows):
        plans = self.policy.plan(rows)
        self.plans.append(dict(zip([row.row_id for row in rows], plans, strict=True)))
        self._between = False
        self.policy.reconsider()
        self._between = True
        return plans

    def observe(self, step):
        self.policy.observe(step)


def test_nothing_is_decided_between_steps_and_quiet_ones_are_not_learnt_from():
    """Rows come and go all the time; only the first plan had to be made at once."""
    between = Between(policy_of(deferred=True))
    simulator = Simulator(POOL, requests(60, 40), slots=6)
    simulator.run(between, 10**6)
    steps, ended = simulator.steps, 60
    assert between.decided == 1
    assert between.learnt <= ended + between.policy.explain().probes + steps // 20
    waiting = Between(policy_of(deferred=False))
    Simulator(POOL, requests(60, 40), slots=6).run(waiting, 10**6)
    assert waiting.decided > 30
    assert waiting.learnt > between.learnt


def test_a_row_that_has_come_is_plain_for_one_step_and_the_others_go_on():
    """What is decided about it comes into force behind the step that takes in its prompt; the first plan is no switch."""
    between = Between(policy_of(deferred=True))
    Simulator(POOL, requests(40, 60), slots=4).run(between, 10**6)
    before, drafted, kept, told, came = between.plans[30], 0, [], [], False
    for plans, after in zip(between.plans[31:], between.plans[32:], strict=False):
        fresh = plans.keys() - before.keys()
        assert all(plans[row] == PLAIN for row in fresh)
        drafted += sum(after[row] != PLAIN for row in fresh & after.keys())
        if fresh:
            if not came:  # else that what was decided about the one before comes into force
                kept += [plans[row] == before[row] for row in plans.keys() & before.keys()]
            told += [row for row in fresh & after.keys() if after[row] != PLAIN]
        before, came = plans, bool(fresh)
    assert drafted > 20
    assert len(kept) > 40
    assert sum(kept) > 0.8 * len(kept)  # but for what had been decided in the step before
    switches = [switch for row in told for switch in between.policy.reasons(row).switches]
    assert not [switch for switch in switches if switch.reason == NEW_ROW and switch.before == ("target",)]


def test_waiting_costs_little():
    """Seconds per token where rows come and go: within a plain step of each row of what deciding at once takes."""
    paces = []
    for deferred in (False, True):
        simulator = Simulator(POOL, requests(40, 200), slots=4)
        paces.append(simulator.run(Between(policy_of(deferred)), 10**6))
    assert paces[1] <= 1.05 * paces[0]


def test_steps_are_learnt_from_without_an_engine_that_reconsiders():
    """At most a few are kept."""
    policy, kept = policy_of(deferred=True), []

    class Never:
        plan = staticmethod(policy.plan)

        @staticmethod
        def observe(step):
            policy.observe(step)
            kept.append(len(policy._seen))

    Simulator(POOL, requests(4, 200), slots=4).run(Never(), 700)
    assert 0 < max(kept) <= TOGETHER
    assert policy.similarity.alpha("a", "target") != policy_of(deferred=True).similarity.alpha("a", "target")


@pytest.mark.parametrize("fresh", [frozenset(), frozenset({2})])
def test_a_decision_is_carried_to_the_rows_that_are_there(fresh):
    """Known rows keep their standing plans, whatever was tried; rows that nothing was decided for stay so."""
    drafts, tried = Plan.chain(["a", "target"], [4]), Plan.chain(["ngram", "target"], [2])
    standing = (drafts, PLAIN, PLAIN if fresh else drafts)
    decision = Decision((0, 1, 2), (tried, PLAIN, drafts), standing, 0.1, probed=0, fresh=fresh)
    carried = decision.carried((5, 2, 0), PLAIN)
    assert carried.standing == carried.plans == (PLAIN, PLAIN if fresh else drafts, drafts)
    assert carried.fresh == {5} | fresh
    assert carried.by_row == ({0: drafts} if fresh else {0: drafts, 2: drafts})
    assert not carried.tries
