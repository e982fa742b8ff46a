"""Products of a few rows with a weight matrix, as fast as weights can be read, and with the same bits for any rows.

A decoding step multiplies one to a hundred rows by every matrix of the model, and what takes time is reading the matrices.
A program reads the weights of some columns, several blocks ahead, and multiplies them by all rows. The order of a sum is a
function of the matrix's shape alone: a row has the same product whatever stands beside it, and however many rows there are.

Where a matrix has too few columns to keep a device busy, programs share the inner dimension, and what they found is added up
by whoever reads it. The module needs triton.
"""
# Kernel parameters have no Python types.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specrouter_llm.runtime.triton_launch import follow, launched_early

_RESERVED = 8 * 1024
"""Bytes of a program's shared memory that are not for blocks."""
_ANY_DEVICE = 100 * 1024
"""Bytes of shared memory where there is no device to ask."""
_COLUMNS = 64
_MANY_COLUMNS = 80 * _COLUMNS
"""Above this, programs that take twice as many columns are still enough."""
_PROGRAMS = 120
"""Programs that keep a device reading; it has about as many multiprocessors."""
_LEAST_TOKENS, _MOST_TOKENS = 16, 128
"""Rows of one program; a matrix product has no fewer than 16."""
_UNIT = 128
"""Shares of the inner dimension are multiples of this, whatever the blocks: changing it changes bits."""


@triton.jit(do_not_specialize=["tokens"])
def _multiply(
    rows,
    weight,
    bias,
    output,
    tokens,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARE: tl.constexpr,
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (columns, tokens, split). GATED: `weight` is two matrices of COLUMNS columns; the first opens the second."""
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    column = tl.minimum(column, COLUMNS - 1).to(tl.int64)  # what is beyond does again what the last one does
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    split = tl.program_id(2)
    begin = split * SHARE
    follow(EARLY)
    inner = begin + tl.arange(0, BLOCK)
    weights = weight + column[:, None] * SIZE
    states = rows + token[None, :].to(tl.int64) * SIZE
    there = token[None, :] < tokens
    summed = tl.zeros([BLOCK_COLUMNS, BLOCK_TOKENS], ACCUMULATOR)
    opened = tl.zeros([BLOCK_COLUMNS, BLOCK_TOKENS], ACCUMULATOR)
    for _ in range(0, tl.minimum(SHARE, SIZE - begin), BLOCK):
        if SIZE % BLOCK == 0:
            block = tl.load(weights + inner[None, :])
            right = tl.load(states + inner[:, None], mask=there, other=0.0)
        else:
            known = inner < SIZE
            block = tl.load(weights + inner[None, :], mask=known[None, :], other=0.0)
            right = tl.load(states + inner[:, None], mask=known[:, None] & there, other=0.0)
        if GATED:
            if SIZE % BLOCK == 0:
                second = tl.load(weights + COLUMNS * SIZE + inner[None, :])
            else:
                second = tl.load(weights + COLUMNS * SIZE + inner[None, :], mask=(inner < SIZE)[None, :], other=0.0)
            opened = tl.dot(second, right, opened, input_precision="ieee", out_dtype=ACCUMULATOR)
        summed = tl.dot(block, right, summed, input_precision="ieee", out_dtype=ACCUMULATOR)
        inner += BLOCK
    if BIASED and split == 0:
        summed += tl.load(bias + column)[:, None]
        if GATED:
            opened += tl.load(bias + COLUMNS + column)[:, None]
    if GATED:
        dtype = rows.dtype.element_ty
        gate = summed.to(dtype).to(ACCUMULATOR)
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(ACCUMULATOR)
        summed = gate * opened.to(dtype).to(ACCUMULATOR)
    place = (split.to(tl.int64) * tokens + token[None, :]) * COLUMNS + column[:, None]
    tl.store(output + place, summed.to(output.dtype.element_ty), mask=there)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a matrix is cut. Only `splits` decides the order of a sum."""

    columns: int
    """Of one program."""
    block: int
    """Of the inner dimension, in one turn of the loop."""
    splits: int
    """Programs that share the inner dimension."""
    stages: int
    """Blocks that are on their way at a time, if there is room for so many."""
    warps: int


def tiling_for(columns: int, size: int, dtype: torch.dtype, *, tokens: int, gated: bool) -> Tiling:
    """For a matrix of `columns` columns, or twice as many if `gated`, of `size` numbers each, and `tokens` rows of a program.

    The figures are those that were fastest on an H200 for the matrices of a model of 7B.
    """
    many_columns, many_tokens = not gated and columns > _MANY_COLUMNS, tokens > 32
    splits = 1
    while not gated and splits * triton.cdiv(columns, _COLUMNS) < _PROGRAMS and 4 * splits * _UNIT <= size:
        splits *= 2
    return Tiling(
        columns=2 * _COLUMNS if many_columns else _COLUMNS,
        block=max(16, (128 if gated or many_columns or many_tokens else 256) // dtype.itemsize),
        splits=triton.cdiv(size, _share(size, splits)),
        stages=4 if gated else 6,
        warps=8 if many_columns or many_tokens else 4,
    )


def _share(size: int, splits: int) -> int:
    """How much of the inner dimension each of so many programs takes; the last ones may find nothing left."""
    return int(triton.cdiv(size, splits * _UNIT) * _UNIT)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory for the blocks of one program."""
    if device.type != "cuda":
        return _ANY_DEVICE
    most = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", _ANY_DEVICE)
    return int(most) - _RESERVED


def product(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False, tiling: Tiling | None = None
) -> Tensor:
    """Parts [S, N, C] of the products of `rows` [N, K] with `weight` [C, K]; their sum is meant, in order of S.

    One part has the dtype of the rows; several have that of the accumulator, for they are rounded when they are summed.

    Args:
        rows: contiguous, as `weight`.
        gated: `weight` [2 C, K] is two matrices, and silu of the first product, times the second, comes back, in one part.

    Raises:
        ValueError: `gated` with a tiling of several parts, of which no gate can be taken.
    """
    tokens, size = rows.shape
    columns = weight.shape[0] // (2 if gated else 1)
    block_tokens = min(_MOST_TOKENS, max(_LEAST_TOKENS, triton.next_power_of_2(tokens)))
    tiling = tiling or tiling_for(columns, size, rows.dtype, tokens=block_tokens, gated=gated)
    if gated and tiling.splits > 1:
        raise ValueError("the product of a gate cannot be cut into parts that are summed later")
    accumulator = torch.float64 if rows.dtype == torch.float64 else torch.float32
    output = rows.new_empty((tiling.splits, tokens, columns), dtype=rows.dtype if tiling.splits == 1 else accumulator)
    stage = (tiling.columns * (2 if gated else 1) + block_tokens) * tiling.block * rows.element_size()
    _multiply[(triton.cdiv(columns, tiling.columns), triton.cdiv(tokens, block_tokens), tiling.splits)](
        rows,
        weight,
        rows if bias is None else bias,
        output,
        tokens,
        SIZE=size,
        COLUMNS=columns,
        BLOCK_COLUMNS=tiling.columns,
        BLOCK_TOKENS=block_tokens,
        BLOCK=tiling.block,
        SHARE=_share(size, tiling.splits),
        GATED=gated,
        BIASED=bias is not None,
        ACCUMULATOR=tl.float64 if accumulator == torch.float64 else tl.float32,
        num_stages=min(tiling.stages, max(1, _shared_memory(rows.device) // stage)),
        num_warps=tiling.warps,
        **launched_early(rows.device),
    )
    return output
