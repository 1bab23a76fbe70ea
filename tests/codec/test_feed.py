"""Growing input: GOPs come out on the way, and are those of the whole file."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from clips import clip, encoded

from cope_codec import CodecError, GopPrimitives, VideoFeed, VideoOptions
from cope_codec import open as open_video

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


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at every piece: the clips are small."""
    monkeypatch.setattr("cope_codec.feed._LEAST_BYTES", 1)
    monkeypatch.setattr("cope_codec.feed._GROWTH", 1 << 30)


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
        got += feed.feed(data[position:]) + feed.finish()
    same(got, whole)


def test_a_plain_mp4_comes_at_the_end() -> None:
    data = clip(6)
    feed = VideoFeed(VideoOptions(gop_slots=2), SIDE)
    assert feed.feed(data[: len(data) // 2]) == []
    assert feed.feed(data[len(data) // 2 : -100]) == []
    feed.feed(data[-100:])
    feed.close()
    feed = VideoFeed(VideoOptions(gop_slots=2), SIDE)
    got = feed.feed(data[:-1]) + feed.feed(data[-1:]) + feed.finish()
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


def test_reading_is_in_proportion_to_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cope_codec.feed._LEAST_BYTES", 1000)
    monkeypatch.setattr("cope_codec.feed._GROWTH", 16)
    data = encoded(12, container="mpegts")
    read: list[int] = []
    original = VideoFeed._open

    def counting(feed: VideoFeed) -> object:
        read.append(feed._size)
        return original(feed)

    monkeypatch.setattr(VideoFeed, "_open", counting)
    with VideoFeed(VideoOptions(), SIDE) as feed:
        for start in range(0, len(data), 188):
            feed.feed(data[start : start + 188])
    assert sum(read) < 20 * len(data)


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
        got = feed.feed(data) + feed.finish()
    same(got, list(open_video(data, gop_slots=1).gops(SIDE)))


def test_what_is_no_video_is_an_error_at_the_end() -> None:
    with VideoFeed() as feed:
        assert feed.feed(b"text " * 1000) == []
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
    feed = VideoFeed()
    del feed
    assert not os.listdir(tmp_path)
