"""Trials of other windows: what other numbers of tokens cost is seen, at a price that is known before."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.curve import News
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Forward, RowView
from specrouter_llm.scheduling.pricing import price
from specrouter_llm.scheduling.similarity import MAX_WINDOW
from specrouter_llm.scheduling.simulation import SimulatedModel, SimulatedPool, SimulatedRow, Simulator
from specrouter_llm.scheduling.sweep import calibration
from specrouter_llm.scheduling.trials import (
    PLAIN_AGAIN,
    PLAIN_LASTING,
    PLAIN_RENEWED,
    PLAIN_STEPS,
    REGRET,
    SCALES,
    WINDOW_LATEST,
    WINDOW_SOON,
    WINDOW_STEPS,
    PlainTrials,
    Trials,
    WindowTrials,
    resized,
    scaled,
)

PLAIN = Plan(("target",))


@dataclass(frozen=True, slots=True)
class Roofline(SimulatedModel):
    """A forward waits for memory, or for arithmetic, whichever takes longer."""

    def seconds(self, tokens, context, rows=1):
        return max(self.first, self.each * tokens)


def pool(memory):
    """A target that reads its weights in so many seconds and takes 1.9 ms for a token's arithmetic."""
    models = {"a": SimulatedModel(0.0004, 0.00001, 0.86), "target": Roofline(memory, 0.0019)}
    return SimulatedPool(models, overhead=0.0004)


def windows(policy, simulator, steps):
    """What stands after so many steps more."""
    simulator.run(policy, 10**9, steps=steps)
    return policy.explain().chosen[0].window


def test_memory_that_became_faster_or_slower_is_noticed():
    """With fast memory five tokens take a third less, and eleven as long as ever: who feeds eleven has to look. With slow
    memory they cost the same, which who feeds five does not see either. Within 900 steps, nine times of ten."""
    noticed = []
    for seed in range(6):
        policy = AdaptivePolicy(["a", "target"], [], calibration(pool(0.02)))
        simulator = Simulator(pool(0.02), [SimulatedRow(0, 64, 10**9)], seed=seed)
        for memory in (0.02, 0.008, 0.02, 0.008):
            simulator.pool = pool(memory)
            found = windows(policy, simulator, 900)
            noticed.append(found < 6 if memory < 0.01 else found > 6)
    assert sum(noticed) >= 0.8 * len(noticed)  # 0.90 of 440 were


class Busy(Simulator):
    """Something else runs on the host now and then."""

    busy = False

    def noisy(self):
        return super().noisy() * (1.5 if self.busy else 1.0)


def test_a_moment_in_which_the_host_is_busy_changes_nothing():
    """Ten steps take half as much again, as they may on a shared host every few seconds. If that were taken for the price of
    eleven tokens, five would be fed from then on, and nothing would show that eleven cost what they did before."""
    kept = []
    for seed in range(8):
        policy = AdaptivePolicy(["a", "target"], [], calibration(pool(0.02)))
        simulator = Busy(pool(0.02), [SimulatedRow(0, 64, 10**9)], seed=seed, noise=0.02)
        windows(policy, simulator, 300)
        for _ in range(4):
            before = windows(policy, simulator, 50)
            simulator.busy = True
            windows(policy, simulator, 10)
            simulator.busy = False
            kept.append(abs(windows(policy, simulator, 20) - before) <= 1)
    assert sum(kept) >= 0.9 * len(kept)


def test_no_device_tries_windows():
    """It may have to record a graph for what it never ran."""
    trials = Trials(windows=False)
    plans = [Plan.chain(["a", "target"], [4])]
    assert not any(trials.due(1, step) or trials.plans(plans, None, step) for step in range(4 * WINDOW_LATEST))


@pytest.fixture(scope="module")
def estimates():
    policy = AdaptivePolicy(["a", "target"], [], calibration(pool(0.02)), {("a", "target"): 0.8})
    return {rows: policy._estimates([RowView(i, 64, 300, 0.0) for i in range(rows)]) for rows in (1, 2, 3, 4, 7, 8, 16)}


