"""Ragged attention on a CUDA device whose inputs are device tensors at fixed addresses, so that graphs can record it.

Split-KV decoding (as in Flash-Decoding): each program attends one tile of a row's tokens, with all query heads of one key
head, to SPLIT positions of the row's slot; a second kernel adds the splits up in order.

A token's bits are a function of its position and of what its row holds up to it. Splits begin at fixed positions; what a
tile, a longer neighbour in it, or a larger bucket adds is masked, and adds exactly 0.

The module needs triton; import it only where that may be missing with care.
"""
# Kernel parameters have no Python types.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from specrouter_llm.runtime.attention import RaggedContext, rounded_up
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import TILE_TOKENS, tiles_of
from specrouter_llm.runtime.triton_launch import FRESH, follow, launched_early

logger = logging.getLogger(__name__)

MOST_POSITIONS = 128
"""That one program attends to."""
_SPLIT_BYTES = {2: 32 * 1024, 4: 16 * 1024, 8: 16 * 1024}
"""Of the keys, or the values, that one program holds, by the size of a number: wide ones are multiplied one by one, out of
registers, and with more of them these overflow."""
# Numbers and alignments that change from step to step are not specialised: a kernel would be compiled anew for 1, for
# multiples of 16, and for tables that begin at multiples of 16 bytes, in the middle of an answer.
MAX_GROUP = 16
MAX_HEAD_DIM = 256
_AT_ONCE = 8
"""Splits that are added up together."""
MOST_SCRATCH = 64 * 2**20
"""Bytes of partial sums at a time, or those of one tile: of many tokens at long contexts, some tiles come after others."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MIN_DOT = 16  # rows and columns of the smallest matrix product


@triton.jit(do_not_specialize=["num_tiles"], do_not_specialize_on_alignment=["tiles"])
def _attend_split(
    query,
    key,
    value,
    tiles,
    sums,
    peaks,
    totals,
    query_head,
    query_token,
    key_slot,
    key_token,
    key_heads,
    value_slot,
    value_token,
    value_heads,
    num_tiles,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_COLUMNS: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
    SCALE: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile, key head, split). Rows of a tile: GROUP_ROWS query heads of the first token, of the second, ..."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    slot = tl.load(tiles + tile, cache_modifier=FRESH)
    offset = tl.load(tiles + num_tiles + tile, cache_modifier=FRESH)
    start = tl.load(tiles + 2 * num_tiles + tile, cache_modifier=FRESH)
    count = tl.load(tiles + 3 * num_tiles + tile, cache_modifier=FRESH)
    low = split * SPLIT
    high = tl.minimum(low + SPLIT, start + count)
    wanted = low < high
    if WINDOW > 0:
        wanted = wanted & (high > start - WINDOW + 1)
    past = low + tl.arange(0, SPLIT).to(tl.int64)
    column = tl.arange(0, SIZE_COLUMNS)
    value_column = tl.arange(0, VALUE_COLUMNS)
    keys = key + slot * key_slot + past[:, None] * key_token + head * key_heads + column[None, :]
    values = value + slot * value_slot + past[:, None] * value_token + head * value_heads + value_column[None, :]
    # What is older than this launch nobody writes: it is on its way while the kernel before still runs.
    old = wanted & (past < tl.minimum(tl.load(tiles + 4 * num_tiles + tile, cache_modifier=FRESH), high))
    k = tl.load(keys, mask=old[:, None] & (column < SIZE)[None, :], other=0.0, cache_modifier=FRESH)
    v = tl.load(values, mask=old[:, None] & (value_column < VALUE_SIZE)[None, :], other=0.0, cache_modifier=FRESH)
    follow(EARLY)
    if wanted:
        row = tl.arange(0, ROWS)
        token = row // GROUP_ROWS
        member = row % GROUP_ROWS
        live = (token < count) & (member < GROUP)
        position = start + token
        query_rows = (head * GROUP + member) * query_head + (offset + token) * query_token
        q = tl.load(
            query + query_rows[:, None] + column[None, :], mask=live[:, None] & (column < SIZE)[None, :], other=0.0
        )
        new = (past < high) & ~old
        new_k = tl.load(keys, mask=new[:, None] & (column < SIZE)[None, :], other=0.0)
        new_v = tl.load(values, mask=new[:, None] & (value_column < VALUE_SIZE)[None, :], other=0.0)
        k = tl.where(old[:, None], k, new_k)
        v = tl.where(old[:, None], v, new_v)
        score = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=ACCUMULATOR) * SCALE
        if SOFTCAP > 0:
            score = (2 * tl.sigmoid(2 * score / SOFTCAP) - 1) * SOFTCAP
        seen = (past < high)[None, :] & (past[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (past[None, :] > position[:, None] - WINDOW)
        score = tl.where(seen, score, -float("inf"))
        peak = tl.max(score, 1)
        weight = tl.exp(score - tl.where(peak == -float("inf"), 0.0, peak)[:, None])
        total = tl.sum(weight, 1)
        summed = tl.dot(weight.to(v.dtype), v, input_precision="ieee", out_dtype=ACCUMULATOR)
        rows = ((tile.to(tl.int64) * tl.num_programs(1) + head) * tl.num_programs(2) + split) * ROWS + row
        tl.store(sums + rows[:, None] * VALUE_COLUMNS + value_column[None, :], summed, mask=live[:, None])
        tl.store(peaks + rows, peak, mask=live)
        tl.store(totals + rows, total, mask=live)


@triton.jit(do_not_specialize=["num_tiles", "num_splits"], do_not_specialize_on_alignment=["tiles"])
def _add_splits(
    tiles,
    sums,
    peaks,
    totals,
    output,
    output_token,
    output_head,
    num_tiles,
    num_splits,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    AT_ONCE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile, key head, token of the tile): the splits that it can see, from the first to the last."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.program_id(2)
    offset = tl.load(tiles + num_tiles + tile, cache_modifier=FRESH)
    position = tl.load(tiles + 2 * num_tiles + tile, cache_modifier=FRESH) + token
    there = token < tl.load(tiles + 3 * num_tiles + tile, cache_modifier=FRESH)
    follow(EARLY)
    first = position * 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0) // SPLIT
    number = tl.where(there, position // SPLIT + 1, 0)
    member = tl.arange(0, GROUP_ROWS)
    live = there & (member < GROUP)
    row = token * GROUP_ROWS + member
    column = tl.arange(0, VALUE_COLUMNS)
    among = tl.arange(0, AT_ONCE)
    peak = tl.full([GROUP_ROWS], -float("inf"), ACCUMULATOR)
    total = tl.zeros([GROUP_ROWS], ACCUMULATOR)
    summed = tl.zeros([GROUP_ROWS, VALUE_COLUMNS], ACCUMULATOR)
    slab = (tile.to(tl.int64) * tl.num_programs(1) + head) * num_splits
    # Groups begin at fixed splits, and their loads are all on their way before the first is used.
    for begin in range(first // AT_ONCE * AT_ONCE, number, AT_ONCE):
        rows = (slab + begin + among)[None, :] * ROWS + row[:, None]
        seen = live[:, None] & ((begin + among >= first) & (begin + among < number))[None, :]
        others = tl.load(peaks + rows, mask=seen, other=-float("inf"))
        raised = tl.maximum(peak, tl.max(others, 1))
        base = tl.where(raised == -float("inf"), 0.0, raised)
        kept = tl.exp(peak - base)
        scaled = tl.exp(others - base[:, None])
        total = total * kept + tl.sum(tl.load(totals + rows, mask=seen, other=0.0) * scaled, 1)
        summed = summed * kept[:, None]
        for each in tl.static_range(AT_ONCE):
            place = ((slab + begin + each) * ROWS + row)[:, None] * VALUE_COLUMNS + column[None, :]
            part = tl.load(
                sums + place, mask=live[:, None] & (begin + each >= first) & (begin + each < number), other=0.0
            )
            summed += part * tl.sum(tl.where(among[None, :] == each, scaled, 0.0), 1)[:, None]
        peak = raised
    result = summed / tl.where(live, total, 1.0)[:, None]
    places = (offset + token) * output_token + (head * GROUP + member) * output_head
    tl.store(
        output + places[:, None] + column[None, :],
        result.to(output.dtype.element_ty),
        mask=live[:, None] & (column < VALUE_SIZE)[None, :],
    )


def tile_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: Tensor,
    extent: int,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    *,
    fill: bool = True,
) -> Tensor:
    """Attention of packed queries [Hq, N, D] over slabs [slots, capacity, Hk, D] -> [N, Hq, Dv]; see `TileAttention`.

    `tiles` is [5, T] on the device: the fields of each `Tile`; a number of 0 is no tile. Tokens of no tile
    get zeros, or anything without `fill`: then nothing after may see a row beside another. No tile may reach beyond `extent`.
    """
    heads, tokens, size = query.shape
    key_heads, value_size = value.shape[2:]
    group = heads // key_heads
    group_rows = triton.next_power_of_2(group)
    rows = max(_MIN_DOT, TILE_TOKENS * group_rows)
    columns = max(_MIN_DOT, triton.next_power_of_2(value_size))
    accumulator = torch.float64 if query.dtype == torch.float64 else torch.float32
    key_columns = max(_MIN_DOT, triton.next_power_of_2(size))
    split = _split(max(columns, key_columns), query.element_size())
    num_tiles, num_splits = tiles.shape[1], triton.cdiv(extent, split)
    by_tile = key_heads * num_splits * rows
    together = min(num_tiles, max(1, MOST_SCRATCH // (by_tile * (columns + 2) * accumulator.itemsize)))
    sums = query.new_empty((together, by_tile, columns), dtype=accumulator)
    peaks, totals = query.new_empty((2, together, by_tile), dtype=accumulator).unbind(0)
    output = (query.new_zeros if fill else query.new_empty)(tokens, heads, value_size)
    common = {
        "GROUP": group,
        "GROUP_ROWS": group_rows,
        "ROWS": rows,
        "VALUE_SIZE": value_size,
        "VALUE_COLUMNS": columns,
        "SPLIT": split,
        "WINDOW": window or 0,
        "ACCUMULATOR": tl.float64 if accumulator == torch.float64 else tl.float32,
        "enable_fp_fusion": True,
        **launched_early(query.device),
    }
    for some in tiles.split(together, dim=1):
        number = some.shape[1]
        _attend_split[(number, key_heads, num_splits)](
            query,
            key,
            value,
            some,
            sums,
            peaks,
            totals,
            *query.stride()[:2],
            *key.stride()[:3],
            *value.stride()[:3],
            num_tiles,
            SIZE=size,
            SIZE_COLUMNS=key_columns,
            SCALE=scaling if scaling is not None else size**-0.5,
            SOFTCAP=softcap or 0.0,
            num_warps=8 if max(rows, split) * columns > 8192 else 4,
            **common,
        )
        _add_splits[(number, key_heads, min(tokens, TILE_TOKENS))](
            some,
            sums,
            peaks,
            totals,
            output,
            *output.stride()[:2],
            num_tiles,
            num_splits,
            AT_ONCE=_AT_ONCE,
            num_warps=min(4, max(1, group_rows * columns // 256)),
            **common,
        )
    return output


def _split(columns: int, itemsize: int) -> int:
    """Positions that one program attends to, a power of two; changing it changes bits, so it is not for a launch to choose."""
    return max(_MIN_DOT, min(MOST_POSITIONS, _SPLIT_BYTES[itemsize] // (columns * itemsize)))


def agrees(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head_dim: int) -> bool:
    """Whether the kernels can be built for these shapes here and give what `RaggedContext` gives.

    Tried on random states over a short and a long context. What a compiler or driver raises counts as no.
    """
    if dtype not in _DTYPES or heads // key_heads > MAX_GROUP or head_dim > MAX_HEAD_DIM:
        return False
    spans = [Span(1, 9 * MOST_POSITIONS + 77, [0] * 11, 0), Span(0, 3, [0] * 2, 0)]
    capacity = rounded_up(spans[0].end, MOST_POSITIONS)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    query, tiles = random(heads, 13, head_dim), tiles_of(spans)
    key, value = random(2, capacity, key_heads, head_dim), random(2, capacity, key_heads, head_dim)
    table = torch.tensor(tiles, device=device).t().contiguous()
    try:
        with torch.cuda.device_of(query):  # triton launches on the current device
            ours = tile_attention(query, key, value, table, capacity, None, None, None)
    except Exception:
        logger.info("triton attention cannot be run", exc_info=True)
        return False
    states = (query.float(), key.float(), value.float())
    expected = RaggedContext(spans, capacity).attend(*states, head_dim**-0.5).to(dtype)
    # Both round at the end: in 16 bit a value of 2 and more may differ by a unit in its last place, which is over 0.015.
    absolute, relative = (0.02, 0.02) if dtype.itemsize < 4 else (1e-4, 0.0)
    return bool(torch.allclose(ours, expected, atol=absolute, rtol=relative))
