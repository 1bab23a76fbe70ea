"""Every kind of stream gives the pictures that a plain decoder shows, at their true times."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from clips import clip, clip_at, encoded, scaled
from streams import KINDS, RAW

import cope_codec
import cope_codec.samples
from cope_codec import CodecError, GopPrimitives
from cope_codec.container import open_container, video_stream
from cope_codec.deinterlace import FieldPicker

SIDE = 64


def shown(source: bytes | Path, stream: int | None = None) -> list[np.ndarray]:
    """All frames as a player shows them (of interlaced ones the upper field), scaled as the extractor scales.

    Timestamps play no part.
    """
    scaler = av.video.reformatter.VideoReformatter()
    with open_container(source) as container:
        frames = container.decode(video_stream(container, stream))
        fields = map(FieldPicker(), frames)  # test_deinterlace.py shows what it picks
        return [scaled(scaler, field, SIDE) for field in fields]


def check(source: bytes | Path, frame_s: float, **options: object) -> tuple[cope_codec.Video, list[GopPrimitives]]:
    """Each slot is the frame that a player shows at the slot's time, in a stream of constant rate."""
    video = cope_codec.open(source, **options)
    truth = shown(source, video.plan.options.stream)
    assert video.plan.frames == len(truth)
    gops = list(video.gops(SIDE))
    last = -1.0
    for gop in gops:
        assert gop.missing == 0
        assert not gop.corrupt
        for time_s, picture in zip(gop.timestamps_s, gop.frames(), strict=True):
            number = round(time_s / frame_s)
            assert time_s == pytest.approx(number * frame_s, abs=0.002)
            np.testing.assert_array_equal(picture, truth[number], err_msg=f"slot at {time_s} s")
            assert time_s > last
            last = time_s
    return video, gops


@pytest.mark.parametrize("mode", ["auto", "transcode"])
@pytest.mark.parametrize("name", RAW)
def test_streams_without_times_are_in_display_order(name: str, mode: str) -> None:
    fps = int(RAW[name].get("fps", 15))
    video, gops = check(encoded(4, **RAW[name]), 1 / fps, mode=mode, fps=2.0)
    times = np.concatenate([gop.timestamps_s for gop in gops])
    assert np.floor(times * 2 + 1e-9).tolist() == list(range(8))
    assert video.plan.seconds == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize("mode", ["auto", "transcode"])
@pytest.mark.parametrize("name", KINDS)
def test_codecs_and_containers(name: str, mode: str) -> None:
    arguments = KINDS[name]
    video, gops = check(encoded(4, **arguments), 1 / int(arguments.get("fps", 15)), mode=mode, fps=2.0)
    times = np.concatenate([gop.timestamps_s for gop in gops])
    assert np.floor(times * 2 + 0.01).tolist() == list(range(8))
    if mode == "auto":
        no_vectors = ("hevc", "vp9", "mjpeg")
        assert video.plan.mode == ("transcode" if name.startswith(no_vectors) else "native")
    if video.plan.mode == "transcode" or arguments.get("gop") != 1:
        assert sum(int(gop.vectors.sum()) for gop in gops) > 0


