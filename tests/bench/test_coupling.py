"""The mathematics of agreement against brute force, simulation and the bounds of the papers."""

import math

import pytest
import torch

from specrouter_llm.bench.coupling import joint_match, overlap, path_acceptance, tokens_per_cycle
from specrouter_llm.sampling.choice import Segment, choose
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler


def pair(size, seed, spread=2.0, zeros=0):
    """Two related distributions; the second lacks some ids."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, generator=generator, dtype=torch.float64) * spread
    other = scores + torch.randn(size, generator=generator, dtype=torch.float64)
    other[:zeros] = -torch.inf
    return scores.softmax(-1), other.softmax(-1)


def brute_force(p, q):
    """P(both choose v) straight from the definition."""
    joint = torch.zeros_like(p)
    for v in range(len(p)):
        if p[v] > 0 and q[v] > 0:
            joint[v] = 1 / torch.maximum(p / p[v], q / q[v]).sum()
    return joint


@pytest.mark.parametrize("zeros", [0, 3])
def test_the_closed_form_is_the_definition(zeros):
    """Sorting by ratio and two cumulative sums give the double sum."""
    for seed in range(5):
        p, q = pair(17, seed, zeros=zeros)
        assert torch.allclose(brute_force(p, q), joint_match(p[None], q[None])[0], rtol=1e-9, atol=1e-12)


def test_extremes():
    """Equal distributions always agree, disjoint ones never do."""
    p, _ = pair(9, 0)
    assert joint_match(p[None], p[None]).sum() == pytest.approx(1.0)
    left, right = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).double(), torch.tensor([[0.0, 0.0, 0.5, 0.5]]).double()
    assert 0.0 == float(overlap(left, right)) == float(joint_match(left, right).sum())


def test_the_match_lies_between_the_bounds():
    """(1 - TV) / (1 + TV) <= P(match) <= 1 - TV."""
    for seed in range(30):
        p, q = pair(50, seed, spread=0.5 + seed / 10)
        best = float(overlap(p, q))
        match = float(joint_match(p[None], q[None]).sum())
        assert best / (2 - best) - 1e-12 <= match <= best + 1e-12


def test_the_engine_s_own_choices_match_at_the_expected_rate():
    """20,000 positions of keyed noise: the observed rate is within four standard errors of the closed form."""
    p, q = pair(12, 3)
    count = 20_000
    sampler = RowSampler(SamplingParams(temperature=1.0), seed=8, prompt_ids=[0])
    segment = Segment(sampler, 1, [0] * (count - 1), count)
    chosen = [
        torch.tensor(choose(probs.log().float().expand(count, -1), [segment])[0], dtype=torch.long) for probs in (p, q)
    ]
    expected = joint_match(p[None], q[None])[0]
    total = float(expected.sum())
    observed = float((chosen[0] == chosen[1]).double().mean())
    assert observed == pytest.approx(total, abs=4 * math.sqrt(total * (1 - total) / count))
    both = torch.bincount(chosen[0][chosen[0] == chosen[1]], minlength=12) / count
    assert torch.allclose(expected, both.double(), atol=0.02)


def test_acceptance_given_the_path_averages_to_the_unconditional_rates():
    """Over paths drawn from the target: the match rate, and 1 - TV."""
    p, q = pair(12, 4)
    path = torch.arange(12)
    keyed, rejection = path_acceptance(p.expand(12, -1), q.expand(12, -1), path)
    assert float((p * keyed).sum()) == pytest.approx(float(joint_match(p[None], q[None]).sum()))
    assert float((p * rejection).sum()) == pytest.approx(float(overlap(p, q)))


def test_tokens_per_cycle():
    """With constant acceptance a it is (1 - a^(w+1)) / (1 - a); a path shorter than the window has no start."""
    total, starts = tokens_per_cycle(torch.full((10,), 0.5, dtype=torch.float64), 4)
    assert 7 == starts
    assert total / starts == pytest.approx((1 - 0.5**5) / 0.5)
    assert (0.0, 0) == tokens_per_cycle(torch.ones(3, dtype=torch.float64), 4)
