"""Bombs: small files that announce, or hide, far more than they should be allowed to take."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest
from clips import clip

import cope_codec
from cope_codec import CodecError, VideoOptions, samples
from cope_codec.limits import Limits
from cope_codec.pool import CodecPool

pytestmark = pytest.mark.alone

REFUSED_WITHIN_S = 4.0  # the mark is 2 s on an idle machine
MOST_BYTES = 300 * 1024 * 1024


def at_times(times_s: list[float], side: int = 16, container: str = "mp4") -> bytes:
    """Tiny frames shown at the given times."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream("mpeg4", rate=1)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 30)
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), number % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time_s * 30), Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def ten_hours_of_16x16() -> bytes:
    """A million packets: one encoded frame, muxed again and again."""
    (packet, *_), buffer = packets_of(at_times([0, 1])), io.BytesIO()
    with av.open(io.BytesIO(at_times([0, 1]))) as source, av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number in range(10 * 3600 * 10):
            copy = av.Packet(packet)
            copy.pts = copy.dts = number * 3
            copy.duration, copy.time_base, copy.stream = 3, Fraction(1, 30), stream
            copy.is_keyframe = True
            output.mux(copy)
    return buffer.getvalue()


def packets_of(data: bytes) -> list[bytes]:
    with av.open(io.BytesIO(data)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def atom(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I4s", len(body) + 8 if size is None else size, kind) + body


def huge_header(first: int = 0) -> bytes:
    """JPEG pictures that claim 16000 x 16000, from the given one on; if it is the first, so does the container."""
    pictures = samples.scene(64, 48, 2, 10, disc=False)
    how = {"codec": "mjpeg", "container": "mov", "b_frames": 0, "options": {"strict": "unofficial"}}
    data = bytearray(samples.encode(pictures, fps=10, quantiser=5, **how))
    at = -1
    for number in range(20):
        at = data.index(b"\xff\xc0", at + 1)
        assert struct.unpack_from(">HH", data, at + 5) == (48, 64)
        if number >= first:
            struct.pack_into(">HH", data, at + 5, 16000, 16000)
    if first == 0:
        at = data.index(b"jpeg", data.index(b"stsd")) + 4 + 24
        assert struct.unpack_from(">HH", data, at) == (64, 48)
        struct.pack_into(">HH", data, at, 16000, 16000)
    return bytes(data)


def declared_gigabyte() -> bytes:
    data = clip(4)
    at = data.index(b"moov") - 4
    return data[:at] + struct.pack(">I", 1 << 30) + data[at + 4 :]


def gigabyte_of_samples() -> bytes:
    """A sample table that says it has a quarter of a thousand million entries."""
    data = bytearray(clip(4))
    at = data.index(b"stsz") + 12
    struct.pack_into(">I", data, at, (1 << 28) - 1)
    return bytes(data)


def nested() -> bytes:
    body = b""
    for _ in range(20_000):
        body = atom(b"moov", body)
    return atom(b"ftyp", b"isom\0\0\2\0isom") + body


def endless() -> bytes:
    """A Matroska segment of unknown size, full of clusters of unknown size without a frame."""
    head = clip(1, container="matroska")
    return head + bytes.fromhex("1f43b67501ffffffffffffff") * 500_000


BOMBS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "16000 x 16000": (huge_header, {"video_too_large", "invalid_video"}),
    "ten hours of 16 x 16": (ten_hours_of_16x16, {"video_too_large"}),
    "three frames over fifteen hours": (lambda: at_times([0, 1, 15 * 3600]), {"video_too_large"}),
    "the same in Matroska": (lambda: at_times([0, 1, 15 * 3600], container="matroska"), {"video_too_large"}),
    "an atom of 1 GB": (declared_gigabyte, {"invalid_video", "no_frames", ""}),
    "a table of 1 GB": (gigabyte_of_samples, {"invalid_video", "no_frames", "video_too_large", "out_of_memory", ""}),
    "nested atoms": (nested, {"invalid_video", "no_video_stream"}),
    "endless clusters": (endless, {"invalid_video", "no_frames", ""}),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with CodecPool(1) as made:
        made.wait_until_warm()
        yield made


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time_and_memory(pool: CodecPool, name: str) -> None:
    make, codes = BOMBS[name]
    data = make()
    pool.wait_until_warm()
    process = psutil.Process(pool.pids()[0])
    before = process.memory_info().rss
    started = time.monotonic()
    peak = before
    job = pool.open_soon(data)
    while not job.done():
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.001)
    took = time.monotonic() - started
    error = job.exception()
    assert (error.code if isinstance(error, CodecError) else "" if error is None else repr(error)) in codes
    assert took < REFUSED_WITHIN_S
    assert peak - before < MOST_BYTES


def test_every_limit_has_its_refusal() -> None:
    data = clip(12)
    for limits, words in (
        (Limits(max_bytes=1000), "bytes"),
        (Limits(max_pixels=1000), "too large"),
        (Limits(max_packets=100), "frames"),
        (Limits(max_duration_s=5), "lasts"),
        (Limits(max_decoded_pixels=10**6), "pixels to decode"),
    ):
        with pytest.raises(CodecError, match=words) as caught:
            cope_codec.open(data, limits=limits)
        assert caught.value.code == "video_too_large", limits


def test_a_picture_that_grows_on_the_way_is_not_decoded(pool: CodecPool) -> None:
    pool.wait_until_warm()
    process = psutil.Process(pool.pids()[0])
    video = pool.open(huge_header(first=11), VideoOptions(fps=5, gop_slots=1, mode="transcode"))
    gops = list(video.gops(64))
    assert [gop.missing for gop in gops] == [0] * 6 + [1] * 4
    assert process.memory_info().rss < 600 * 1024 * 1024
    assert pool.pids() == [process.pid]


def test_what_a_container_hides_is_found_on_the_way() -> None:
    data = clip(12, container="h264")  # announces neither length nor number
    with pytest.raises(CodecError, match="frames") as caught:
        cope_codec.open(data, limits=Limits(max_packets=100))
    assert caught.value.code == "video_too_large"
    with pytest.raises(CodecError, match="lasts") as caught:
        cope_codec.open(clip(12, container="mpegts"), limits=Limits(max_duration_s=5))
    assert caught.value.code == "video_too_large"


def test_a_shorter_clip_is_the_way_round_too_much_to_decode() -> None:
    limits = Limits(max_decoded_pixels=320 * 240 * 100)
    with pytest.raises(CodecError):
        cope_codec.open(clip(12), limits=limits)
    assert cope_codec.open(clip(12), VideoOptions(end_s=4), limits=limits).plan.seconds == 4


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), True, "1"])
def test_limits_check_themselves(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="wall_s"):
        Limits(wall_s=value)  # type: ignore[arg-type]


def test_whole_numbers_are_whole() -> None:
    with pytest.raises(TypeError, match="max_bytes"):
        Limits(max_bytes=1.5)  # type: ignore[arg-type]
