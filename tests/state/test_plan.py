"""Plans: rounds that fill the windows, and what remains without some levels."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.plan import Plan


@pytest.mark.parametrize(
    ("windows", "rounds"),
    [
        ([], (1,)),
        ([4], (4, 1)),
        ([3, 6], (3, 2, 1)),
        ([3, 4], (3, 1, 1)),
        ([1, 5], (1, 3, 1)),
        ([4, 4, 9], (4, 1, 2, 1)),
    ],
)
def test_rounds_are_what_the_windows_need(windows, rounds):
    """A level over v proposed tokens yields v + 1 a round; the lowest yields one; the target runs once."""
    names = [f"m{i}" for i in range(len(windows) + 1)]
    plan = Plan.chain(names, windows)
    assert (plan.levels, plan.windows, plan.rounds) == (tuple(names), tuple(windows), rounds)


@settings(deadline=None, derandomize=True)
@given(windows=st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_rounds_are_enough_and_not_one_more(windows):
    """All accepted, the rounds of each level reach its window, and one round less would not."""
    plan = Plan.chain([str(i) for i in range(len(windows) + 1)], windows)
    for i, window in enumerate(windows):
        yielded = 1 + (windows[i - 1] if i else 0)
        assert plan.rounds[i] * yielded >= window
        assert (plan.rounds[i] - 1) * yielded < window


def test_below_is_the_chain_that_proposes():
    """Peeling off the top keeps the other levels with their windows and rounds."""
    plan = Plan.chain(["a", "b", "c"], [2, 6])
    assert (plan.top, plan.window) == ("c", 6)
    assert plan.below == Plan(("a", "b"), (2,), (2, 2))
    assert plan.below.below == Plan(("a",), (), (2,))
    assert plan.below.below.below is None
    assert plan.below.below.window == 0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (set(), Plan.chain(["a", "b", "c"], [2, 6])),
        ({"a"}, Plan.chain(["b", "c"], [6])),
        ({"b"}, Plan.chain(["a", "c"], [2])),
        ({"a", "b"}, Plan(("c",))),
        ({"c", "zzz"}, Plan.chain(["a", "b", "c"], [2, 6])),
    ],
)
def test_without_leaves_levels_out(names, expected):
    """Each level that remains keeps its own window, rounds are counted anew, the top always remains."""
    assert Plan.chain(["a", "b", "c"], [2, 6]).without(names) == expected


LOOKUP, DRAFTS = Plan(("l", "t"), (8,), (1, 1)), Plan.chain(["a", "b", "t"], [2, 6])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (set(), Plan.either(LOOKUP, DRAFTS)),
        ({"l"}, DRAFTS),
        ({"a"}, Plan.either(LOOKUP, Plan.chain(["b", "t"], [6]))),
        ({"a", "b"}, LOOKUP),
        ({"l", "b"}, Plan.chain(["a", "t"], [2])),
        ({"l", "a", "b"}, Plan(("t",))),
    ],
)
def test_of_two_alternatives_the_one_that_is_left(names, expected):
    """What is looked up first goes, or the drafts do, or levels of them."""
    assert Plan.either(LOOKUP, DRAFTS).without(names) == expected


def test_another_window_leaves_the_rest_as_it_is():
    """And what looks up first goes on to do so."""
    chain = Plan.chain(["a", "b", "t"], [2, 6])
    assert chain.offering(6, 2) == chain
    assert chain.offering(4, 5) == Plan(("a", "b", "t"), (2, 4), (2, 5, 1))
    assert chain.offering(0, 1) == Plan(("t",)).offering(0, 1) == Plan(("t",))
    either = Plan.either(LOOKUP, DRAFTS)
    assert either.offering(3, 2) == Plan.either(LOOKUP, DRAFTS.offering(3, 2))
    assert either.offering(0, 1) == LOOKUP


def test_two_alternatives_are_one_plan():
    """It is another one than the chain through the same levels, and knows what it was made of."""
    either, chain = Plan.either(LOOKUP, DRAFTS), Plan.chain(["l", "a", "b", "t"], [8, 2, 6])
    assert either.levels == chain.levels
    assert (either != chain, either.route != chain.route) == (True, True)
    assert either.alternatives == either.runs == (LOOKUP, DRAFTS)
    assert chain.runs == (chain,)
    assert str(either) == "l[8] or a[2] > b[6] > t"
    assert str(chain) == "l[8] > a[2] > b[6] > t"


@pytest.mark.parametrize(
    ("levels", "windows", "text"),
    [
        ([], [], "at least one level"),
        (["a"], [1], "needs 0 windows"),
        (["a", "b"], [], "needs 1 windows"),
        (["a", "a"], [1], "twice"),
        (["a", "b"], [0], "positive integers, got 0"),
        (["a", "b"], [True], "positive integers, got True"),
        (["a", "b"], [2.0], "positive integers, got 2.0"),
    ],
)
def test_impossible_chains_are_refused(levels, windows, text):
    """The message says what a chain needs."""
    with pytest.raises(InvalidParameterError, match=text):
        Plan.chain(levels, windows)
