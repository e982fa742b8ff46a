"""The tile: a few rows times one panel of a matrix, the one loop that all products of the compiled forward are made of.

A panel holds PANEL outputs of a matrix side by side, [in, PANEL], in float32 or in one of the formats of 16 bits, whose numbers
are all numbers of float32 too: they become such where they are used, so the format changes no bit.
Each output is summed over the inputs in their order, by one fused multiply-add each, so its bits depend on its own row alone:
not on how many rows run beside it, nor on threads.
The accumulators of up to ROWS rows stay in vector registers, which no compiler does by itself with a loop over an array;
hence the instructions are written down here.
"""
# mypy: disable-error-code="untyped-decorator,attr-defined"

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from specrouter_llm.runtime.openmp import team_library
from specrouter_llm.runtime.records import BFLOAT16, FLOAT16, FLOAT32

LANES: int
ROWS: int
_, _, _features = cpu_target.target_context.codegen().magic_tuple()
if platform.machine() in ("x86_64", "AMD64") and "+fma" not in _features:
    raise ImportError("this processor has no fused multiply-add")
LANES, ROWS = (16, 11) if "+avx512f" in _features else (8, 6)
"""Numbers in a vector, and rows in a tile: their sums, twice as many vectors as rows, must fit in the registers, and the
addresses of the rows, too (with 12 a tile takes twice as long)."""
VECTORS = 2
PANEL: int = VECTORS * LANES
"""Outputs in a panel."""
PAIRED = 2
"""Rows, at most, that are multiplied by two panels at a time."""
_LINE = 64
FORMATS: tuple[int, ...] = (FLOAT32, BFLOAT16, FLOAT16) if "+f16c" in _features else (FLOAT32, BFLOAT16)
"""How matrices may be stored here."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INDEX = ir.IntType(64)
_INT = ir.IntType(32)
_INTS = ir.VectorType(_INT, LANES)
_HALF = ir.HalfType()


def make_tile(stored: int = FLOAT32) -> Callable[..., None]:
    """The tile for jitted code: (rows, x, x_stride, w, w_stride, inner, out, out_stride, add, ahead), for 1 to ROWS rows.

    Pointers are addresses; strides count numbers, from row to row of x and out and from input to input of w, whose numbers are
    stored so. Where `add` is true they are added to what stands in `out`. What lies `ahead`, so many numbers behind what is
    read of w, is asked for: a processor foresees a stream within a page of 4096 bytes, and waits for memory at every new one.
    """

    @intrinsic
    def tile(
        typing: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        w: Any,
        w_stride: Any,
        inner: Any,
        out: Any,
        out_stride: Any,
        add: Any,
        ahead: Any,
    ) -> tuple[Any, Callable[..., Any]]:
        def emit(builder: Any, number: int, x: Any, x_stride: Any, w: Any, *args: Any) -> None:
            w_stride, inner, out, out_stride, add, ahead = args
            _emit(builder, number, stored, x, x_stride, [w], w_stride, inner, [(out, out_stride)], add, ahead)

        return types.void(*(types.intp,) * 8, types.boolean, types.intp), _for_each_number(ROWS, emit)

    return tile  # type: ignore[no-any-return]  # numba is untyped


def make_pair(stored: int) -> Callable[..., None]:
    """Two tiles over the same rows, of which there are 1 to PAIRED: (rows, x, x_stride, w, other_w, w_stride, inner, out,
    out_stride, other_out, other_stride, add).

    The sums of few rows wait for one another: those of two panels take hardly longer than those of one.
    """

    @intrinsic
    def pair(
        typing: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        w: Any,
        other_w: Any,
        w_stride: Any,
        inner: Any,
        out: Any,
        out_stride: Any,
        other_out: Any,
        other_stride: Any,
        add: Any,
    ) -> tuple[Any, Callable[..., Any]]:
        def emit(builder: Any, number: int, x: Any, x_stride: Any, w: Any, other_w: Any, *args: Any) -> None:
            w_stride, inner, out, out_stride, other_out, other_stride, add = args
            outs = [(out, out_stride), (other_out, other_stride)]
            _emit(builder, number, stored, x, x_stride, [w, other_w], w_stride, inner, outs, add)

        return types.void(*(types.intp,) * 11, types.boolean), _for_each_number(PAIRED, emit)

    return pair  # type: ignore[no-any-return]  # numba is untyped


def _for_each_number(most: int, emit: Callable[..., None]) -> Callable[..., Any]:
    """Code for each number of rows, which is the first argument."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        done = builder.append_basic_block("done")
        choice = builder.switch(args[0], done)
        for number in range(1, most + 1):
            block = builder.append_basic_block("tile")
            choice.add_case(_INDEX(number), block)
            builder.position_at_end(block)
            emit(builder, number, *args[1:])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return generate


