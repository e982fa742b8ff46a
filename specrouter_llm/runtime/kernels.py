"""The compiled forward of a Llama-like model on a CPU: every thread of an OpenMP team runs `_forward` and waits at barriers.

Between two barriers each thread has outputs of its own, and every one of them is computed in the same order however many
tokens are fed, whoever computes it. So bits depend on a token's own past alone, by construction.
Where a compiler may choose the order (the sums of norms and of softmax), it is a function of a size, or of a position.
"""
# Compiled functions take addresses, sizes and records; numba infers their types.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from specrouter_llm.runtime.compiled_products import (
    FUSED,
    PLAIN,
    PRODUCT_TYPE,
    REORDERED,
    STEP_TYPE,
    barrier,
    bytes_at,
    exp,
    floats,
    integers_at,
    layers_at,
    multiply,
    open_gate,
    read_numbers,
    set_tile,
    share,
    thread,
    threads,
    width_of,
)
from specrouter_llm.runtime.tile import PANEL, ROWS

logger = logging.getLogger(__name__)

_AHEAD = 64
"""Positions by which values are asked for ahead; keys are by a panel."""

# ---------------------------------------------------------------- norms and rotation


@REORDERED
def _norm_row(x, size, weight, eps, out):
    """RMSNorm of one row; `out` may be `x`."""
    values, scale, result = floats(x, size), floats(weight, size), floats(out, size)
    total = np.float32(0.0)
    for i in range(size):
        total += values[i] * values[i]
    factor = np.float32(1.0) / np.float32(math.sqrt(total / np.float32(size) + eps))
    for i in range(size):
        result[i] = scale[i] * (values[i] * factor)


@PLAIN
def _norm_rows(x, out, stride, rows, size, weight, eps, team):
    for row in range(team[0], rows, team[1]):
        _norm_row(x + 4 * row * stride, size, weight, eps, out + 4 * row * stride)


@REORDERED
def _rotate_head(x, size, cos, sin):
    half = size // 2
    first, second = floats(x, half), floats(x + 4 * half, half)
    cosine, sine = floats(cos, half), floats(sin, half)
    far_cosine, far_sine = floats(cos + 4 * half, half), floats(sin + 4 * half, half)
    for i in range(half):
        a, b = first[i], second[i]
        first[i] = a * cosine[i] + b * sine[i]
        second[i] = b * far_cosine[i] + a * far_sine[i]


@PLAIN
def _rotate_and_store(step, layer, slots, mark, team):
    """Norms and rotates queries and keys of every token in place, and writes keys and values to the cache.

    What is not finite is stored as 0, for a masked position has weight 0, but 0 * NaN is NaN. `mark` notes such tokens.
    """
    size, heads, key_heads = step.head_size, step.heads, step.key_heads
    stride = width_of((heads + 2 * key_heads) * size)
    positions = carray(integers_at(step.positions), step.tokens)
    for token in range(team[0], step.tokens, team[1]):
        row, position = step.qkv + 4 * token * stride, positions[token]
        cos, sin = step.cos + 4 * position * size, step.sin + 4 * position * size
        for head in range(heads + key_heads):
            place = row + 4 * head * size
            if layer.query_norm != 0:
                query = head < heads
                weight = layer.query_norm if query else layer.key_norm
                _norm_row(place, size, weight, layer.query_eps if query else layer.key_eps, place)
            _rotate_head(place, size, cos, sin)
        finite = _store(step, layer, row + 4 * heads * size, slots[token], position)
        if mark:
            flags = carray(bytes_at(step.broken + slots[token] * step.capacity), step.capacity)
            flags[position] = not finite


@PLAIN
def _store(step, layer, states, slot, position):
    """Writes one token's keys and values; whether its keys are finite.

    Values lie as the slabs do, [position, head, size]; keys as panels of positions, [position // PANEL, head, size, PANEL].
    """
    size, key_heads = step.head_size, step.key_heads
    width = key_heads * size
    keys = floats(layer.keys + 4 * slot * step.capacity * width, step.capacity * width)
    values = floats(layer.values + 4 * (slot * step.capacity + position) * width, width)
    new_keys, new_values = floats(states, width), floats(states + 4 * width, width)
    panel, lane = position // PANEL * PANEL * width, position % PANEL
    finite = True
    for i in range(width):
        number = new_keys[i]
        if not math.isfinite(number):
            finite, number = False, np.float32(0.0)
        keys[panel + i * PANEL + lane] = number
    for i in range(width):
        number = new_values[i]
        values[i] = number if math.isfinite(number) else np.float32(0.0)
    return finite


