"""Products of the compiled forward, and what all compiled code stands on: how it is compiled, numbers at addresses, shares.

numba does not see when a function of another file has changed: `kernels` tells it, for the files that it names.
"""
# Compiled functions take addresses, sizes and records; numba infers their types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype, njit, types

from specrouter_llm.runtime.records import BFLOAT16, FLOAT16, FLOAT32, LAYER, PRODUCT, STEP
from specrouter_llm.runtime.tile import (
    FORMATS,
    PAIRED,
    PANEL,
    ROWS,
    float_of_bits,
    float_of_half,
    link_team,
    make_pair,
    make_tile,
    pointer_to,
)

link_team()  # before anything is compiled

LAYER_TYPE, STEP_TYPE, PRODUCT_TYPE = from_dtype(LAYER), from_dtype(STEP), from_dtype(PRODUCT)
_floats_at = pointer_to(types.float32)
_halves_at = pointer_to(types.int16)
integers_at = pointer_to(types.intp)
bytes_at = pointer_to(types.uint8)
layers_at = pointer_to(LAYER_TYPE)
_SUMS = {"reassoc", "contract", "nsz", "arcp"}
"""What the order of sums within one number may be changed to; not-a-number stays what it is."""
PLAIN = njit(error_model="numpy")
"""A division by zero is an infinity: a check for it in every loop would keep the compiler from using vectors."""
FUSED = njit(error_model="numpy", fastmath={"contract"})
REORDERED = njit(error_model="numpy", fastmath=_SUMS)
AHEAD = 8192
"""Bytes by which a tile asks for weights ahead of reading them, be it the next panel's."""
barrier = types.ExternalFunction("GOMP_barrier", types.void())
thread = types.ExternalFunction("omp_get_thread_num", types.int32())
threads = types.ExternalFunction("omp_get_num_threads", types.int32())

_tile, _tile_of_bfloat16 = make_tile(), make_tile(BFLOAT16)
_tile_of_float16 = make_tile(FLOAT16 if FLOAT16 in FORMATS else FLOAT32)
_pair, _pair_of_bfloat16 = make_pair(FLOAT32), make_pair(BFLOAT16)
_pair_of_float16 = make_pair(FLOAT16 if FLOAT16 in FORMATS else FLOAT32)


@PLAIN
def width_of(outputs):
    """Outputs, rounded up to whole panels."""
    return (outputs + PANEL - 1) // PANEL * PANEL


@PLAIN
def share(number, team):
    """The first and the one after the last of so many things that are this thread's."""
    return number * team[0] // team[1], number * (team[0] + 1) // team[1]


@PLAIN
def floats(address, number):
    return carray(_floats_at(address), number)


@PLAIN
def read_numbers(address, first, size, stored, out):
    """out [size] = so many numbers behind the first, which are stored so."""
    if stored == FLOAT32:
        out[:] = floats(address + 4 * first, size)
        return
    halves = carray(_halves_at(address + 2 * first), size)
    if stored == BFLOAT16:
        for i in range(size):
            out[i] = float_of_bits(np.int32(halves[i]) << np.int32(16))
    else:
        for i in range(size):
            out[i] = float_of_half(halves[i])


# ---------------------------------------------------------------- products


@PLAIN
def set_tile(rows, x, x_stride, w, w_stride, inner, out, out_stride, ahead):
    """A tile over float32 numbers that are no weights: out = x w."""
    _tile(rows, x, x_stride, w, w_stride, inner, out, out_stride, False, ahead)


