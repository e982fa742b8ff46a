"""Keyed Gumbel noise: a pure function of (seed, sample, position, token id), readable at any id, the same on every device.

32-bit integer hashing (shift, xor, multiply modulo 2^32) gives the bits of a uniform u; the noise is -log(-log1p(-u)) in
float64. It is counter-based, so a row's noise does not depend on its batch, on the level that asks, or on what was drawn
before. Changing anything here changes every seeded answer: the bits are frozen by a test vector.

Adding it to log-probabilities and taking the argmax is an exact sample (the Gumbel-max trick). Sharing it between draft
and target couples their choices: Daliri et al., "Coupling without Communication and Drafter-Invariant Speculative
Decoding", arXiv 2408.07978.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
# Low-bias 32-bit finaliser, as signed int32 values because torch has no arithmetic on uint32.
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - (1 << 32))


def row_keys(seed: int, sample: int, position: int) -> tuple[int, int]:
    """Two 32-bit keys (as signed ints) of one choice: a splitmix64 finaliser over the three numbers."""
    z = (
        seed * 0x9E3779B97F4A7C15 + sample * 0xBF58476D1CE4E5B9 + position * 0x94D049BB133111EB + 0x632BE59BD9B4E019
    ) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    z ^= z >> 31
    return _signed(z & 0xFFFFFFFF), _signed(z >> 32)


def gumbel(keys: Sequence[tuple[int, int]] | Tensor, token_ids: Tensor) -> Tensor:
    """Gumbel(0, 1) noise, float64 [m, V], for m keys at the given token ids (int32 [V], on the wanted device).

    Keys may be an int32 tensor [m, 2] on that device; nothing then waits for the device.
    u = (k + 1/2) / 2^24 with k from 24 bits: never 0 or 1, so the noise is always finite.
    """
    keys = torch.as_tensor(keys, dtype=torch.int32).to(token_ids.device, non_blocking=True)
    first, second = keys.unbind(1)
    x = token_ids[None, :] ^ first[:, None]
    x = _mix32_(x).add_(second[:, None])
    x = _mix32_(x).bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
    u = x.to(torch.float64).add_(0.5).mul_(2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def _mix32_(x: Tensor) -> Tensor:
    """Avalanche of int32 values in place; shifts are logical, hence the masks."""
    x ^= (x >> 16) & 0xFFFF
    x *= _MULTIPLIERS[0]
    x ^= (x >> 15) & 0x1FFFF
    x *= _MULTIPLIERS[1]
    x ^= (x >> 16) & 0xFFFF
    return x


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
