"""The same packets can be shown in other ways: a key must tell them apart, or one file gets another's pictures."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from clips import clip, encoded

import cope_codec
from cope_codec import cache, samples

SIDE = 64
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


def turned(data: bytes, degrees: int, box: bytes = b"tkhd") -> bytes:
    """The file with another matrix in its header, and nothing else changed."""
    at = data.index(matrix(1, 0, 0, 1), data.index(box))
    return data[:at] + matrix(*TURNS[degrees]) + data[at + 36 :]


@pytest.mark.parametrize("box", [b"tkhd", b"mvhd"])
def test_a_turned_file_has_other_keys(box: bytes) -> None:
    data = clip(4)
    keys = {gop.key for degrees in (90, 180, 270) for gop in cope_codec.open(turned(data, degrees, box)).plan.gops}
    assert len(keys) == 3
    assert not keys & {gop.key for gop in cope_codec.open(data).plan.gops}


def test_the_cache_does_not_turn_another_file() -> None:
    data = clip(4)
    store = cache.PrimitivesCache()
    (upright,) = cache.extract(cope_codec.open(data), SIDE, store)
    (other,) = cache.extract(cope_codec.open(turned(data, 90)), SIDE, store)
    assert (upright.rotation, other.rotation) == (0, 90)
    np.testing.assert_array_equal(other.keyframes[0], np.rot90(upright.keyframes[0], -1))


def coloured(codec: str, color_range: int, colorspace: int) -> bytes:
    """The same packets; the container, not the stream, says what their colours mean."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = color_range, colorspace
        for picture in samples.scene(160, 96, 2, 10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("codec", ["ffv1", "mpeg4"])
def test_other_colours_have_other_keys(codec: str) -> None:
    gops = [next(iter(cope_codec.open(coloured(codec, *how)).gops(SIDE))) for how in ((1, 5), (2, 1), (1, 9))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(gops[one].keyframes, gops[other].keyframes)
        assert gops[one].key != gops[other].key


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_the_same_file_has_the_same_keys(container: str) -> None:
    data = encoded(4, container=container)
    assert cope_codec.open(data).plan == cope_codec.open(bytes(bytearray(data))).plan


def test_a_header_that_only_ffmpeg_understands_does_not_share_keys() -> None:
    """More boxes than are read here: the key then holds the whole file."""
    data = clip(4)
    at = data.index(b"moov") - 4
    padding = struct.pack(">I4s", 8, b"free") * 1001
    size = int.from_bytes(data[at : at + 4], "big") + len(padding)
    padded = data[:at] + struct.pack(">I4s", size, b"moov") + padding + data[at + 8 :]
    keys = [{gop.key for gop in cope_codec.open(file).plan.gops} for file in (data, padded, turned(padded, 90))]
    assert len(set.union(*keys)) == sum(map(len, keys))