@given(st.lists(st.integers(1, MAX_WINDOW), min_size=1, max_size=3).filter(lambda some: len(some) != 2))
def test_what_is_tried_is_the_same_chain_and_costs_little(estimates, sizes):
    """Fewer tokens, more, none in turn, where that loses no more than a fifth of a step by all that is known."""
    standing = [Plan(("a", "target"), (size,), (max(sizes), 1)) for size in sizes]
    tokens, seconds = price(standing, estimates[len(sizes)])
    trials, tried = WindowTrials(), []
    for step in range(8 * WINDOW_LATEST):
        plans = trials.plans(standing, estimates[len(sizes)], step)
        if plans is None:
            continue
        tried.append(step)
        assert plans != tuple(standing)
        assert all(plan.levels == ("a", "target") or plan == PLAIN for plan in plans)
        ways = {(plan.window > size) - (plan.window < size) for plan, size in zip(plans, sizes, strict=True)} - {0}
        assert len(ways) == 1, "all rows feed fewer tokens, or all more"
        tried_tokens, tried_seconds = price(plans, estimates[len(sizes)])
        assert tried_seconds - tried_tokens * seconds / tokens <= REGRET * seconds
    assert tried[:6] == [16, 32, 64, 128, 256, 512][: len(tried)]
    assert len(tried) < 8 + 6


@given(st.lists(st.integers(1, MAX_WINDOW), min_size=1, max_size=6), st.sampled_from(SCALES))
def test_rows_that_are_drafted_for_together_stay_together(sizes, scale):
    """One draft phase, as long as the longest window needs, whatever the windows are; plain rows stay plain."""
    shared = [Plan(("a", "target"), (size,), (max(sizes), 1)) for size in sizes]
    found = resized([*shared, PLAIN], scale)
    assert found[-1] == PLAIN
    assert [plan.window for plan in found[:-1]] == [scaled(size, scale) for size in sizes]
    if scale:
        assert {plan.rounds for plan in found[:-1]} == {(scaled(max(sizes), scale), 1)}
    else:
        assert set(found) == {PLAIN}


def test_rounds_of_a_middle_level_grow_with_its_window_and_stay_where_that_cannot_grow():
    plan = Plan(("a", "b", "target"), (3, 16), (3, 6, 1))
    assert resized([plan], SCALES[1]) == (plan,)
    assert resized([plan], SCALES[0]) == (Plan(("a", "b", "target"), (3, 11), (3, 5, 1)),)
    lookup = Plan(("n", "target"), (8,), (1, 1))
    assert resized([lookup], SCALES[1]) == (Plan(("n", "target"), (11,), (1, 1)),)


def forward(tokens, rows=1):
    return Forward("target", rows, tokens, 100, 0.02)


def test_what_took_much_less_time_is_tried_once_more_at_once(estimates):
    """What took more may have met an accident, and is not what would be run instead."""
    standing = (Plan.chain(["a", "target"], [6]),)
    trials, step = Trials(windows=True), WINDOW_STEPS
    first = trials.plans(standing, estimates[1], step)
    assert first == (Plan.chain(["a", "target"], [4]),)
    assert trials.plans(standing, estimates[1], step + 1) is None
    trials.learnt(forward(7), News.FAST, tried=False, step=step + 1)
    trials.learnt(forward(5), News.NONE, tried=True, step=step + 1)
    assert not trials.due(1, step + 1)
    trials.learnt(forward(5), News.FAST, tried=True, step=step + 1)
    assert trials.plans(standing, estimates[1], step + 1) == first
    assert not trials.due(1, step + WINDOW_STEPS)
    assert trials.plans(standing, estimates[1], step + 1 + WINDOW_STEPS) == (Plan.chain(["a", "target"], [8]),)


