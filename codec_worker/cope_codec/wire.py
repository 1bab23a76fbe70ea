"""How a worker's results travel: a JSON header that is checked against the types expected, then the arrays' memory.

    8 bytes magic | 8 bytes length of the header | header | array | array | ...      each array 64-byte aligned

The reader distrusts the writer. Nothing in the format names code to run; every value must have the type that the
reader's own annotation says; shapes and the header's length must add up to the size of the file, exactly.

Values: None, bool, int (64 bits), float (finite), str, bytes, Fraction, Literal, X | None, list and tuple of one kind,
fixed-length tuples, NDArray of a fixed type, and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

_MAGIC = b"COPEWIR1"
_START = struct.Struct("<8sQ")
_ALIGN = 64
MOST_HEADER_BYTES = 4 << 20  # the largest plan that options allow, 4096 GOPs, takes 0.4 MB
_MOST_INT = 1 << 63
_COLUMNS: dict[Any, np.dtype[Any]] = {
    bool: np.dtype(np.bool_),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
}


class MalformedError(ValueError):
    """What was read is not what `pack` writes of such a value."""


def pack(value: object, kind: Any) -> Iterator[tuple[int, bytes | memoryview]]:
    """Take a value apart; its arrays are not copied.

    Args:
        value: what to write.
        kind: its type, as an annotation.

    Yields:
        (position in the file, bytes).

    Raises:
        TypeError, ValueError: the value is not of that type.
    """
    arrays: list[npt.NDArray[Any]] = []
    header = json.dumps(_plain(value, kind, arrays), allow_nan=False, separators=(",", ":")).encode()
    yield 0, _START.pack(_MAGIC, len(header)) + header
    at = _START.size + len(header)
    for array in arrays:
        if array.nbytes:
            at = _aligned(at)
            yield at, array.reshape(-1).view(np.uint8).data
            at += array.nbytes


def packed(value: object, kind: Any) -> bytearray:
    """What `pack` yields, in one piece."""
    out = bytearray()
    for at, piece in pack(value, kind):
        out += bytes(at - len(out))
        out += piece
    return out


def unpack(memory: memoryview, kind: Any) -> Any:
    """Put a value together; its arrays are read-only views of the memory.

    Args:
        memory: all that was written, and which nobody can change any more.
        kind: the type expected, as an annotation.

    Raises:
        MalformedError: whatever is wrong with it.
    """
    try:
        magic, header_bytes = _START.unpack_from(memory)
        if magic != _MAGIC or header_bytes > min(MOST_HEADER_BYTES, len(memory) - _START.size):
            raise MalformedError("no header")
        end = _START.size + header_bytes
        plain = json.loads(bytes(memory[_START.size : end]), parse_constant=_refuse)
        arrays = _Arrays(memory.toreadonly(), end)
        value = _typed(plain, kind, arrays)
    except MalformedError:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError, struct.error) as error:
        raise MalformedError(f"{type(error).__name__}: {str(error)[:200]}") from None
    if arrays.end != len(memory):
        raise MalformedError(f"{len(memory)} bytes where {arrays.end} are announced")
    return value


def _refuse(word: str) -> None:
    raise MalformedError(f"{word} is no number")


def _plain(value: Any, kind: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """The JSON form of a value; arrays are put aside, in the order in which the reader will come upon them."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _plain(value, _only(parts), arrays)
    if origin is np.ndarray:
        dtype = _dtype(parts)
        if value.dtype != dtype:
            raise TypeError(f"an array of {value.dtype} where {dtype} is expected")
        arrays.append(np.ascontiguousarray(value))
        return list(value.shape)
    if kind is bytes:
        arrays.append(np.frombuffer(value, np.uint8))
        return len(value)
    if origin is tuple and _is_row(parts[0]):
        for name, part in _fields(parts[0]):
            arrays.append(np.array([getattr(item, name) for item in value], _COLUMNS[part]))
        return len(value)
    if origin in (list, tuple):
        return [_plain(item, part, arrays) for item, part in zip(value, _kinds(kind, len(value)), strict=True)]
    if kind is Fraction:
        return [value.numerator, value.denominator]
    if dataclasses.is_dataclass(kind):
        return [_plain(getattr(value, name), part, arrays) for name, part in _fields(kind)]
    return kind(value) if kind in (bool, int, float) else value  # numpy's numbers are none to JSON


