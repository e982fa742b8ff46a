"""What stands between the matrix products of a Llama-like layer, in two Triton kernels.

A layer that is called module by module launches some forty small kernels, and even in a recorded graph each of them costs
about as long as reading a few megabytes of weights. Here a layer is four products, attention, and these. They round where
the Hugging Face modules round, except that a rotation is rounded once, not after each of its products.

Products come in parts (see `triton_products`), which are summed, and rounded, where they are read.

Every token is a program of its own, so its bits depend on nothing beside it. The module needs triton.
"""
# Kernel parameters have no Python types.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specrouter_llm.runtime.triton_launch import FRESH, follow, launched_early


@triton.jit
def _sum_of_parts(first, stride, live, PARTS: tl.constexpr, ACCURATE: tl.constexpr):
    """What stands at `first` and at PARTS - 1 places behind, `stride` apart, in order."""
    summed = tl.load(first, mask=live, other=0.0).to(ACCURATE)
    for part in tl.static_range(1, PARTS):
        summed += tl.load(first + part * stride, mask=live, other=0.0).to(ACCURATE)
    return summed


@triton.jit
def _add_norm(
    hidden,
    added,
    weight,
    summed,
    normed,
    eps,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    ACCURATE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (token): the residual stream with what a block added, and its RMSNorm, computed in float32."""
    column = tl.arange(0, COLUMNS)
    live = column < SIZE
    place = tl.program_id(0).to(tl.int64) * SIZE + column
    scale = tl.load(weight + column, mask=live, other=0.0)
    if PARTS > 0:  # the stream is older than what is added to it
        stream = tl.load(hidden + place, mask=live, other=0.0, cache_modifier=FRESH)
        follow(EARLY)
    else:
        follow(EARLY)
        stream = tl.load(hidden + place, mask=live, other=0.0)
    dtype = stream.dtype
    if PARTS > 0:
        more = _sum_of_parts(added + place, tl.num_programs(0).to(tl.int64) * SIZE, live, PARTS, ACCURATE)
        stream = (stream.to(ACCURATE) + more.to(dtype).to(ACCURATE)).to(dtype)
        tl.store(summed + place, stream, mask=live)
    wide = stream.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    tl.store(normed + place, scaled.to(dtype) * scale, mask=live)


@triton.jit
def _normed(low, high, weight, half, live, eps, HALF: tl.constexpr):
    """RMSNorm of one head, whose halves are `low` and `high`, computed in float32."""
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    squares = tl.sum(wide_low * wide_low + wide_high * wide_high, 0)
    scale = tl.rsqrt(squares / (2 * HALF) + eps)
    low = (wide_low * scale).to(low.dtype) * tl.load(weight + half, mask=live, other=0.0)
    high = (wide_high * scale).to(high.dtype) * tl.load(weight + HALF + half, mask=live, other=0.0)
    return low, high


@triton.jit
def _finite(states):
    """0 for what is not finite; x - x is 0 for every finite x, and NaN for others."""
    return tl.where(states - states == 0, states, 0.0).to(states.dtype)


@triton.jit(
    do_not_specialize_on_alignment=["positions", "index"]
)  # parts of a bucket's inputs, which may begin anywhere
def _rotate_and_write(
    states,
    cos,
    sin,
    query_weight,
    key_weight,
    positions,
    index,
    query,
    keys,
    values,
    query_eps,
    key_eps,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    PARTS: tl.constexpr,
    ACCURATE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (token, head of any kind): rotated queries to `query`, keys and values to the token's place in the slabs."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, COLUMNS)
    live = half < HALF
    place = tl.load(index + token, cache_modifier=FRESH)
    angle = tl.load(positions + token, cache_modifier=FRESH) * 2 * HALF + half
    turns = live & (head < HEADS + KEY_HEADS)
    cos_low = tl.load(cos + angle, mask=turns, other=0.0).to(ACCURATE)
    cos_high = tl.load(cos + angle + HALF, mask=turns, other=0.0).to(ACCURATE)
    sin_low = tl.load(sin + angle, mask=turns, other=0.0).to(ACCURATE)
    sin_high = tl.load(sin + angle + HALF, mask=turns, other=0.0).to(ACCURATE)
    follow(EARLY)
    source = states + (token * (HEADS + 2 * KEY_HEADS) + head) * 2 * HALF + half
    stride = tl.num_programs(0).to(tl.int64) * (HEADS + 2 * KEY_HEADS) * 2 * HALF
    low = _sum_of_parts(source, stride, live, PARTS, ACCURATE).to(query.dtype.element_ty)
    high = _sum_of_parts(source + HALF, stride, live, PARTS, ACCURATE).to(query.dtype.element_ty)
    if head < HEADS + KEY_HEADS:
        if NORM:
            if head < HEADS:
                low, high = _normed(low, high, query_weight, half, live, query_eps, HALF)
            else:
                low, high = _normed(low, high, key_weight, half, live, key_eps, HALF)
        turned_low = (low.to(ACCURATE) * cos_low - high.to(ACCURATE) * sin_low).to(low.dtype)
        turned_high = (high.to(ACCURATE) * cos_high + low.to(ACCURATE) * sin_high).to(low.dtype)
        if head < HEADS:
            target = query + (token * HEADS + head) * 2 * HALF
            tl.store(target + half, turned_low, mask=live)
            tl.store(target + HALF + half, turned_high, mask=live)
        else:
            target = keys + (place * KEY_HEADS + head - HEADS) * 2 * HALF
            tl.store(target + half, _finite(turned_low), mask=live)
            tl.store(target + HALF + half, _finite(turned_high), mask=live)
    else:
        target = values + (place * KEY_HEADS + head - HEADS - KEY_HEADS) * 2 * HALF
        tl.store(target + half, _finite(low), mask=live)
        tl.store(target + HALF + half, _finite(high), mask=live)


def add_norm(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`hidden` [N, H] + the sum of `added` [S, N, H], and the RMSNorm of that; `hidden` itself where nothing is added."""
    size = hidden.shape[1]
    normed = torch.empty_like(hidden)
    summed = hidden if added is None else torch.empty_like(hidden)
    columns = triton.next_power_of_2(size)
    _add_norm[(len(hidden),)](
        hidden,
        hidden if added is None else added,
        weight,
        summed,
        normed,
        eps,
        SIZE=size,
        COLUMNS=columns,
        PARTS=0 if added is None else len(added),
        ACCURATE=_accurate(hidden),
        num_warps=min(16, max(4, columns // 512)),
        **launched_early(hidden.device),
    )
    return summed, normed


def rotate_and_write(
    states: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, float, Tensor, float] | None,
    positions: Tensor,
    index: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Rotated queries [N, Hq, D] of `states` [S, N, Hq + 2 Hk, D]; keys and values go to the rows `index` [N] of their slabs.

    Args:
        cos: by position, [P, D], contiguous, as `sin`.
        norms: weight and epsilon for query heads, then for key heads, where the model normalises them.
        keys: [rows, Hk, D], contiguous, as `values`. What is not finite is stored as 0.
    """
    parts, tokens, total, size = states.shape
    key_heads = keys.shape[1]
    heads = total - 2 * key_heads
    query = keys.new_empty(tokens, heads, size)
    query_weight, query_eps, key_weight, key_eps = norms or (keys, 0.0, keys, 0.0)
    _rotate_and_write[(tokens, total)](
        states,
        cos,
        sin,
        query_weight,
        key_weight,
        positions,
        index,
        query,
        keys,
        values,
        query_eps,
        key_eps,
        HEADS=heads,
        KEY_HEADS=key_heads,
        HALF=size // 2,
        COLUMNS=triton.next_power_of_2(size // 2),
        NORM=norms is not None,
        PARTS=parts,
        ACCURATE=_accurate(keys),
        num_warps=1,
        **launched_early(keys.device),
    )
    return query


def _accurate(states: Tensor) -> tl.dtype:
    """What sums and products are computed in before they are rounded."""
    return tl.float64 if states.dtype == torch.float64 else tl.float32
