"""What steps take beside their forwards: drafting pays for its searches, plain decoding does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.scheduling.overhead import LAST, Overhead

KINDS = {"drafted": True, "plain": False}


def both(overhead):
    return overhead.seconds(drafted=True), overhead.seconds(drafted=False)


def test_nothing_seen_is_what_was_given():
    assert both(Overhead(0.002)) == (0.002, 0.002)


@pytest.mark.parametrize("drafted", KINDS.values(), ids=KINDS)
def test_a_kind_that_was_never_seen_is_like_the_other(drafted):
    overhead = Overhead(0.5)
    for _ in range(3):
        overhead.observe(0.001, 0.002, drafted=drafted)
    assert both(overhead) == pytest.approx((0.003, 0.003))


def test_searches_are_charged_to_drafting_alone():
    """One step of four is searched for, as is the only plain one; plain decoding costs what a step without a search does."""
    overhead = Overhead()
    for step in range(3 * LAST):
        overhead.observe(0.0015 if step % 4 == 0 else 0.0005, 0.0003, drafted=step != 2 * LAST)
    drafted, plain = both(overhead)
    assert drafted == pytest.approx(0.00075 + 0.0003)
    assert plain == pytest.approx(0.0005 + 0.0003)


@pytest.mark.parametrize("drafted", KINDS.values(), ids=KINDS)
def test_what_is_done_within_a_step_is_charged_to_its_kind(drafted):
    overhead = Overhead()
    for _ in range(3):
        overhead.observe(0.0005, 0.001, drafted=drafted)
        overhead.observe(0.0005, 0.002, drafted=not drafted)
    assert overhead.seconds(drafted=drafted) == pytest.approx(0.0015)
    assert overhead.seconds(drafted=not drafted) == pytest.approx(0.0025)


def test_an_accident_is_no_rule():
    overhead = Overhead()
    for step in range(LAST):
        overhead.observe(0.5 if step == 7 else 0.0005, 0.5 if step == 9 else 0.0005, drafted=True)
    assert overhead.seconds(drafted=True) < 0.0012


def test_what_is_long_ago_is_forgotten():
    overhead = Overhead()
    for seconds in (0.004, 0.001):
        for _ in range(LAST):
            overhead.observe(seconds, seconds, drafted=True)
            overhead.observe(seconds, 0.0, drafted=False)
    assert both(overhead) == pytest.approx((0.002, 0.001))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-0.001, 1), st.booleans()), min_size=1, max_size=80))
def test_no_more_than_the_dearest_step_and_never_negative(steps):
    """Also where clocks disagree about what was in a step."""
    overhead = Overhead()
    for between, within, drafted in steps:
        overhead.observe(between, within, drafted=drafted)
    dearest = max(between for between, _, _ in steps) + max(max(within, 0.0) for _, within, _ in steps)
    assert all(0 <= seconds <= dearest + 1e-9 for seconds in both(overhead))
