"""Sixteen bytes at a time: the few vector operations of the picture kernels that a compiler does not find by itself.

A motion cell's row is 12 bytes (4 pixels x 3 colours). LLVM unrolls loops that short before it looks for vectors, and
may then not reorder loads over stores that could overlap, so the plain loop runs byte by byte. These intrinsics say it
in LLVM's own vector types, which become SSE, AVX or NEON instructions, whatever the machine has. Rows are read and
written 16 bytes wide: the caller sees to it that 4 bytes beyond the 12 exist and may be overwritten.
"""

# Arrays are one-dimensional and uint8; offsets and strides count bytes.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LANES, _ROWS = 16, 4
_U8, _U16, _U32 = (ir.VectorType(ir.IntType(bits), _LANES) for bits in (8, 16, 32))
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_CELL_LANES = [255] * 12 + [0] * 4  # the lanes that belong to a cell


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _U8.as_pointer())


def _load(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    value = builder.load(_pointer(context, builder, array_type, array, offset))
    value.align = 1
    return value


def _store(context: Any, builder: Any, value: Any, array_type: Any, array: Any, offset: Any) -> None:
    builder.store(value, _pointer(context, builder, array_type, array, offset)).align = 1


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_U16, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_U32, [0] * _LANES))


def _row(builder: Any, start: Any, stride: Any, number: int) -> Any:
    return builder.add(start, builder.mul(stride, ir.Constant(_I64, number)))


@intrinsic
def lerp_cell(typing, source, at, stride, w00, w01, w10, w11, out, to):  # type: ignore[no-untyped-def]
    """Interpolate a cell bilinearly: 4 rows of 16 bytes from 5 rows of `source`.

    `out[to + stride r + j] = (p00 w00 + p01 w01 + p10 w10 + p11 w11 + 128) >> 8` for r < 4, j < 16, where p00 is
    `source[at + stride r + j]`, p01 lies one pixel (3 bytes) to its right and p10, p11 one row below. The weights
    (uint16) add up to 256, so that 16 bits hold every sum. Reads up to `at + 4 stride + 18`.
    """
    signature = types.void(
        source, types.intp, types.intp, types.uint16, types.uint16, types.uint16, types.uint16, out, types.intp
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, at, stride, *weights, out, to = arguments
        w00, w01, w10, w11 = (_splat(builder, weight) for weight in weights)
        pixel = ir.Constant(_I64, 3)

        def read(row: int) -> tuple[Any, Any]:
            start = _row(builder, at, stride, row)
            left = _load(context, builder, signature.args[0], source, start)
            right = _load(context, builder, signature.args[0], source, builder.add(start, pixel))
            return builder.zext(left, _U16), builder.zext(right, _U16)

        above = read(0)
        for row in range(_ROWS):
            below = read(row + 1)
            total = ir.Constant(_U16, [128] * _LANES)
            for value, weight in ((above[0], w00), (above[1], w01), (below[0], w10), (below[1], w11)):
                total = builder.add(total, builder.mul(value, weight))
            result = builder.trunc(builder.lshr(total, ir.Constant(_U16, [8] * _LANES)), _U8)
            _store(context, builder, result, signature.args[7], out, _row(builder, to, stride, row))
            above = below
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def sad_cell(typing, one, at, other, to, stride):  # type: ignore[no-untyped-def]
    """Sum of absolute differences of a cell (4 rows of 12 bytes) of two pictures, int32."""
    signature = types.int32(one, types.intp, other, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one, at, other, to, stride = arguments
        total = ir.Constant(_U16, [0] * _LANES)
        for row in range(_ROWS):
            a = _load(context, builder, signature.args[0], one, _row(builder, at, stride, row))
            b = _load(context, builder, signature.args[2], other, _row(builder, to, stride, row))
            larger = builder.icmp_unsigned(">", a, b)
            difference = builder.sub(builder.select(larger, a, b), builder.select(larger, b, a))
            inside = builder.and_(difference, ir.Constant(_U8, _CELL_LANES))
            total = builder.add(total, builder.zext(inside, _U16))  # 4 x 255 fits
        sum_up = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I32, [_U32]), f"llvm.vector.reduce.add.v{_LANES}i32"
        )
        return builder.call(sum_up, [builder.zext(total, _U32)])

    return signature, generate


@intrinsic
def copy_cell(typing, source, at, stride, out, to):  # type: ignore[no-untyped-def]
    """Copy 4 rows of 16 bytes; both pictures have the same stride."""
    signature = types.void(source, types.intp, types.intp, out, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, at, stride, out, to = arguments
        for row in range(_ROWS):
            value = _load(context, builder, signature.args[0], source, _row(builder, at, stride, row))
            _store(context, builder, value, signature.args[3], out, _row(builder, to, stride, row))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def swap_red_and_blue(typing, source, at, out, to):  # type: ignore[no-untyped-def]
    """Turn 4 pixels BGR into RGB, or back; 4 bytes behind them are overwritten."""
    signature = types.void(source, types.intp, out, types.intp)
    order = [3 * pixel + 2 - colour for pixel in range(4) for colour in range(3)] + [12, 13, 14, 15]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, at, out, to = arguments
        value = _load(context, builder, signature.args[0], source, at)
        swapped = builder.shuffle_vector(value, value, ir.Constant(_U32, order))
        _store(context, builder, swapped, signature.args[2], out, to)
        return context.get_dummy_value()

    return signature, generate