def _emit(
    b: Any,
    rows: int,
    stored: int,
    x: Any,
    x_stride: Any,
    panels: list[Any],
    w_stride: Any,
    inner: Any,
    outs: list[tuple[Any, Any]],
    add: Any,
    ahead: Any = None,
) -> None:
    """Sums of `rows` rows over each of `panels`, to the places of `outs` and their strides; weights are asked for `ahead`."""
    fma = cgutils.get_or_insert_function(b.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32")
    inputs = [_at(b, x, b.mul(x_stride, _INDEX(row))) for row in range(rows)]
    before, loop, after = b.block, b.append_basic_block("inner"), b.append_basic_block("sums")
    b.branch(loop)
    b.position_at_end(loop)
    step = b.phi(_INDEX)
    step.add_incoming(_INDEX(0), before)
    sums = [[b.phi(_VECTOR) for _ in range(VECTORS * len(panels))] for _ in range(rows)]
    offset = b.mul(step, w_stride)
    if ahead is not None:
        for w in panels:
            _ask(b, stored, w, b.add(offset, ahead))
    weights = [vector for w in panels for vector in _WEIGHTS[stored](b, w, offset)]
    summed = []
    for line, start in zip(sums, inputs, strict=True):
        number = _spread(b, b.load(b.gep(start, [step])))
        summed.append([b.call(fma, [number, weight, total]) for weight, total in zip(weights, line, strict=True)])
    following = b.add(step, _INDEX(1))
    step.add_incoming(following, loop)
    for line, new in zip(sums, summed, strict=True):
        for total, value in zip(line, new, strict=True):
            total.add_incoming(_VECTOR([0.0] * LANES), before)
            total.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", following, inner), loop, after)
    b.position_at_end(after)
    for row, line in enumerate(summed):
        for number, value in enumerate(line):
            (out, stride), v = outs[number // VECTORS], number % VECTORS
            place = _at(b, out, b.add(b.mul(stride, _INDEX(row)), _INDEX(LANES * v)))
            result = b.select(add, b.fadd(_load(b, place), value), value)
            b.store(result, b.bitcast(place, _VECTOR.as_pointer())).align = 4


def _ask(b: Any, stored: int, w: Any, offset: Any) -> None:
    """Prefetches the lines of one input's weights: addressed as they are, which takes no register more."""
    kind, size = (_FLOAT, 4) if stored == FLOAT32 else (ir.IntType(16), 2)
    byte = ir.IntType(8).as_pointer()
    kinds = [byte, *(_INT,) * 3]
    prefetch = b.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), kinds))
    for line in range(0, size * PANEL, _LINE):
        place = _at(b, w, b.add(offset, _INDEX(line // size)), kind)
        b.call(prefetch, [b.bitcast(place, byte), _INT(0), _INT(3), _INT(1)])  # to read, into all caches, data


def _floats(b: Any, w: Any, offset: Any) -> list[Any]:
    """VECTORS vectors of weights behind so many others."""
    return [_load(b, _at(b, w, b.add(offset, _INDEX(LANES * v)))) for v in range(VECTORS)]


def _halves(b: Any, w: Any, offset: Any) -> list[Any]:
    """The same of float16."""
    places = [_at(b, w, b.add(offset, _INDEX(LANES * v)), _HALF) for v in range(VECTORS)]
    return [b.fpext(_load(b, place, ir.VectorType(_HALF, LANES)), _VECTOR) for place in places]


def _high_halves(b: Any, w: Any, offset: Any) -> list[Any]:
    """The same of bfloat16, the upper half of a float32, laid out in pairs; see `panels`."""
    pairs = _load(b, _at(b, w, offset, ir.IntType(16)), _INTS)
    low, high = b.shl(pairs, _INTS([16] * LANES)), b.and_(pairs, _INTS([0xFFFF0000] * LANES))
    return [b.bitcast(low, _VECTOR), b.bitcast(high, _VECTOR)]


_WEIGHTS = {FLOAT32: _floats, BFLOAT16: _high_halves, FLOAT16: _halves}


def _at(b: Any, address: Any, offset: Any, kind: Any = _FLOAT) -> Any:
    """A pointer to the number at an address and an offset."""
    return b.gep(b.inttoptr(address, kind.as_pointer()), [offset])


def _load(b: Any, place: Any, kind: Any = _VECTOR) -> Any:
    loaded = b.load(b.bitcast(place, kind.as_pointer()))
    loaded.align = 4
    return loaded


def _spread(b: Any, number: Any) -> Any:
    """A vector of one number."""
    undefined = _VECTOR(ir.Undefined)
    first = b.insert_element(undefined, number, _INT(0))
    return b.shuffle_vector(first, undefined, ir.VectorType(_INT, LANES)([0] * LANES))


def pointer_to(kind: Any) -> Callable[[Any], Any]:
    """For jitted code: the pointer to numbers or records of a kind at an address, which `numba.carray` makes an array of."""

    @intrinsic
    def pointer(typing: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
        return types.CPointer(kind)(types.intp), _to_pointer

    return pointer  # type: ignore[no-any-return]  # numba is untyped


def _to_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.inttoptr(args[0], context.get_value_type(signature.return_type))


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """The float32 number that these 32 bits say."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def float_of_half(typing: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """The float32 number that these 16 bits of a float16 say; only where FLOAT16 is one of FORMATS."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if FLOAT16 not in FORMATS:  # never run, and what it would call is not there
            return _FLOAT(0.0)
        return builder.fpext(builder.bitcast(args[0], _HALF), _FLOAT)

    return types.float32(types.int16), generate


def link_team() -> None:
    """Tells the compiler where torch's OpenMP is, whose functions jitted code calls by name.

    Raises:
        ImportError: torch does not run on GNU's OpenMP.
    """
    library = team_library()
    for name in ("GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
