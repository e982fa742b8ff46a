"""What stands between the matrix products of a Llama-like layer, in three Triton kernels.

A layer that is called module by module launches some forty small kernels, and even in a recorded graph each of them costs
about as long as reading a few megabytes of weights. Here a layer is four products, attention, and these. They round where
the Hugging Face modules round, except that a rotation is rounded once, not after each of its products.

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

_BLOCK = 1024


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
    ADD: tl.constexpr,
    ACCURATE: tl.constexpr,
):
    """Program (token): the residual stream with what a block added, and its RMSNorm, computed in float32."""
    column = tl.arange(0, COLUMNS)
    live = column < SIZE
    place = tl.program_id(0).to(tl.int64) * SIZE + column
    stream = tl.load(hidden + place, mask=live, other=0.0)
    dtype = stream.dtype
    if ADD:
        more = tl.load(added + place, mask=live, other=0.0)
        stream = (stream.to(ACCURATE) + more.to(ACCURATE)).to(dtype)
        tl.store(summed + place, stream, mask=live)
    wide = stream.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    tl.store(normed + place, scaled.to(dtype) * tl.load(weight + column, mask=live, other=0.0), mask=live)


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


@triton.jit(do_not_specialize_on_alignment=["index"])  # part of a bucket's inputs, which may begin anywhere
def _rotate_and_write(
    states,
    cos,
    sin,
    query_weight,
    key_weight,
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
    ACCURATE: tl.constexpr,
):
    """Program (token, head of any kind): rotated queries to `query`, keys and values to the token's place in the slabs."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, COLUMNS)
    live = half < HALF
    source = states + (token * (HEADS + 2 * KEY_HEADS) + head) * 2 * HALF
    low = tl.load(source + half, mask=live, other=0.0)
    high = tl.load(source + HALF + half, mask=live, other=0.0)
    place = tl.load(index + token)
    if head < HEADS + KEY_HEADS:
        if NORM:
            if head < HEADS:
                low, high = _normed(low, high, query_weight, half, live, query_eps, HALF)
            else:
                low, high = _normed(low, high, key_weight, half, live, key_eps, HALF)
        angle = token * 2 * HALF + half
        cos_low = tl.load(cos + angle, mask=live, other=0.0).to(ACCURATE)
        cos_high = tl.load(cos + angle + HALF, mask=live, other=0.0).to(ACCURATE)
        sin_low = tl.load(sin + angle, mask=live, other=0.0).to(ACCURATE)
        sin_high = tl.load(sin + angle + HALF, mask=live, other=0.0).to(ACCURATE)
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


@triton.jit
def _gate(gate_up, output, SIZE: tl.constexpr, BLOCK: tl.constexpr, ACCURATE: tl.constexpr):
    """Program (token, block): silu(gate) * up."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < SIZE
    gate = tl.load(gate_up + token * 2 * SIZE + column, mask=live, other=0.0)
    up = tl.load(gate_up + token * 2 * SIZE + SIZE + column, mask=live, other=0.0)
    wide = gate.to(ACCURATE)
    opened = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = (opened.to(ACCURATE) * up.to(ACCURATE)).to(gate.dtype)
    tl.store(output + token * SIZE + column, product, mask=live)


def add_norm(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`hidden` + `added`, both [N, H], and the RMSNorm of that; `hidden` itself where nothing is added."""
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
        ADD=added is not None,
        ACCURATE=_accurate(hidden),
        num_warps=min(16, max(4, columns // 512)),
    )
    return summed, normed


def rotate_and_write(
    states: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, float, Tensor, float] | None,
    index: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Rotated queries [N, Hq, D] of `states` [N, Hq + 2 Hk, D]; keys and values go to the rows `index` [N] of their slabs.

    Args:
        cos: [N, D], contiguous, as `sin`.
        norms: weight and epsilon for query heads, then for key heads, where the model normalises them.
        keys: [rows, Hk, D], contiguous, as `values`. What is not finite is stored as 0.
    """
    tokens, total, size = states.shape
    key_heads = keys.shape[1]
    heads = total - 2 * key_heads
    query = states.new_empty(tokens, heads, size)
    query_weight, query_eps, key_weight, key_eps = norms or (states, 0.0, states, 0.0)
    _rotate_and_write[(tokens, total)](
        states,
        cos,
        sin,
        query_weight,
        key_weight,
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
        ACCURATE=_accurate(states),
        num_warps=1,
    )
    return query


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up [N, I] of [N, 2 I]."""
    tokens, both = gate_up.shape
    output = gate_up.new_empty(tokens, both // 2)
    _gate[(tokens, triton.cdiv(both // 2, _BLOCK))](
        gate_up, output, SIZE=both // 2, BLOCK=_BLOCK, ACCURATE=_accurate(gate_up), num_warps=4
    )
    return output


def _accurate(states: Tensor) -> tl.dtype:
    """What sums and products are computed in before they are rounded."""
    return tl.float64 if states.dtype == torch.float64 else tl.float32
