"""The format of a worker's results: everything comes back as it was, and nothing else is let in."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from clips import clip

import cope_codec
from cope_codec import GopPrimitives, PacketIndex, VideoPlan
from cope_codec.wire import MalformedError, packed, unpack


def there_and_back(value: Any, kind: Any) -> Any:
    return unpack(memoryview(bytes(packed(value, kind))), kind)


def test_a_plan_an_index_and_primitives_come_back_as_they_were() -> None:
    video = cope_codec.open(clip(12), gop_slots=4, start_s=1.25)
    assert there_and_back(video.plan, VideoPlan) == video.plan
    index = there_and_back(video.index, PacketIndex)
    for field in dataclasses.fields(PacketIndex):
        ours, theirs = getattr(index, field.name), getattr(video.index, field.name)
        same = np.array_equal(ours, theirs) if isinstance(theirs, np.ndarray) else ours == theirs
        assert same, field.name
        assert type(ours) is type(theirs), field.name
    gops = list(video.gops(64))
    for ours, theirs in zip(there_and_back(gops, list[GopPrimitives]), gops, strict=True):
        assert repr(ours) == repr(theirs)
        for name, array in theirs.arrays().items():
            assert ours.arrays()[name].tobytes() == array.tobytes()
            assert not ours.arrays()[name].flags.writeable


@pytest.mark.alone
def test_the_index_of_eight_hours_is_quick() -> None:
    index = cope_codec.open(clip(4)).index
    million = {
        field.name: np.resize(value, (1_000_000, *value.shape[1:])) if isinstance(value, np.ndarray) else value
        for field in dataclasses.fields(PacketIndex)
        for value in (getattr(index, field.name),)
    }
    long = PacketIndex(**million)
    started = time.perf_counter()
    back = there_and_back(long, PacketIndex)
    assert time.perf_counter() - started < 1.0
    assert np.array_equal(back.digests, long.digests)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, int | None),
        (-(2**63), int),
        (0.1, float),
        ("ä\0", str),
        (b"", bytes),
        (b"\xff\0", bytes),
        (Fraction(1001, 30000), Fraction | None),
        ((), tuple[int, ...]),
        ([[1], []], list[list[int]]),
    ],
)
def test_plain_values(value: Any, kind: Any) -> None:
    assert there_and_back(value, kind) == value


@dataclasses.dataclass(frozen=True)
class Pair:
    name: str
    numbers: np.ndarray[tuple[Any, ...], np.dtype[np.int16]]


GOOD = bytes(packed(Pair("x", np.arange(5, dtype=np.int16)), Pair))


def with_header(change: Callable[[Any], Any]) -> bytes:
    length = struct.unpack_from("<Q", GOOD, 8)[0]
    header = json.dumps(change(json.loads(GOOD[16 : 16 + length]))).encode()
    body = GOOD[64:]
    start = GOOD[:8] + struct.pack("<Q", len(header)) + header
    return start + bytes(-len(start) % 64) + body


def test_the_example_is_good() -> None:
    assert unpack(memoryview(with_header(lambda header: header)), Pair).numbers.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:10],
        GOOD[:20],
        GOOD[:-1],
        GOOD + b"\0",
        b"\x80\x05" + GOOD[2:],
        GOOD[:8] + struct.pack("<Q", 1 << 60) + GOOD[16:],
        GOOD[:8] + struct.pack("<Q", 1 << 22) + b"[" * (1 << 22),
        with_header(lambda header: ["x", [6]]),
        with_header(lambda header: ["x", [4]]),
        with_header(lambda header: ["x", [-5]]),
        with_header(lambda header: ["x", [2**62, 2**62]]),
        with_header(lambda header: ["x", [5] * 100]),
        with_header(lambda header: ["x", [5.0]]),
        with_header(lambda header: ["x", 5]),
        with_header(lambda header: [1, [5]]),
        with_header(lambda header: ["x"]),
        with_header(lambda header: ["x", [5], 1]),
        with_header(lambda header: {"name": "x", "numbers": [5]}),
        with_header(lambda header: None),
    ],
)
def test_whatever_is_wrong_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        unpack(memoryview(data), Pair)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"NaN", float),
        (b"1e999", float),
        (b"9223372036854775808", int),
        (b"1" * 5000, int),
        (b"true", int),
        (b"1", bool),
        (b"null", str),
        (b"[1,0]", Fraction),
        (b'"dense "', cope_codec.plan.PlanMode),
    ],
)
def test_values_of_another_kind_are_refused(header: bytes, kind: Any) -> None:
    data = b"COPEWIR1" + struct.pack("<Q", len(header)) + header
    with pytest.raises(MalformedError):
        unpack(memoryview(data), kind)


def test_truth_values_are_0_or_1() -> None:
    kind = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
    data = packed(np.array([True, False]), kind)
    data[-1] = 2
    with pytest.raises(MalformedError):
        unpack(memoryview(bytes(data)), kind)
