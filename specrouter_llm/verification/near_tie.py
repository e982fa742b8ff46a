"""How near a tie was: the smallest change of the logits that turns one choice into another.

A token can only be reproduced if the logits are. Where two forwards differ in their last bits, a choice may flip if it
hangs on such a difference: the gap between the two best scores, or membership at a top-k, top-p or min-p cut. Both are
measured by one question: by how much must the other token gain on all others until the rule chooses it?
"""

from __future__ import annotations

from torch import Tensor

from specrouter_llm.sampling.choice import Segment, choose

_EPSILON = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
_WORST = 64.0


def usual_epsilon(dtype: str) -> float:
    """Differences of logits that are put down to rounding, by the dtype of the target's weights."""
    return _EPSILON.get(dtype, _EPSILON["bfloat16"])


def margin(logits: Tensor, segment: Segment, other: int) -> float:
    """Half the gain over all other tokens that makes the rule choose `other` after `segment`'s context.

    `logits` [V] is what the plain choice was made from. 0 if `other` is the choice already; infinite if no gain of up to
    128 is enough (a forbidden token). Found by bisection to 1 %.
    """

    def chosen(amount: float) -> bool:
        shifted = logits - amount
        shifted[other] = logits[other] + amount
        return choose(shifted[None], [segment]) == [[other]]

    if chosen(0.0):
        return 0.0
    if not chosen(_WORST):
        return float("inf")
    low, high = 0.0, _WORST
    while high - low > 0.01 * high and high > 1e-12:
        middle = (low * high) ** 0.5 if low > 0 else high / 16
        low, high = (low, middle) if chosen(middle) else (middle, high)
    return high
