"""Intervals on data whose answer is known."""

import random
import statistics

import pytest

from specrouter_llm.bench.bootstrap import LEAST, Interval, median_of_ratios, ratio_of_sums


@pytest.mark.parametrize("count", [1, 4, 5])
def test_few_units_have_a_figure_and_no_interval(count):
    """Three prompts span no 95 % of anything; the figure stands alone, on the disk too."""
    values = [float(i) for i in range(1, count + 1)]
    for interval in (ratio_of_sums(values, [1.0] * count), median_of_ratios(values, [1.0] * count)):
        assert (count >= LEAST) == (interval.low is not None) == (interval.high is not None) == ("[" in str(interval))
        assert {"value", "low", "high"} == set(interval.as_dict()) | ({"low", "high"} if count < LEAST else set())
        assert interval.as_dict()["value"] == pytest.approx((count + 1) / 2)
        assert Interval(**interval.as_dict()) == interval


def test_no_spread_gives_no_interval():
    """Equal entries leave nothing to resample."""
    assert Interval(0.5, 0.5, 0.5) == ratio_of_sums([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert Interval(2.0, 2.0, 2.0) == median_of_ratios([2, 4, 8, 16, 32], [1, 2, 4, 8, 16])


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
    first, second = (ratio_of_sums([1, 5, 2, 7, 3], [3, 6, 4, 9, 5]) for _ in range(2))
    assert first == second
    assert before == random.getstate()
