"""Spread: how much a row's own beginning is worth against what other rows have shown."""

import numpy as np
import pytest

from specrouter_llm.scheduling.counts import Counts, Memory
from specrouter_llm.scheduling.policy import Trial
from specrouter_llm.scheduling.similarity import Similarity
from specrouter_llm.scheduling.spread import MOST, STRENGTH, Spread

CELL = (0, 0)


def counted(hits, total):
    counts = Counts((1, 1), Memory(1e9, 24.0, 1e9))
    counts.hits[CELL], counts.total[CELL] = hits, total
    return counts


def learnt(rates, trials, rng):
    """The strength behind rows of these rates."""
    spread, mean = Spread((1, 1)), counted(1e6 * np.mean(rates), 1e6)
    for rate in rates:
        spread.observe(counted(rng.binomial(trials, rate), trials), mean)
    return float(spread.strength()[CELL])


def test_nothing_is_known_before_a_row_has_finished():
    assert Spread((2, 3)).strength() == pytest.approx(np.full((2, 3), STRENGTH))


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_are_alike_lean_on_each_other(seed):
    assert learnt([0.8] * 60, 100, np.random.default_rng(seed)) > 0.75 * MOST


@pytest.mark.parametrize("rates", [(0.2, 0.9), (0.5, 0.8), (0.1, 0.4)])
def test_rows_that_differ_do_not(rates):
    assert learnt([*rates] * 30, 100, np.random.default_rng(0)) == STRENGTH


def test_what_is_learnt_is_the_spread_of_the_rates():
    """Rates drawn from a beta distribution worth 60 trials, in the mean of many orders."""
    rng = np.random.default_rng(5)
    found = [learnt(rng.beta(0.75 * 60, 0.25 * 60, 100), 200, rng) for _ in range(30)]
    assert np.mean(found) == pytest.approx(60, rel=0.2)


def test_rows_with_few_trials_say_little():
    rng = np.random.default_rng(1)
    assert learnt([0.8] * 20, 3, rng) == pytest.approx(STRENGTH, rel=0.1)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_workload_without_a_single_miss_is_no_division_by_nothing(rate):
    spread = Spread((1, 1))
    for _ in range(50):
        spread.observe(counted(40 * rate, 40), counted(2000 * rate, 2000))
    assert STRENGTH <= float(spread.strength()[CELL]) <= MOST


def test_a_lucky_beginning_counts_less_where_rows_are_alike():
    """Forty trials of a new row, all accepted, behind rows of 0.8 each, and behind rows of 0.6 and 1.0."""

    def alpha(accepted):
        similarity = Similarity(["a", "t"])
        step = 0
        for row in range(40):
            for _ in range(20):
                step += 1
                similarity.observe(row, 0, [Trial("a", "t", 5, accepted(row, step))], step)
            similarity.forget(row)
        before = similarity.alpha("a", "t", 0)
        for _ in range(8):
            step += 1
            similarity.observe(99, 0, [Trial("a", "t", 5, 5)], step)
        return (similarity.alpha("a", "t", 0, 99) - before) / (1 - before)

    assert alpha(lambda row, step: 4 if step % 20 else 0) < 0.7 * alpha(lambda row, step: 5 if row % 2 else 1)
