"""What is learnt of latencies from several steps: forwards by kind, one behind the other."""

import math

import pytest

from specrouter_llm.scheduling.decision import Decision, Seen, forwards_of
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Forward, StepObservation

PLAIN, DRAFT = Plan(("target",)), Plan.chain(["draft", "target"], [2])


def seen(*forwards, plans=(PLAIN,), reconsidered=False):
    decision = Decision((0,), plans, (PLAIN,), math.nan)
    return Seen(StepObservation((), forwards, 1.0), decision, {}, reconsidered)


def draft(seconds, **kind):
    return Forward("draft", 1, 1, 50, seconds, **kind)


def target(seconds):
    return Forward("target", 1, 3, 60, seconds)


def test_forwards_of_one_kind_come_together_in_order():
    steps = [seen(draft(i), target(10 + i)) for i in range(1, 5)]
    found = {alike[0].level: (alike, tried) for alike, tried in forwards_of(steps, (), "target")}
    assert [forward.seconds for forward in found["draft"][0]] == [1, 2, 3, 4]
    assert [forward.seconds for forward in found["target"][0]] == [11, 12, 13, 14]
    assert not found["target"][1]


def test_several_of_a_kind_in_one_step_are_one():
    """An interruption that hits three drafts of a step is one accident, not three."""
    steps = [seen(draft(1.0), draft(2.0), draft(6.0), target(9.0)), seen(draft(1.0, looped=True, turns=5))]
    found = [alike for alike, _ in forwards_of(steps, (), "target")]
    assert [[forward.seconds for forward in alike] for alike in found] == [[3.0], [9.0], [1.0]]


def test_turns_weigh_as_many_forwards():
    first, later = draft(4.0, looped=True), draft(1.0, looped=True, turns=3)
    (alike,) = [alike for alike, _ in forwards_of([seen(first, later)], (), "target")]
    assert alike[0].seconds == pytest.approx(7.0 / 4)


def test_what_says_little_is_left_out():
    steps = [seen(draft(1.0, shifted=True), target(2.0)), seen(draft(3.0), target(4.0), reconsidered=True)]
    found = [(alike[0].level, [forward.seconds for forward in alike]) for alike, _ in forwards_of(steps, (), "target")]
    assert found == [("target", [2.0]), ("draft", [3.0])]


def test_trials_are_told_apart():
    """Of the target: whether what a trial took was expected is asked of it alone."""
    steps = [seen(target(1.0)), seen(target(2.0), plans=(DRAFT,))]
    found = [([forward.seconds for forward in alike], tried) for alike, tried in forwards_of(steps, (), "target")]
    assert found == [([1.0], False), ([2.0], True)]


def test_lookups_count_by_rows():
    steps = [seen(Forward("ngram", 2, number, 0, 1e-5)) for number in (0, 3, 7)]
    ((alike, _),) = forwards_of(steps, ("ngram",), "target")
    assert [(forward.num_tokens, forward.context) for forward in alike] == [(2, 0)] * 3