@pytest.mark.parametrize("tried", [False, True])
def test_a_machine_that_has_changed_is_looked_at_soon(tried):
    trials = Trials(windows=True)
    trials.learnt(forward(7), News.CHANGED, tried=tried, step=10)
    assert next(step for step in range(20) if trials.due(1, step)) == 10 + WINDOW_SOON


def test_after_a_change_all_scales_have_their_turn_within_a_few_steps(estimates):
    """Who feeds few tokens has to see what more cost now, and who feeds many what fewer do."""
    trials, standing = Trials(windows=True), (Plan.chain(["a", "target"], [4]),)
    trials.learnt(forward(7), News.CHANGED, tried=False, step=10)
    tried = [step for step in range(10, 60) if trials.plans(standing, estimates[1], step) is not None]
    assert tried == [10 + WINDOW_SOON * wait for wait in (1, 2, 4, 8)]


def test_all_scales_have_their_turn_even_where_one_would_lose_too_much(estimates):
    standing = (Plan.chain(["a", "target"], [8]),)
    trials, tried = WindowTrials(), []
    for step in range(8 * WINDOW_LATEST):
        plans = trials.plans(standing, estimates[1], step)
        tried.extend(plan.window for plan in plans or ())
    assert set(tried) == {6, 11}, "plain decoding would lose more"


@given(st.integers(0, MAX_WINDOW))
def test_other_windows_are_other_ones_where_there_are_any(window):
    fewer, more, none = (scaled(window, scale) for scale in SCALES)
    assert none == 0
    if window:
        assert fewer < window or fewer == window == 1
        assert more > window or more == window == MAX_WINDOW
        assert 1 <= fewer <= more <= MAX_WINDOW
    else:
        assert fewer == more == 0


def of_rows(rows):
    """Plain trials of a batch that has had so many rows for long enough."""
    trials = PlainTrials()
    trials.ran(rows, -PLAIN_LASTING)
    return trials


def test_plain_trials_wait_longer_after_each_that_showed_nothing(estimates):
    """Where a prompt is taken in at every step, batches are not decoded plainly for ever."""
    trials = of_rows(16)
    standing = [Plan.chain(["a", "target"], [4])] * 16
    tried = [step for step in range(2000) if trials.plans(standing, estimates[16], step)]
    assert [0, 4, 12, 28] == tried[:4]
    assert len(tried) < 14
    trials.seen(16, 2000)
    assert trials.due(16, 2001)
    assert not trials.due(1, 2001)


def test_plain_trials_wait_for_somebody_who_drafts(estimates):
    trials = of_rows(8)
    assert not any(trials.plans([PLAIN] * 8, estimates[8], step) for step in range(1600))
    assert trials.plans([Plan.chain(["a", "target"], [4])] * 8, estimates[8], 1600) == (PLAIN,) * 8


def test_plain_trials_wait_until_a_number_of_rows_lasts(estimates):
    """The last rows of many are gone before it could be of use."""
    trials, standing = PlainTrials(), {rows: [Plan.chain(["a", "target"], [4])] * rows for rows in (2, 4, 7, 8)}
    for step in range(41):  # rows come and go: now it is this many, now that
        rows = 8 if step % PLAIN_LASTING else 4
        trials.ran(rows, step)
        assert trials.plans(standing[rows], estimates[rows], step + 1) is None
    tried = []
    for step in range(41, 60):  # seven and eight are nearly as many
        rows = 7 + step % 2
        trials.ran(rows, step)
        tried += [step] * (trials.plans(standing[rows], estimates[rows], step + 1) is not None)
    assert tried[0] == 40 + PLAIN_LASTING
    assert trials.plans(standing[2], estimates[2], 61) is None