class _Arrays:
    """Hands out the memory behind the header, piece by piece."""

    def __init__(self, memory: memoryview, start: int) -> None:
        self._memory = memory
        self.end = start

    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        size = math.prod(shape) * dtype.itemsize
        if not size:
            empty = np.empty(shape, dtype)
            empty.setflags(write=False)
            return empty
        start = _aligned(self.end)
        if size > len(self._memory) - start:
            raise MalformedError("an array reaches beyond the end")
        self.end = start + size
        # Views, so that a `memoryview` of anything is good enough, and none of them can be made writable.
        array = np.frombuffer(self._memory, np.uint8, size, start).view(dtype).reshape(shape)
        if dtype == np.bool_ and int(array.view(np.uint8).max()) > 1:
            raise MalformedError("a truth value that is neither 0 nor 1")
        return array


def _typed(plain: Any, kind: Any, arrays: _Arrays) -> Any:
    """A value of the type expected from its JSON form."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if plain is None else _typed(plain, _only(parts), arrays)
    if origin is np.ndarray:
        return arrays.take(_dtype(parts), tuple(_size(item) for item in _list(plain)))
    if kind is bytes:
        return arrays.take(np.dtype(np.uint8), (_size(plain),)).tobytes()
    if origin is tuple and _is_row(parts[0]):
        columns = [arrays.take(_COLUMNS[part], (_size(plain),)) for _, part in _fields(parts[0])]
        if any(column.dtype.kind == "f" and not np.isfinite(column).all() for column in columns):
            raise MalformedError("a number that is not finite")
        return tuple(parts[0](*row) for row in zip(*(column.tolist() for column in columns), strict=True))
    if origin in (list, tuple):
        items = _list(plain)
        typed = [_typed(item, part, arrays) for item, part in zip(items, _kinds(kind, len(items)), strict=True)]
        return typed if origin is list else tuple(typed)
    if kind is Fraction:
        numerator, denominator = (_typed(item, int, arrays) for item in _list(plain))
        return Fraction(numerator, denominator)
    if dataclasses.is_dataclass(kind):
        fields = _fields(kind)
        values = [_typed(item, part, arrays) for item, (_, part) in zip(_list(plain), fields, strict=True)]
        assert isinstance(kind, type)
        return kind(**{name: value for (name, _), value in zip(fields, values, strict=True)})
    if origin is Literal:
        if not isinstance(plain, str) or plain not in parts:
            raise MalformedError("not one of the words expected")
        return plain
    if kind is float and type(plain) in (int, float) and math.isfinite(plain):
        return float(plain)
    if kind in (bool, int, str, NoneType) and type(plain) is kind:
        if kind is int and not -_MOST_INT <= plain < _MOST_INT:
            raise MalformedError("a number of more than 64 bits")
        return plain
    raise MalformedError(f"{type(plain).__name__} where {kind} is expected")


def _list(plain: Any) -> list[Any]:
    if not isinstance(plain, list):
        raise MalformedError(f"{type(plain).__name__} where a list is expected")
    return plain


def _size(plain: Any) -> int:
    if type(plain) is not int or not 0 <= plain < _MOST_INT:
        raise MalformedError("not a size")
    return plain


def _only(parts: tuple[Any, ...]) -> Any:
    """X of `X | None`."""
    (kind,) = (part for part in parts if part is not NoneType)
    return kind


def _kinds(kind: Any, count: int) -> list[Any]:
    """The types of a sequence's items."""
    parts = list(get_args(kind))
    return parts[:1] * count if get_origin(kind) is list or parts[-1] is Ellipsis else parts


def _dtype(parts: tuple[Any, ...]) -> np.dtype[Any]:
    """The element type of an annotated array."""
    dtype: np.dtype[Any] = np.dtype(get_args(parts[1])[0])
    return dtype


def _fields(kind: Any) -> list[tuple[str, Any]]:
    """Names and types of a dataclass's fields that its constructor takes."""
    return _fields_of(kind)


@cache
def _fields_of(kind: type) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind) if field.init]


@cache
def _is_row(kind: Any) -> bool:
    """A dataclass of numbers alone: many of them travel as columns, which are read a hundred times as fast."""
    return dataclasses.is_dataclass(kind) and all(part in _COLUMNS for _, part in _fields(kind))


def _aligned(at: int) -> int:
    return -(-at // _ALIGN) * _ALIGN
