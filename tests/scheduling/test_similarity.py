"""Similarity: what verifications tell about acceptance, and what they do not."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.scheduling.policy import Trial
from specrouter_llm.scheduling.similarity import Similarity, bounded, expected_match, regime


def trial(rng, alpha, window=8):
    accepted = 0
    while accepted < window and rng.random() < alpha:
        accepted += 1
    return Trial("a", "t", window, accepted)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 0.95])
def test_censoring_does_not_bias_the_estimate(alpha):
    """accepted / proposed would be far off; accepted / (accepted + first rejections) is not."""
    rng, similarity = random.Random(1), Similarity(["a", "t"])
    trials = [trial(rng, alpha) for _ in range(600)]
    for step, each in enumerate(trials):
        similarity.observe(0, 0, [each], step)
    naive = sum(t.accepted for t in trials) / sum(t.proposed for t in trials)
    assert naive < alpha - 0.08
    assert similarity.alpha("a", "t") == pytest.approx(alpha, abs=0.03)


def test_prior_counts_until_there_is_evidence():
    similarity = Similarity(["a", "t"], prior={("a", "t"): 0.9})
    assert similarity.alpha("a", "t") == pytest.approx(0.9)
    assert similarity.alpha("a", "t", regime(1.0)) == pytest.approx(expected_match(0.9, 2))
    for step in range(200):
        similarity.observe(0, 0, [Trial("a", "t", 4, 0)], step)
    assert similarity.alpha("a", "t") < 0.15
    assert similarity.alpha("a", "t", regime(1.0)) > 0.8, "regimes are apart"


def test_prior_lies_between_the_bounds_of_coupled_sampling():
    for tv in (0.05, 0.12, 0.23, 0.37, 0.6):
        assert (1 - tv) / (1 + tv) <= expected_match(1 - tv, 2) <= 1 - tv


def test_rows_are_shrunk_towards_the_workload():
    rng, similarity = random.Random(2), Similarity(["a", "t"])
    for step in range(300):
        similarity.observe(step % 10, 0, [trial(rng, 0.8)], step)
    similarity.observe(99, 0, [Trial("a", "t", 4, 0)], 300)
    assert 0.7 < similarity.alpha("a", "t", 0, 99) < 0.8
    similarity.forget(99)
    assert similarity.alpha("a", "t", 0, 99) == similarity.alpha("a", "t", 0)


def test_a_change_is_noticed_within_a_few_steps():
    rng, similarity = random.Random(3), Similarity(["a", "t"])
    for step in range(300):
        similarity.observe(0, 0, [trial(rng, 0.85, 5)], step)
    for step in range(300, 325):
        similarity.observe(0, 0, [trial(rng, 0.3, 5)], step)
    assert similarity.alpha("a", "t", 0, 0) == pytest.approx(0.3, abs=0.15)


def test_idle_pairs_are_forgotten():
    similarity = Similarity(["a", "b", "t"], prior={("a", "t"): 0.7})
    for step in range(100):
        similarity.observe(0, 0, [Trial("a", "t", 4, 0)], step)
    low = similarity.alpha("a", "t", 0, 0)
    for step in range(100, 4000):
        similarity.observe(0, 0, [Trial("b", "t", 4, 4)], step)
    assert similarity.alpha("a", "t", 0, 0) > low + 0.15


def test_a_level_is_idle_by_what_all_rows_did():
    """A new row has seen nothing of any level; what counts is when the workload last did, longest ago first."""
    similarity = Similarity(["a", "b", "c", "t"])
    for step in range(400):
        level = "a" if step < 100 else "b" if step < 200 else "c"
        similarity.observe(step // 10, 0, [Trial(level, "t", 4, 2)], step)
    assert similarity.idle(0, 400) == [0, 1]
    known = similarity.known(0)
    assert 0 < known["a"] <= known["b"] < known["c"]
    assert similarity.known(1) == {"a": 0, "b": 0, "c": 0}


def test_lookups_are_counted_by_hits_and_lengths():
    similarity = Similarity(["t"], ["ngram"])
    for step in range(400):
        lengths = [4] if step % 4 == 0 else []
        similarity.observe_lookup(0, 0, "ngram", lengths, 0 if lengths else 1, len(lengths), step)
    seen = similarity.acceptance([(0, 0)])
    assert seen.hits[0, 0] == pytest.approx(0.25, abs=0.08)
    assert seen.stays[0, 0] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(("temperature", "bucket"), [(0.0, 0), (0.3, 1), (0.5, 1), (0.7, 2), (1.0, 2), (1.3, 3)])
def test_regimes(temperature, bucket):
    assert regime(temperature) == bucket


@pytest.mark.parametrize(("first", "other"), [(0.6, 0.9), (0.8, 0.8), (0.9, 0.7)])
def test_a_token_behind_an_accepted_one_has_a_rate_of_its_own(first, other):
    """The chance of long runs is that of their tokens, not a power of the mean."""
    rng, similarity, seen = random.Random(4), Similarity(["a", "t"]), []
    for step in range(3000):
        head = rng.random() < first
        rest = trial(rng, other, 7).accepted if head else 0
        similarity.observe(0, 0, [Trial("a", "t", 8, head + rest)], step)
        if step >= 500 and step % 10 == 0:
            found = similarity.acceptance([(0, 0)])
            seen.append([found.target_survival[0, 0], found.pair_survival[0, -1]])
    for survival in np.mean(seen, axis=0):
        for k in (1, 2, 4, 8):
            assert survival[k - 1] == pytest.approx(first * other ** (k - 1), abs=0.04)


def test_a_few_trials_tilt_nothing():
    """Places are told apart only as far as there is evidence for it."""
    similarity = Similarity(["a", "t"], prior={("a", "t"): 0.7})
    similarity.observe(0, 0, [Trial("a", "t", 4, 0), Trial("a", "t", 4, 4)], 0)
    found = similarity.acceptance([(0, 0)])
    assert abs(found.target_tilts).max() < 0.02
    assert 0 < found.target_survival.min() <= found.target_survival.max() < 1


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=60))
def test_no_true_rate_lies_outside_the_bounds(choices):
    """Of three levels that chose whatever they chose."""
    lower = sum(a == t for a, _, t in choices) / len(choices)
    upper = sum(b == t for _, b, t in choices) / len(choices)
    pair = sum(a == b for a, b, _ in choices) / len(choices)
    assert float(bounded(pair, lower, upper)) == pytest.approx(pair)


def test_levels_that_never_met_are_known_by_the_target():
    """Both agree with the target nearly always: so they do with each other, whatever the prior says; counts outweigh it."""
    similarity = Similarity(["a", "b", "t"], [], {("a", "b"): 0.2})
    assert similarity.alpha("a", "b") == pytest.approx(0.6 + 0.6 - 1)
    for step in range(200):
        trials = [Trial(lower, "t", 10, 9 if step % 2 else 10) for lower in "ab"]
        similarity.observe(0, 0, trials, step)
    known = similarity.alpha("a", "t", row_id=0)
    assert known > 0.9
    assert similarity.alpha("a", "b", row_id=0) == pytest.approx(2 * known - 1, abs=1e-6)
    assert similarity.acceptance([(0, 0)]).pairs[0, 1] == pytest.approx(2 * known - 1, abs=1e-6)
    for step in range(200, 400):
        similarity.observe(0, 0, [Trial("a", "b", 10, 5)], step)
    assert similarity.alpha("a", "b", row_id=0) < 2 * known - 1.01