# ---------------------------------------------------------------- attention


@PLAIN
def _attend(step, layer, team):
    """Attention of all tokens: a few consecutive ones of a row and one key head at a time, dealt out to the threads.

    All tokens of a head follow one another, so that its keys and values are still near for all but the first.
    """
    together = max(1, ROWS // (step.heads // step.key_heads))
    scratch = step.scratch + 4 * team[0] * step.scratch_size
    pieces = carray(integers_at(step.pieces), (step.num_pieces, 4))
    items = 0
    for piece in range(step.num_pieces):
        items += step.key_heads * ((pieces[piece, 3] + together - 1) // together)
    begin, end = share(items, team)
    item = 0
    for piece in range(step.num_pieces):
        slot, offset, start, number = pieces[piece]
        for head in range(step.key_heads):
            for first in range(0, number, together):
                if begin <= item < end:
                    some = min(together, number - first)
                    _attend_some(step, layer, head, slot, offset + first, start + first, some, scratch)
                item += 1


@REORDERED
def _attend_some(step, layer, head, slot, token, position, number, scratch):
    """Attention of `number` tokens from `token` on, at consecutive positions, over one key head.

    A weight behind a token's own position is 0 and adds nothing, bit for bit, to what tokens beside it need there.
    """
    size, width = step.head_size, step.key_heads * step.head_size
    group = step.heads // step.key_heads
    rows = number * group
    last = position + number - 1
    low = max(0, position - layer.window + 1) // PANEL * PANEL if layer.window > 0 else 0
    extent = last // PANEL * PANEL + PANEL - low
    queries, results, scores = scratch, scratch + 4 * rows * size, scratch + 8 * rows * size
    stride = width_of((step.heads + 2 * step.key_heads) * size)
    for row in range(rows):
        source = step.qkv + 4 * ((token + row // group) * stride + (head * group + row % group) * size)
        taken, query = floats(source, size), floats(queries + 4 * row * size, size)
        for i in range(size):
            query[i] = taken[i] * layer.scaling
    keys = layer.keys + 4 * (slot * step.capacity * width + low * width + head * size * PANEL)
    for block in range(0, extent, PANEL):
        for row in range(0, rows, ROWS):
            some = min(ROWS, rows - row)
            place = scores + 4 * (row * extent + block)
            panel = keys + 4 * block * width
            set_tile(some, queries + 4 * row * size, size, panel, PANEL, size, place, extent, PANEL * width)
    for row in range(rows):
        own = position + row // group
        begin = max(0, own - layer.window + 1) if layer.window > 0 else 0
        _weigh(floats(scores + 4 * row * extent, extent), begin - low, own + 1 - low)
    values = layer.values + 4 * ((slot * step.capacity + low) * width + head * size)
    _mix(scores, extent, rows, values, width, last + 1 - low, size, results)
    for row in range(rows):
        target = step.attended + 4 * ((token + row // group) * step.heads + head * group + row % group) * size
        result, place = floats(results + 4 * row * size, size), floats(target, size)
        for i in range(size):
            place[i] = result[i]


@REORDERED
def _weigh(scores, begin, end):
    """Softmax of scores[begin:end] in place, 0 elsewhere.

    Loops begin at 0: an index that may be negative counts from the end, and who asks for that uses no vectors.
    """
    scores[:begin] = np.float32(0.0)
    scores[end:] = np.float32(0.0)
    seen = scores[begin:end]
    top = _largest(seen)
    total = np.float32(0.0)
    for i in range(len(seen)):
        seen[i] = exp(seen[i] - top)
    for i in range(len(seen)):
        total += seen[i]
    factor = np.float32(1.0) / total
    for i in range(len(seen)):
        seen[i] *= factor


@PLAIN
def _largest(scores):
    """The largest score, in as many lanes as a panel has: a comparison at a time would wait for the one before."""
    lanes = np.full(PANEL, np.float32(-np.inf), np.float32)
    whole = len(scores) // PANEL
    for block in range(whole):
        some = scores[block * PANEL : block * PANEL + PANEL]
        for i in range(PANEL):
            lanes[i] = some[i] if some[i] > lanes[i] else lanes[i]
    top = np.float32(-np.inf)
    for i in range(PANEL):
        top = lanes[i] if lanes[i] > top else top
    for number in scores[whole * PANEL :]:
        top = number if number > top else top
    return top


@FUSED
def _mix(weights, extent, rows, values, width, number, size, out):
    """out [rows, size] = weights [rows, number] times values [number, size]."""
    whole = size // PANEL * PANEL
    for row in range(0, rows, ROWS):
        some = min(ROWS, rows - row)
        for part in range(0, whole, PANEL):
            place = out + 4 * (row * size + part)
            column = values + 4 * part
            set_tile(some, weights + 4 * row * extent, extent, column, width, number, place, size, _AHEAD * width)
    if whole == size:
        return
    taken = floats(values, (number - 1) * width + size)
    for row in range(rows):
        weight, result = floats(weights + 4 * row * extent, number), floats(out + 4 * row * size, size)
        result[whole:] = np.float32(0.0)
        for i in range(number):
            for j in range(whole, size):
                result[j] += weight[i] * taken[i * width + j]


# ---------------------------------------------------------------- the forward


@PLAIN
def _embed(step, slots, wide, team):
    """Copies the embeddings of this thread's tokens; every thread learns the slots of all tokens."""
    ids = carray(integers_at(step.ids), step.tokens)
    for token in range(team[0], step.tokens, team[1]):
        place = floats(step.stream + 4 * token * wide, wide)
        read_numbers(step.embedding, ids[token] * step.hidden, step.hidden, step.embedded, place[: step.hidden])
        place[step.hidden :] = np.float32(0.0)
    pieces = carray(integers_at(step.pieces), (step.num_pieces, 4))
    for piece in range(step.num_pieces):
        slot, offset, _, number = pieces[piece]
        slots[offset : offset + number] = slot


@PLAIN
def _forward(step, team):
    tokens, hidden, queries = step.tokens, step.hidden, step.heads * step.head_size
    wide, opened = width_of(hidden), width_of(step.inner)
    states = width_of(queries + 2 * step.key_heads * step.head_size)
    slots = np.empty(tokens, np.int64)
    layers = carray(layers_at(step.layers), step.num_layers)
    _embed(step, slots, wide, team)
    barrier()
    for i in range(step.num_layers):
        layer = layers[i]
        _norm_rows(step.stream, step.normed, wide, tokens, hidden, layer.input_norm, layer.input_eps, team)
        barrier()
        given = step.normed, wide, tokens
        multiply(*given, layer.qkv, step.stored, hidden, layer.qkv_bias, step.qkv, states, False, team)
        barrier()
        _rotate_and_store(step, layer, slots, i == step.num_layers - 1, team)
        barrier()
        _attend(step, layer, team)
        barrier()
        given = step.attended, queries, tokens
        multiply(*given, layer.output, step.stored, queries, layer.output_bias, step.stream, wide, True, team)
        barrier()
        _norm_rows(step.stream, step.normed, wide, tokens, hidden, layer.inner_norm, layer.inner_eps, team)
        barrier()
        open_gate(step.normed, wide, tokens, layer, step.stored, hidden, step.opened, opened, team)
        barrier()
        given = step.opened, opened, tokens
        multiply(*given, layer.down, step.stored, step.inner, layer.down_bias, step.stream, wide, True, team)
        barrier()
    _logits(step, slots, wide, team)


@PLAIN
def _logits(step, slots, wide, team):
    """Logits of the wanted tokens; NaN where a token at or before is broken: what attention would have passed on."""
    width, number = step.head_panels * PANEL, step.num_wanted
    wanted = carray(integers_at(step.wanted), number)
    positions = carray(integers_at(step.positions), step.tokens)
    for i in range(team[0], number, team[1]):
        source = step.stream + 4 * wanted[i] * wide
        _norm_row(source, step.hidden, step.norm, step.eps, step.normed + 4 * i * wide)
    barrier()
    multiply(step.normed, wide, number, step.head, step.stored, step.hidden, 0, step.logits, width, False, team)
    barrier()
    for i in range(team[0], number, team[1]):
        token = wanted[i]
        flags = carray(bytes_at(step.broken + slots[token] * step.capacity), step.capacity)
        if _any(flags, positions[token] + 1):
            line = floats(step.logits + 4 * i * width, width)
            line[:] = np.float32(np.nan)


@PLAIN
def _any(flags, number):
    found = np.uint8(0)
    for i in range(number):
        found |= flags[i]
    return found != 0


# ---------------------------------------------------------------- several tokens


@PLAIN
def _loop(step, team):
    """Forwards of all rows, each but the first over the choices before it."""
    rows, width = step.num_wanted, step.head_panels * PANEL
    chosen = carray(integers_at(step.chosen), (rows, step.count))
    for turn in range(step.count):
        _forward(step, team)
        barrier()
        for row in range(team[0], rows, team[1]):
            chosen[row, turn] = _best(floats(step.logits + 4 * row * width, step.vocab))
        barrier()
        if team[0] == 0:
            _go_on(step, chosen, turn)
        barrier()


@PLAIN
def _best(scores):
    """The lowest id of the highest score; -1 if one is not a number, or the highest is not finite."""
    top = _largest(scores)
    broken = not math.isfinite(top)
    for i in range(len(scores)):
        broken |= scores[i] != scores[i]
    if not broken:
        for i in range(len(scores)):
            if scores[i] == top:
                return i
    return -1


@PLAIN
def _go_on(step, chosen, turn):
    """The next forward is fed each row's choice, behind what the row was fed before."""
    rows = step.num_pieces
    pieces = carray(integers_at(step.pieces), (rows, 4))
    ids, positions = carray(integers_at(step.ids), rows), carray(integers_at(step.positions), rows)
    wanted = carray(integers_at(step.wanted), rows)
    for row in range(rows):
        slot, _, start, number = pieces[row]
        pieces[row] = slot, row, start + number, 1
        ids[row], positions[row], wanted[row] = max(chosen[row, turn], 0), start + number, row
    step.tokens = rows


def _entries(sources: str, *, cache: bool) -> tuple[Any, Any, Any]:
    """What Python calls: one forward, one loop, and one product, each to be called by every thread of a team.

    numba compiles anew when this file or what a function closes over has changed; `sources` stands for the other files.
    """

    @cfunc(types.void(types.CPointer(STEP_TYPE)), cache=cache, error_model="numpy")
    def run_forward(step):
        _ = sources
        _forward(carray(step, 1)[0], (thread(), threads()))

    @cfunc(types.void(types.CPointer(STEP_TYPE)), cache=cache, error_model="numpy")
    def run_loop(step):
        _ = sources
        _loop(carray(step, 1)[0], (thread(), threads()))

    @cfunc(types.void(types.CPointer(PRODUCT_TYPE)), cache=cache, error_model="numpy")
    def run_product(product):
        _ = sources
        p = carray(product, 1)[0]
        team, width = (thread(), threads()), p.panels * PANEL
        multiply(p.x, p.inner, p.rows, p.weight, p.stored, p.inner, 0, p.out, width, False, team)

    return run_forward, run_loop, run_product


def _compiled() -> tuple[Any, Any, Any]:
    files = (Path(__file__).with_name(name) for name in ("tile.py", "records.py", "compiled_products.py"))
    sources = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    try:
        return _entries(sources, cache=True)
    except (RuntimeError, OSError) as error:
        logger.warning("the compiled forward cannot be kept, every start compiles it: %s; set NUMBA_CACHE_DIR", error)
        return _entries(sources, cache=False)


run_forward, run_loop, run_product = _compiled()
