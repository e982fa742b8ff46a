"""Intervals on data whose answer is known."""

import random
import statistics

import pytest

from specrouter_llm.bench.bootstrap import Interval, median_of_ratios, ratio_of_sums


def test_no_spread_gives_no_interval():
    """Equal entries leave nothing to resample."""
    assert Interval(0.5, 0.5, 0.5) == ratio_of_sums([1, 2, 3], [2, 4, 6])
    assert Interval(2.0, 2.0, 2.0) == median_of_ratios([2, 4, 8], [1, 2, 4])


def test_a_rate_weighs_prompts_by_their_positions():
    """The figure is a ratio of sums, not a mean of ratios."""
    assert 0.75 == ratio_of_sums([0, 3], [1, 3]).value


def test_a_median_is_not_moved_by_one_outlier():
    """One pair that was interrupted does not matter."""
    interval = median_of_ratios([1.0] * 20 + [50.0], [1.0] * 21)
    assert Interval(1.0, 1.0, 1.0) == interval


def test_the_interval_has_the_width_of_the_sampling_error():
    """For a mean of n independent values the 95 % interval is about 1.96 standard errors to each side."""
    generator = random.Random(1)
    values = [generator.gauss(10, 2) for _ in range(400)]
    interval = ratio_of_sums(values, [1.0] * 400)
    half = 1.96 * statistics.stdev(values) / 20
    assert interval.value == pytest.approx(statistics.fmean(values))
    assert interval.high - interval.value == pytest.approx(half, rel=0.15)
    assert interval.value - interval.low == pytest.approx(half, rel=0.15)


def test_the_same_data_give_the_same_interval():
    """Resampling has a seed of its own and touches no global state."""
    random.seed(5)
    before = random.getstate()
    first, second = (ratio_of_sums([1, 5, 2, 7], [3, 6, 4, 9]) for _ in range(2))
    assert first == second
    assert before == random.getstate()
