"""Growing input: GOPs come out on the way, and are those of the whole file."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from clips import clip, encoded

from cope_codec import CodecError, GopPrimitives, VideoFeed, VideoOptions, index, samples
from cope_codec import feed as feed_module
from cope_codec import open as open_video
from cope_codec.limits import Limits
from cope_codec.plan import VideoPlan

SIDE = 64
STREAMED = {
    "mpegts": {"container": "mpegts"},
    "matroska": {"container": "matroska"},
    "fragmented mp4": {"muxer": (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)},
    "h264": {"container": "h264"},
    "h264 without B-frames": {"container": "h264", "b_frames": 0},
    "hevc": {"codec": "libx265", "container": "hevc", "options": (("x265-params", "log-level=none:pools=1"),)},
    "mpeg2 in ts": {"codec": "mpeg2video", "container": "mpegts", "fps": 25},
    "mpeg4 in matroska": {"codec": "mpeg4", "container": "matroska"},
}


def same(ours: list[GopPrimitives], theirs: list[GopPrimitives]) -> None:
    assert [gop.key for gop in ours] == [gop.key for gop in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.index == other.index
        for name, array in mine.arrays().items():
            np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)


@pytest.mark.parametrize("mode", ["auto", "transcode", "paper"])
@pytest.mark.parametrize("name", STREAMED)
def test_gops_come_out_as_they_are_complete(name: str, mode: str) -> None:
    data = encoded(12, **STREAMED[name])
    options = VideoOptions(mode=mode, gop_slots=2)
    whole = list(open_video(data, options).gops(SIDE))
    assert len(whole) == 6
    got: list[GopPrimitives] = []
    after: list[int] = []  # GOPs delivered, piece by piece
    piece = len(data) // 30 + 1
    with VideoFeed(options, SIDE) as feed:
        for start in range(0, len(data), piece):
            got += feed.feed(data[start : start + piece])
            after.append(len(got))
        assert 4 <= len(got) < 6
        assert after[17] >= 1  # half of the bytes, three GOPs' worth, give at least the first
        got += feed.finish()
    same(got, whole)


@pytest.mark.parametrize("name", ["mpegts", "matroska", "h264"])
def test_the_size_of_the_pieces_does_not_matter(name: str) -> None:
    data = encoded(6, **STREAMED[name])
    options = VideoOptions(gop_slots=1, fps=2)
    whole = list(open_video(data, options).gops(SIDE))
    sizes = np.random.default_rng(3).integers(1, len(data) // 20, 200)
    got: list[GopPrimitives] = []
    with VideoFeed(options, SIDE) as feed:
        position = 0
        for size in sizes:
            got += feed.feed(data[position : position + size])
            position += size
        got += [*feed.feed(data[position:]), *feed.finish()]
    same(got, whole)


def test_a_plain_mp4_comes_at_the_end() -> None:
    data = clip(6)
    feed = VideoFeed(VideoOptions(gop_slots=2), SIDE)
    assert list(feed.feed(data[: len(data) // 2])) == []
    assert list(feed.feed(data[len(data) // 2 : -100])) == []
    feed.feed(data[-100:])
    feed.close()
    feed = VideoFeed(VideoOptions(gop_slots=2), SIDE)
    got = [*feed.feed(data[:-1]), *feed.feed(data[-1:]), *feed.finish()]
    same(got, list(open_video(data, gop_slots=2).gops(SIDE)))


def test_an_mp4_that_starts_with_its_index_is_not_read_ahead_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(io.BytesIO(encoded(6))) as source, av.open(path, "w", options={"movflags": "faststart"}) as output:
        track = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = track
                output.mux(packet)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    got: list[GopPrimitives] = []
    with VideoFeed(VideoOptions(gop_slots=2), SIDE) as feed:
        for start in range(0, len(data), 2000):
            got += feed.feed(data[start : start + 2000])
        assert got
        got += feed.finish()
    same(got, list(open_video(data, gop_slots=2).gops(SIDE)))


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_the_lag_does_not_grow_with_the_stream(container: str) -> None:
    slots = 8
    pictures = samples.scene(64, 64, 600, 5, pan_px_s=(20.0, 0.0), disc=False)
    data = samples.encode(pictures, codec="mpeg4", container=container, fps=5, gop=10, b_frames=0)
    with av.open(io.BytesIO(data)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        ends = [(packet.pos, float(packet.pts * packet.time_base)) for packet in packets]
    came: list[float] = []  # stream time received when each GOP came, seconds
    piece = 150  # a third of a second
    with VideoFeed(VideoOptions(gop_slots=slots), 16) as feed:
        for start in range(0, len(data), piece):
            for _ in feed.feed(data[start : start + piece]):
                came.append(max(time_s for at, time_s in ends if at <= start + piece) - ends[0][1])
        rest = list(feed.finish())
    assert len(came) + len(rest) == 75
    assert len(rest) <= 2
    lags = np.array(came) - slots * np.arange(1, len(came) + 1)
    assert lags.min() >= 0
    assert lags[2:].max() < 3  # of a GOP's 8 seconds; the first ones wait until FFmpeg says what the stream is


def test_a_small_stream_gives_gops_on_the_way() -> None:
    data = encoded(8, container="matroska")
    assert len(data) < 64 * 1024
    with VideoFeed(VideoOptions(gop_slots=2), SIDE) as feed:
        assert len([gop for at in range(0, len(data), 500) for gop in feed.feed(data[at : at + 500])]) == 3


def test_each_packet_is_read_once_and_planned_twice_a_gop(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(30, container="matroska", gop=15)
    digests, plans = 0, 0
    original = index.digest, feed_module.make_plan

    def counted_digest(packet: av.Packet) -> bytes:
        nonlocal digests
        digests += 1
        return original[0](packet)

    def counted_plan(*arguments: object, **named: object) -> VideoPlan:
        nonlocal plans
        plans += 1
        return original[1](*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "digest", counted_digest)
    monkeypatch.setattr(feed_module, "make_plan", counted_plan)
    got = 0
    with VideoFeed(VideoOptions(gop_slots=4), SIDE) as feed:
        for start in range(0, len(data), 100):
            got += len(list(feed.feed(data[start : start + 100])))
    assert got == 7
    assert digests <= 30 * 15
    assert plans <= 10 * got


def test_every_real_file_comes_as_it_is(videos: Path) -> None:
    options, early = VideoOptions(gop_slots=2), 0
    for path in sorted(path for path in videos.iterdir() if path.suffix in (".mp4", ".mkv", ".webm", ".avi", ".mpg")):
        data = path.read_bytes()
        try:
            whole = list(open_video(data, options).gops(16))
        except CodecError as error:
            with VideoFeed(options, 16) as feed, pytest.raises(CodecError) as caught:
                list(feed.feed(data))
                feed.finish()
            assert caught.value.code == error.code, path.name
            continue
        with VideoFeed(options, 16) as feed:
            got = [gop for at in range(0, len(data), 10_000) for gop in feed.feed(data[at : at + 10_000])]
            early += len(got)
            got += feed.finish()
        same(got, whole)
    assert early > 10  # of files that begin with their index, and Matroska


def test_gops_that_are_not_taken_come_with_the_next_call() -> None:
    data = encoded(12, container="matroska")
    options = VideoOptions(gop_slots=2)
    with VideoFeed(options, SIDE) as feed:
        stale = feed.feed(data[: len(data) // 2])
        first = next(stale)
        got = [first, *feed.feed(data[len(data) // 2 :])]
        assert list(stale) == []
        got += feed.finish()
    same(got, list(open_video(data, options).gops(SIDE)))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_bytes=20_000),
        Limits(max_packets=50),
        Limits(max_duration_s=5.0),
        Limits(max_pixels=100 * 100),
        Limits(max_decoded_pixels=50 * 160 * 96),
    ],
    ids=repr,
)
def test_what_is_too_large_is_refused_on_the_way(limits: Limits) -> None:
    data = encoded(12, container="matroska")
    with VideoFeed(VideoOptions(gop_slots=2), SIDE, limits=limits) as feed, pytest.raises(CodecError) as caught:
        for start in range(0, len(data), 2000):
            list(feed.feed(data[start : start + 2000]))
    assert caught.value.code == "video_too_large"


def test_a_stream_that_the_video_does_not_have_is_told_at_the_end() -> None:
    data = encoded(4, container="mpegts")
    with VideoFeed(VideoOptions(stream=3), SIDE) as feed:
        assert list(feed.feed(data)) == []
        with pytest.raises(CodecError) as caught:
            feed.finish()
    assert (caught.value.code, caught.value.param) == ("invalid_option", "stream")


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_broadcast_may_be_joined_between_keyframes(codec: str) -> None:
    data = encoded(6, codec=codec, container="mpegts", fps=25, gop=50)
    data = data[len(data) // 10 // 188 * 188 :]
    options = VideoOptions(gop_slots=1)
    got: list[GopPrimitives] = []
    with VideoFeed(options, SIDE) as feed:
        for start in range(0, len(data), 5000):
            got += feed.feed(data[start : start + 5000])
        assert got
        got += feed.finish()
    same(got, list(open_video(data, options).gops(SIDE)))


def test_a_growing_video_is_not_sampled() -> None:
    data = encoded(6, container="mpegts")
    with VideoFeed(VideoOptions(gop_slots=1, max_gops=2), SIDE) as feed:
        got = [*feed.feed(data), *feed.finish()]
    same(got, list(open_video(data, gop_slots=1).gops(SIDE)))


def test_what_is_no_video_is_an_error_at_the_end() -> None:
    with VideoFeed() as feed:
        assert list(feed.feed(b"text " * 1000)) == []
        with pytest.raises(CodecError) as caught:
            feed.finish()
    assert caught.value.code == "invalid_video"
    with pytest.raises(CodecError) as caught:
        VideoFeed().finish()
    assert caught.value.code == "invalid_video"
    with pytest.raises(CodecError) as caught:
        VideoFeed(VideoOptions(frames=8))
    assert caught.value.param == "frames"
    with pytest.raises(ValueError, match="finished"):
        feed.feed(b"more")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    feed = VideoFeed()
    feed.feed(clip(2))
    assert os.listdir(tmp_path)
    feed.close()
    assert not os.listdir(tmp_path)
    threads = threading.active_count()
    feed = VideoFeed()
    feed.feed(encoded(4, container="mpegts"))
    assert threading.active_count() == threads + 1
    del feed
    assert not os.listdir(tmp_path)
    assert threading.active_count() == threads
    with VideoFeed(VideoOptions(gop_slots=1), SIDE) as feed:
        feed.feed(encoded(4, container="mpegts"))
        rest = feed.finish()
        next(rest)
    assert list(rest) == []
    assert not os.listdir(tmp_path)


def test_a_program_may_end_without_closing_its_feed() -> None:
    script = "import cope_codec; feed = cope_codec.VideoFeed(); feed.feed(b'RIFF')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