def test_a_plain_step_that_took_much_less_time_is_repeated(estimates):
    trials = Trials(windows=False)
    standing = [Plan.chain(["a", "target"], [4])] * 8
    trials.learnt(forward(40, 8), News.NONE, tried=False, step=-PLAIN_LASTING)
    for step in range(PLAIN_STEPS):
        assert trials.plans(standing, estimates[8], step) == (PLAIN,) * 8
        trials.learnt(forward(8, 8), News.NONE, tried=True, step=step)
    assert trials.plans(standing, estimates[8], PLAIN_STEPS) is None
    late = PLAIN_STEPS + PLAIN_AGAIN
    assert trials.plans(standing, estimates[8], late) == (PLAIN,) * 8
    trials.learnt(forward(8, 8), News.FAST, tried=True, step=late)
    assert trials.plans(standing, estimates[8], late + 1) == (PLAIN,) * 8
    trials.learnt(forward(8, 8), News.CHANGED, tried=True, step=late + 1)
    assert trials.plans(standing, estimates[8], late + 2) is None


def test_no_plain_trial_where_it_would_lose_much(estimates):
    """Two rows gain so much by drafts that no change of the machine would make plain decoding the better way."""
    trials, standing = of_rows(2), [Plan.chain(["a", "target"], [4])] * 2
    assert trials.due(2, 1)
    assert trials.plans(standing, estimates[2], 1) is None
    tokens, seconds = price(standing, estimates[2])
    assert estimates[2].plain_seconds - 2 * seconds / tokens > REGRET * seconds
    assert not trials.due(2, 2)


def test_a_batch_that_begins_anew_is_looked_at_once_and_not_where_rows_are_short():
    """However few steps it has lasted; but not again so soon that the looks would cost much."""
    trials = PlainTrials()
    trials.ran(8, 10)
    for _ in range(PLAIN_STEPS):
        trials.seen(8, 10)
    first = 10 + PLAIN_RENEWED
    assert not trials.due(8, first)
    trials.ran(1, first - 1)
    trials.renewed(8, first)
    assert trials.due(8, first)
    trials.seen(8, first)
    assert not trials.due(8, first + PLAIN_LASTING)
    trials.renewed(8, first + PLAIN_RENEWED - 1)
    assert not trials.due(8, first + PLAIN_RENEWED - 1)


def batch(policy, memory, number):
    """Eight rows of 48 tokens that come together: the share of the steps of all eight, but the first, that were plain. That one
    takes their prompts in."""
    simulator = Simulator(
        pool(memory), [SimulatedRow(8 * number + i, 64, 48) for i in range(8)], slots=8, seed=number, noise=0.02
    )
    plain = []

    class Watched:
        def plan(self, rows):
            plans = policy.plan([row._replace(row_id=row.row_id + 8 * number) for row in rows])
            if len(rows) == 8:
                plain.append(all(plan == PLAIN for plan in plans))
            return plans

        def observe(self, step):
            rows = tuple(row._replace(row_id=row.row_id + 8 * number) for row in step.rows)
            prompts = (Forward("target", 8, 8 * 64, 8 * 64, 1.0, longest=64),)
            policy.observe(step._replace(rows=rows, forwards=step.forwards if plain[1:] else prompts))

    simulator.run(Watched(), 10**9)
    return sum(plain[1:]) / (len(plain) - 1)


def test_memory_that_became_faster_between_two_batches_is_noticed():
    """Drafting for eight rows feeds as many tokens as before, which take as long as before; plain steps take a quarter less.
    Where one was looked at just before the change, the first batch, of 24 steps, is over before the next look."""
    at_once = []
    for first in range(0, 60, 10):
        policy = AdaptivePolicy(["a", "target"], [], calibration(pool(0.02)))
        slow = [batch(policy, 0.02, number) for number in range(first, first + 6)]
        fast = [batch(policy, 0.008, number) for number in range(first + 6, first + 9)]
        assert max(slow[1:]) < 0.2
        assert min(fast[1:]) > 0.6
        at_once.append(fast[0] > 0.6)
    assert sum(at_once) >= 3