@PLAIN
def _multiply_some(rows, x, x_stride, w, stored, inner, out, out_stride, add):
    """Up to ROWS rows times one panel: out = (out +) x w."""
    if stored == FLOAT32:
        _tile(rows, x, x_stride, w, PANEL, inner, out, out_stride, add, AHEAD // 4)
    elif stored == BFLOAT16:
        _tile_of_bfloat16(rows, x, x_stride, w, PANEL, inner, out, out_stride, add, AHEAD // 2)
    else:
        _tile_of_float16(rows, x, x_stride, w, PANEL, inner, out, out_stride, add, AHEAD // 2)


@PLAIN
def _multiply_few(rows, x, x_stride, w, other_w, stored, inner, out, out_stride, other, other_stride, add):
    """Up to PAIRED rows times two panels."""
    if stored == FLOAT32:
        _pair(rows, x, x_stride, w, other_w, PANEL, inner, out, out_stride, other, other_stride, add)
    elif stored == BFLOAT16:
        _pair_of_bfloat16(rows, x, x_stride, w, other_w, PANEL, inner, out, out_stride, other, other_stride, add)
    else:
        _pair_of_float16(rows, x, x_stride, w, other_w, PANEL, inner, out, out_stride, other, other_stride, add)


@PLAIN
def _panel_bytes(stored, inner):
    return (4 if stored == FLOAT32 else 2) * inner * PANEL


@PLAIN
def _add_bias(bias, first, rows, out, stride):
    if bias != 0:
        values = floats(bias + 4 * first, PANEL)
        for row in range(rows):
            line = floats(out + 4 * (row * stride + first), PANEL)
            for i in range(PANEL):
                line[i] += values[i]


@PLAIN
def multiply(x, x_stride, rows, w, stored, inner, bias, out, stride, add, team) -> None:
    """This thread's panels of out [rows, stride] = (out +) x w + bias."""
    first, last = share(stride // PANEL, team)
    size = _panel_bytes(stored, inner)
    paired = first + (last - first) // 2 * 2 if rows <= PAIRED else first
    for panel in range(first, paired, 2):
        weight, place = w + panel * size, out + 4 * panel * PANEL
        beside = place + 4 * PANEL
        _multiply_few(rows, x, x_stride, weight, weight + size, stored, inner, place, stride, beside, stride, add)
        _add_bias(bias, panel * PANEL, rows, out, stride)
        _add_bias(bias, (panel + 1) * PANEL, rows, out, stride)
    for panel in range(paired, last):
        weight = w + panel * size
        for row in range(0, rows, ROWS):
            number = min(ROWS, rows - row)
            some = x + 4 * row * x_stride
            place = out + 4 * (row * stride + panel * PANEL)
            _multiply_some(number, some, x_stride, weight, stored, inner, place, stride, add)
        _add_bias(bias, panel * PANEL, rows, out, stride)


@REORDERED
def open_gate(x, x_stride, rows, layer, stored, inner, out, stride, team) -> None:
    """This thread's panels of out = silu(gate) * up; `out` holds the gate until it is used."""
    up = np.empty(ROWS * PANEL, np.float32)
    beside = up.ctypes.data  # of what is freed where `up` itself is named for the last time
    first, last = share(stride // PANEL, team)
    for panel in range(first, last):
        skip = panel * _panel_bytes(stored, inner)
        for row in range(0, rows, ROWS):
            number = min(ROWS, rows - row)
            some = x + 4 * row * x_stride
            place = out + 4 * (row * stride + panel * PANEL)
            gates, ups = layer.gate + skip, layer.up + skip
            if number <= PAIRED:
                _multiply_few(number, some, x_stride, gates, ups, stored, inner, place, stride, beside, PANEL, False)
            else:
                _multiply_some(number, some, x_stride, gates, stored, inner, place, stride, False)
                _multiply_some(number, some, x_stride, ups, stored, inner, beside, PANEL, False)
            _add_bias(layer.gate_bias, panel * PANEL, number, out + 4 * row * stride, stride)
            if layer.up_bias != 0:
                _add_bias(layer.up_bias + 4 * panel * PANEL, 0, number, beside, PANEL)
            for i in range(number):
                gate, factor = floats(place + 4 * i * stride, PANEL), up[i * PANEL : i * PANEL + PANEL]
                for j in range(PANEL):
                    gate[j] = gate[j] / (np.float32(1.0) + exp(-gate[j])) * factor[j]


@FUSED
def exp(x):
    """e^x in float32 to 2 units in the last place, after Cephes' expf; vectors of it, which libm has not."""
    x = min(max(x, np.float32(-87.3)), np.float32(88.0)) if x == x else x
    whole = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375)
    x = x - whole * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1.0)
    return y * float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
