"""How often two models agree, position by position: the optimum, and what shared noise reaches.

For distributions p (upper level, `target_probs`) and q (lower level, `draft_probs`) at one position:

- rejection sampling (Leviathan et al., arXiv 2211.17192) accepts with probability sum_v min(p_v, q_v) = 1 - TV, and no
  scheme can accept more often;
- choices by the same exponential race, argmin_v E_v / p_v and argmin_v E_v / q_v, are equal with a probability between
  (1 - TV) / (1 + TV) and 1 - TV (Daliri et al., arXiv 2408.07978). It has a closed form. Both choose v exactly if
  E_w >= E_v * max(p_w / p_v, q_w / q_v) for every w, and given E_v that has probability exp(-E_v * sum over w != v), so

      P(both choose v) = 1 / sum_w max(p_w / p_v, q_w / q_v)

  With the ids sorted by r_w = q_w / p_w the first ratio is the larger one exactly where r_w <= r_v: two cumulative sums.
"""

from __future__ import annotations

import torch
from torch import Tensor


def overlap(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """1 - TV of each position: [n, V] x [n, V] -> [n]."""
    return torch.minimum(target_probs, draft_probs).sum(dim=-1)


def joint_match(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """P(both choose v) under shared noise: [n, V] x [n, V] -> [n, V]; the sum over V is the match rate."""
    ratio = torch.where(target_probs > 0, draft_probs / target_probs, torch.inf)
    order = ratio.argsort(dim=-1)
    p, q = target_probs.gather(-1, order), draft_probs.gather(-1, order)
    up_to = p.cumsum(dim=-1)
    beyond = q.flip(-1).cumsum(dim=-1).flip(-1) - q
    both = p * q
    sorted_match = torch.where(both > 0, both / (up_to * q + beyond * p), 0.0)
    return torch.zeros_like(sorted_match).scatter(-1, order, sorted_match)


def path_acceptance(target_probs: Tensor, draft_probs: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """P(the draft's token is accepted | the target's is `path`), by shared noise and by rejection sampling: [n] each.

    Along a path drawn from the target, the mean of the products of either is the probability that so many tokens in a
    row are accepted: for rejection sampling P(path drafted and accepted) is the product of min(p, q), for shared noise
    the product of the joint match, and both are divided by P(path) = product of p.
    """
    index = path[:, None]
    p = target_probs.gather(-1, index)[:, 0].clamp_min(torch.finfo(torch.float64).tiny)
    q = draft_probs.gather(-1, index)[:, 0]
    keyed = joint_match(target_probs, draft_probs).gather(-1, index)[:, 0] / p
    return keyed.clamp_max(1.0), (q / p).clamp_max(1.0)


def tokens_per_cycle(acceptance: Tensor, window: int) -> tuple[float, int]:
    """Sum over all starts of 1 + expected accepted tokens of a window, and the number of starts, along one path [n]."""
    starts = len(acceptance) - window + 1
    if starts <= 0:
        return 0.0, 0
    products = acceptance.unfold(0, window, 1).cumprod(dim=-1)
    return float(starts + products.sum()), starts