@pytest.mark.parametrize("gop", [1, 2, 7, 48, 600])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_gops_of_any_length(codec: str, gop: int) -> None:
    """42 seconds have 630 frames; FFmpeg's MPEG encoders stop at 600."""
    data = encoded(42, codec=codec, container="matroska", width=64, height=48, gop=gop, b_frames=0, fps=15)
    keyframes = np.flatnonzero(cope_codec.open(data).index.keyframe)
    assert np.diff(keyframes).tolist() == [gop] * (len(keyframes) - 1)
    assert len(keyframes) == -(-630 // gop)
    check(data, 1 / 15)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_one_of_several_streams(container: str) -> None:
    data = encoded(2, container=container, streams=2)
    first, _ = check(data, 1 / 15, stream=0)
    second, _ = check(data, 1 / 15, stream=1)
    assert first.info.stream != second.info.stream
    assert not {gop.key for gop in first.plan.gops} & {gop.key for gop in second.plan.gops}
    assert not np.array_equal(shown(data, 0)[0], shown(data, 1)[0])
    with pytest.raises(CodecError) as caught:
        cope_codec.open(data, stream=2)
    assert (caught.value.code, caught.value.param) == ("invalid_option", "stream")


def test_a_real_file_with_two_streams(videos: Path) -> None:
    sizes = [cope_codec.open(videos / "nasa_13013.mp4", stream=number).info for number in (0, 1)]
    assert [(info.width, info.height) for info in sizes] == [(320, 180), (480, 270)]
    assert cope_codec.open(videos / "nasa_13013.mp4").info.stream == sizes[1].stream


@pytest.mark.parametrize("mode", ["native", "transcode"])
@pytest.mark.parametrize("container", ["h264", "mpegts"])
def test_the_picture_size_may_change(container: str, mode: str) -> None:
    """Joined streams: the second begins with a new size and, in a transport stream, with its clock set back."""
    data = encoded(3, container=container) + encoded(3, container=container, width=240, height=144, seed=9)
    video, gops = check(data, 1 / 15, mode=mode)
    assert video.plan.frames == 90
    assert [round(time_s) for gop in gops for time_s in gop.timestamps_s] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", ["native", "transcode"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_a_stream_may_begin_between_keyframes(codec: str, mode: str) -> None:
    """What comes before the first keyframe cannot be decoded, so it is not part of the video."""
    data = encoded(4, codec=codec, container="mpegts", fps=25, gop=25)
    cut = len(data) // 4 // 188 * 188  # within the first or the second second
    video = cope_codec.open(data[cut:], mode=mode, fps=2.0)
    gops = list(video.gops(SIDE))
    assert sum(gop.missing for gop in gops) == 0
    assert gops[0].timestamps_s[0] == 0.0
    assert 2.0 <= video.plan.seconds < 4.0
    kept = round(video.plan.seconds * 25)
    np.testing.assert_array_equal(gops[0].keyframes[0], shown(data)[-kept])


@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [("mpeg2video", "mpegts", ()), ("libx264", "mp4", (("x264-params", "tff=1"),)), ("mpeg4", "mp4", ())],
)
def test_interlaced_video(codec: str, container: str, options: tuple[tuple[str, str], ...]) -> None:
    """Announced: transcoded. Silent: native without motion, flagged. Always exact and repeatable."""
    data = encoded(3, codec=codec, container=container, fps=25, options=options, interlaced=True)
    video, gops = check(data, 1 / 25)
    if video.info.interlaced:
        assert video.plan.mode == "transcode"
        with pytest.raises(CodecError) as caught:
            cope_codec.open(data, mode="native")
        assert caught.value.param == "mode"
    else:
        assert all(gop.interlaced and not gop.motion.any() for gop in gops)
    again = list(cope_codec.open(data).gops(SIDE))
    assert [gop.motion.tobytes() for gop in again] == [gop.motion.tobytes() for gop in gops]


def test_interlaced_frames_that_nobody_announced_do_not_move() -> None:
    data = encoded(3, codec="mpeg4", container="mp4", fps=25, interlaced=True)
    (gop,) = cope_codec.open(data, mode="native").gops(SIDE)
    assert gop.interlaced
    assert not gop.motion.any()
    assert gop.residual.any()


@pytest.mark.parametrize("mode", ["native", "transcode"])
def test_a_cut_within_a_gop_has_no_motion_across_it(mode: str) -> None:
    """Scene cut without a keyframe: intra blocks carry no vectors, and the residual makes up for all."""
    scenes = [*cope_codec.samples.scene(160, 96, 1.5, 10), *cope_codec.samples.scene(160, 96, 1.5, 10, seed=40)]
    data = cope_codec.samples.encode(scenes, fps=10, gop=600, options={"sc_threshold": "0"})
    check(data, 0.1, mode=mode)


@pytest.mark.parametrize("mode", ["native", "transcode"])
def test_uneven_times(mode: str) -> None:
    times = (0.0, 0.04, 0.5, 0.9, 1.3, 1.31, 1.32, 2.999, 3.0, 6.5, 7.2)
    data = clip_at(times)
    truth = shown(data)
    (gop,) = cope_codec.open(data, mode=mode).gops(SIDE)
    assert gop.timestamps_s.tolist() == [0.0, 1.3, 2.999, 3.0, 6.5, 7.2]
    for time_s, picture in zip(gop.timestamps_s, gop.frames(), strict=True):
        np.testing.assert_array_equal(picture, truth[times.index(time_s)])


def test_an_edit_list_hides_what_it_cuts(videos: Path) -> None:
    """The first frames are decoded, not shown: the video begins with the first frame shown."""
    video = cope_codec.open(videos / "discard_first_keyframe.mp4")
    gop = next(iter(video.gops(SIDE)))
    np.testing.assert_array_equal(gop.keyframes[0], shown(videos / "discard_first_keyframe.mp4")[0])


def test_a_start_after_zero_counts_as_zero(videos: Path) -> None:
    video = cope_codec.open(videos / "test_non_zero_start.mp4")
    assert video.index.start_pts > 0
    assert video.plan.gops[0].slots[0].time_s == 0.0


@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4", "h264"])
def test_a_part_is_reached_by_seeking(container: str) -> None:
    data = clip(40, container=container, width=160, height=96, gop=15)
    whole = list(cope_codec.open(data, gop_slots=2).gops(SIDE))
    video = cope_codec.open(io.BytesIO(data).getvalue(), gop_slots=2)
    for plan in (video.plan.gops[15], video.plan.gops[3]):
        (gop,) = video.gops(SIDE, only=[plan])
        assert gop.key == whole[plan.index].key
        np.testing.assert_array_equal(gop.frames(), whole[plan.index].frames())
