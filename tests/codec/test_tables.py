"""Sample tables give the index that a pass over the whole file gives, or nothing."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from clips import audio_only, clip, clip_at, encoded

import cope_codec
from cope_codec import CodecError, PacketIndex, VideoOptions, tables
from cope_codec.container import Source
from cope_codec.index import read_index
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.plan import make_plan
from cope_codec.shared import SharedFile

FEW = VideoOptions(fps=2.0, gop_slots=2, max_gops=3)


@pytest.fixture(autouse=True)
def short_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LEAST_PACKETS", 40)


def whole(source: Source) -> PacketIndex:
    index, container = read_index(source)
    container.close()
    return index


def quick(source: Source, limits: Limits = DEFAULT_LIMITS) -> PacketIndex | None:
    found = tables.read_tables(source, limits)
    if found is None:
        return None
    found[1].close()
    return found[0]


def check(index: PacketIndex, source: Source) -> None:
    want = whole(source)
    for name in ("pts", "keyframe", "shown", "anchor"):
        np.testing.assert_array_equal(getattr(index, name), getattr(want, name), name)
    for name in ("info", "end_pts", "extradata", "synthetic", "truncated", "settled_pts"):
        assert getattr(index, name) == getattr(want, name), name
    assert not index.digests.any()


KINDS: dict[str, Callable[[], bytes]] = {
    "B-frames": lambda: clip(10),
    "no B-frames": lambda: clip(10, b_frames=0),
    "MPEG-4": lambda: clip(10, codec="mpeg4"),
    "HEVC": lambda: clip(10, codec="libx265"),
    "QuickTime": lambda: clip(10, container="mov"),
    "all keyframes": lambda: clip(10, gop=1, b_frames=0),
    "index first": lambda: encoded(10, muxer=(("moov_size", "20000"),)),
    "negative offsets": lambda: encoded(10, muxer=(("movflags", "negative_cts_offsets"),)),
    "starts late": lambda: encoded(10, first_s=3.0),
    "two streams": lambda: encoded(10, streams=2),
    "cover art": lambda: encoded(10, cover=True),
    "variable rate": lambda: clip_at(tuple(0.04 * n + 0.01 * (n % 3) for n in range(80))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_index(kind: str) -> None:
    index = quick(KINDS[kind]())
    assert index is not None
    check(index, KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_keys_and_arrays(kind: str) -> None:
    data = KINDS[kind]()
    video = cope_codec.open(data, FEW)
    if kind != "variable rate":  # it has one keyframe, so that all of it is needed
        assert not video.index.digests.any(axis=1).all()
    assert video.plan == make_plan(whole(data), FEW)
    want = cope_codec.Video(data, whole(data), video.plan)
    for gop, other in zip(video.gops(32), want.gops(32), strict=True):
        assert gop.key == other.key
        assert gop.residual.tobytes() == other.residual.tobytes()


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(KINDS["B-frames"]())
    with path.open("rb") as file:
        indices = [quick(source) for source in (path, path.read_bytes(), SharedFile(file.fileno()))]
    for index in indices:
        assert index is not None
        check(index, path)


@pytest.mark.parametrize(
    "data",
    [
        clip(10, container="matroska"),
        clip(10, container="mpegts"),
        clip(1),  # few packets
        encoded(10, muxer=(("movflags", "frag_keyframe+empty_moov"),)),
        audio_only(),
        b"",
        b"text, not a video at all",
    ],
    ids=["matroska", "transport stream", "short", "fragmented", "audio only", "empty", "text"],
)
def test_what_only_a_pass_can_tell(data: bytes) -> None:
    assert quick(data) is None


def box(data: bytes, kind: bytes) -> int:
    """Where the body of the first box of a kind begins."""
    return data.index(kind) + 4


@pytest.mark.parametrize("kind", [b"stts", b"ctts", b"stsz", b"stss", b"stsd", b"elst"])
@pytest.mark.parametrize("field", [4, 8, 12])
@pytest.mark.parametrize("value", [0, 1, 7, 1 << 30, (1 << 32) - 1])
def test_tampered_tables_lead_to_the_same_video_as_a_pass(kind: bytes, field: int, value: int) -> None:
    data = bytearray(KINDS["B-frames"]())
    struct.pack_into(">I", data, box(data, kind) + field, value)
    try:
        want = make_plan(whole(bytes(data)), FEW)
    except MemoryError:  # FFmpeg's word for a table of a billion entries
        with pytest.raises(MemoryError):
            cope_codec.open(bytes(data), FEW)
    except CodecError as error:
        with pytest.raises(CodecError) as caught:
            cope_codec.open(bytes(data), FEW)
        assert caught.value.code == error.code
    else:
        assert cope_codec.open(bytes(data), FEW).plan == want


def test_a_table_that_lies_about_a_frame_in_use_is_not_believed() -> None:
    """FFmpeg reads the same tables, so only a keyframe that is none can differ: H.264 says what it is."""
    data = bytearray(clip(10, gop=40))
    start = box(data, b"stss")
    count = int.from_bytes(data[start + 4 : start + 8], "big")
    struct.pack_into(">I", data, start + 4, count - 1)  # the last keyframe is no longer marked
    index = quick(bytes(data))
    assert index is None or index.keyframe.sum() == whole(bytes(data)).keyframe.sum()


def test_a_box_larger_than_any_file_is_no_way_to_its_index() -> None:
    """Found by fuzzing: where it ends was more than a file's position can be."""
    assert quick(b"\0\0\0\x01ftyp" + b"\x7f" + b"\xff" * 7 + KINDS["B-frames"]()) is None
    assert quick(b"\0\0\0\x01ftyp" + b"\xff" * 8 + KINDS["B-frames"]()) is None


def test_a_cut_file_is_read_whole() -> None:
    data = KINDS["index first"]()
    cut = data[: len(data) * 3 // 4]
    assert quick(cut) is None
    assert cope_codec.open(cut, FEW).plan == make_plan(whole(cut), FEW)


def test_limits_hold() -> None:
    for limits in (Limits(max_packets=60), Limits(max_duration_s=5)):
        with pytest.raises(CodecError) as caught:
            cope_codec.open(KINDS["B-frames"](), FEW, limits=limits)
        assert caught.value.code == "video_too_large"


def test_a_plan_needs_the_packets_that_it_keys() -> None:
    index = quick(KINDS["B-frames"]())
    assert index is not None
    with pytest.raises(ValueError, match="were not read"):
        make_plan(index, FEW)


def test_real_files(videos: Path) -> None:
    seen = 0
    for path in sorted([*videos.glob("*.mp4"), *videos.glob("*.mov")]):
        index = quick(path)
        if index is not None:
            check(index, path)
            assert cope_codec.open(path, FEW).plan == make_plan(whole(path), FEW)
            seen += 1
    assert seen > 10


def test_hashing_stops_where_a_packet_is_not_what_the_tables_say() -> None:
    found = tables.read_tables(KINDS["B-frames"](), DEFAULT_LIMITS)
    assert found is not None
    index, container = found
    other = av.open(io.BytesIO(clip(10, gop=40)))
    with container, other:
        first, last = 0, 35
        assert tables.hash_packets(container, index, [(first, last)]) is not None
        assert tables.hash_packets(other, index, [(first, last)]) is None
