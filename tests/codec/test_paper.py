"""The paper's mode: MPEG-4 at exactly 30 frames per second, 240 from I-frame to I-frame, pictures of that stream."""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest
from av.video.frame import PictureType
from clips import clip, clip_at, encoded, scaled
from streams import KINDS, RAW

import cope_codec
from cope_codec import CodecError, VideoOptions
from cope_codec.container import open_container, video_stream
from cope_codec.grid import ConstantRate
from cope_codec.reencode import Reencoder

SIDE = 64


class Recorder:
    """What every encoder run gave, in order: (picture type, decoded frame)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[int, list[tuple[str, av.VideoFrame]]] = {}
        self._alive: list[Reencoder] = []  # or another could get its identity
        push = Reencoder.push

        def recording(reencoder: Reencoder, frame: av.VideoFrame) -> av.VideoFrame:
            out = push(reencoder, frame)
            if id(reencoder) not in self.runs:
                self._alive.append(reencoder)
            self.runs.setdefault(id(reencoder), []).append((PictureType(out.pict_type).name, out))
            return out

        monkeypatch.setattr(Reencoder, "push", recording)

    def types(self) -> list[str]:
        return ["".join(kind for kind, _ in run) for run in self.runs.values()]


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_a_gop_of_eight_seconds_is_a_gop_of_the_encoder(encoder: Recorder) -> None:
    """Of 240 frames the last 29 lead to no slot: they are not made, and nothing that is made depends on them."""
    video = cope_codec.open(clip(24, width=160, height=96, fps=15), mode="paper")
    gops = list(video.gops(SIDE))
    assert encoder.types() == ["I" + "P" * 210] * 3
    assert [gop.first_place for gop in video.plan.gops] == [0, 240, 480]
    assert [gop.timestamps_s.tolist() for gop in gops] == [[8.0 * number + i for i in range(8)] for number in range(3)]
    assert {gop.mode for gop in gops} == {"paper"}


@pytest.mark.parametrize(("fps", "gop_slots"), [(2.0, 16), (3.0, 24)])
def test_higher_rates_fuse_fewer_frames(encoder: Recorder, fps: float, gop_slots: int) -> None:
    step = round(30 / fps)
    video = cope_codec.open(clip(16, width=160, height=96, fps=15), mode="paper", fps=fps, gop_slots=gop_slots)
    gops = list(video.gops(SIDE))
    assert encoder.types() == ["I" + "P" * (240 - step)] * 2
    times = np.concatenate([gop.timestamps_s for gop in gops])
    np.testing.assert_allclose(times, np.arange(16 * fps) / fps, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gop_slots": 4}, ["I" + "P" * 90] * 4),
        ({"gop_slots": 16}, ["I" + "P" * 239 + "I" + "P" * 210]),
        ({"fps": 0.5, "gop_slots": 8}, ["I" + "P" * 239 + "I" + "P" * 180]),
    ],
)
def test_other_gops_begin_with_an_i_frame_and_have_one_every_240(
    encoder: Recorder, options: dict[str, float], expected: list[str]
) -> None:
    list(cope_codec.open(clip(16, width=160, height=96, fps=15), mode="paper", **options).gops(SIDE))
    assert encoder.types() == expected


def test_a_scene_cut_is_no_i_frame(encoder: Recorder) -> None:
    black = np.zeros((96, 160, 3), np.uint8)
    data = cope_codec.samples.encode([*cope_codec.samples.scene(160, 96, 1.5, 10), *[black] * 15], fps=10)
    list(cope_codec.open(data, mode="paper").gops(SIDE))
    list(cope_codec.open(data, mode="transcode", fps=0.5).gops(SIDE))
    paper, transcode = encoder.types()
    assert paper == "I" + "P" * 60
    assert transcode.count("I") == 2


def test_pictures_are_those_of_the_encoded_stream(encoder: Recorder) -> None:
    """Eq. 1 gives every slot's decoded picture exactly, and none of the source's."""
    data = clip(4, width=160, height=96)
    (gop,) = cope_codec.open(data, mode="paper", keyframes_per_gop=2, gop_slots=4).gops(SIDE)
    (run,) = encoder.runs.values()
    scaler = av.video.reformatter.VideoReformatter()
    for number, picture in enumerate(gop.frames()):
        frame = run[30 * number][1]
        np.testing.assert_array_equal(picture, scaled(scaler, frame, SIDE))
    (source,) = cope_codec.open(data, mode="transcode", keyframes_per_gop=2, gop_slots=4).gops(SIDE)
    error = gop.frames().astype(np.float64) - source.frames()
    assert 0 < (error**2).mean() < 20


@pytest.mark.parametrize("kind", ["full range", "bt709", "10 bit", "4:4:4"])
def test_colours_survive_the_encoder(kind: str) -> None:
    how = {
        "full range": {"pix_fmt": "yuvj420p"},
        "bt709": {"options": (("x264-params", "colormatrix=bt709"),)},
        "10 bit": {"pix_fmt": "yuv420p10le"},
        "4:4:4": {"pix_fmt": "yuv444p"},
    }[kind]
    data = encoded(1, **how)
    paper = next(iter(cope_codec.open(data, mode="paper").gops(SIDE))).keyframes[0].astype(np.float64)
    source = next(iter(cope_codec.open(data, mode="transcode").gops(SIDE))).keyframes[0]
    np.testing.assert_allclose((paper - source).mean(axis=(0, 1)), 0, atol=2.0)


@pytest.mark.parametrize("name", [*KINDS, *RAW])
def test_any_stream(encoder: Recorder, name: str) -> None:
    """Two seconds are a run of 31 frames, whatever they come from; an encoder costs little of the picture."""
    how = KINDS.get(name) or RAW[name]
    video = cope_codec.open(encoded(2, **how), mode="paper", keyframes_per_gop=2, gop_slots=2)
    (gop,) = video.gops(SIDE)
    assert encoder.types() == ["I" + "P" * 30]
    assert gop.timestamps_s.tolist() == [0.0, 1.0]
    (source,) = cope_codec.open(encoded(2, **how), mode="transcode", keyframes_per_gop=2, gop_slots=2).gops(SIDE)
    for ours, theirs in zip(gop.frames(), source.frames(), strict=True):
        assert np.abs(ours.astype(np.int16) - theirs).mean() < 4


@pytest.mark.parametrize("container", ["h264", "mpegts"])
def test_the_picture_size_may_change(encoder: Recorder, container: str) -> None:
    data = encoded(3, container=container) + encoded(3, container=container, width=240, height=144, seed=9)
    (gop,) = cope_codec.open(data, mode="paper").gops(SIDE)
    assert encoder.types() == ["I" + "P" * 150]
    assert gop.timestamps_s.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert (gop.missing, gop.corrupt) == (0, False)


def ffmpegs_choice(data: bytes) -> list[int]:
    """Source timestamps of the frames that FFmpeg's own `fps` filter shows at 30 frames per second."""
    graph = av.filter.Graph()
    chosen: list[int] = []
    with open_container(data) as container:
        stream = video_stream(container)
        source = graph.add_buffer(template=stream, time_base=stream.time_base)
        rate, sink = graph.add("fps", "fps=30:round=near"), graph.add("buffersink")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        known: dict[bytes, int] = {}
        for frame in [*container.decode(stream), None]:
            if frame is not None:
                known[frame.to_ndarray().tobytes()] = frame.pts
            graph.push(frame)
            while True:
                try:
                    out = graph.pull()
                except (BlockingIOError, av.error.EOFError):
                    break
                chosen.append(known[out.to_ndarray().tobytes()])
    return chosen


@pytest.mark.parametrize("fps", [10, 12, 15, 24, 25, 29, 30, 50, 60])
def test_frames_are_repeated_and_dropped_as_ffmpeg_does_it(fps: int) -> None:
    data = encoded(2, fps=fps, container="matroska")  # whose times are whole milliseconds
    check_choice(data)
    assert len(ffmpegs_choice(data)) in (59, 60, 61)


def test_uneven_times_are_laid_on_the_grid_as_ffmpeg_does_it() -> None:
    check_choice(clip_at((0.0, 0.04, 0.5, 0.9, 1.3, 1.31, 1.32, 2.999, 3.0, 6.5, 7.2)))


def check_choice(data: bytes) -> None:
    video = cope_codec.open(data, mode="paper")
    rate = ConstantRate(video.index, video.plan.options)
    ours = video.index.pts[rate.packets(0, rate.places)].tolist()
    theirs = ffmpegs_choice(data)
    assert ours[: len(theirs)] == theirs[: len(ours)]
    # How long the last frame is shown is a guess of the demuxer's.
    assert {*ours[len(theirs) :], *theirs[len(ours) :]} <= {ours[-1]}


def test_a_still_picture_is_repeated() -> None:
    """Unlike the other modes: the paper's stream has a frame at every place."""
    data = clip_at((0.0, 0.5, 3.2, 3.3))
    (gop,) = cope_codec.open(data, mode="paper").gops(SIDE)
    assert gop.timestamps_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not gop.motion[1:].any()
    (plain,) = cope_codec.open(data, mode="transcode").gops(SIDE)
    assert plain.timestamps_s.tolist() == [0.0, 3.2]


def test_the_grid_of_a_clip_begins_with_its_first_frame() -> None:
    data = clip(8, width=160, height=96, fps=15)
    video = cope_codec.open(data, mode="paper", start_s=2.01, end_s=6.0)
    times = [slot.time_s for gop in video.plan.gops for slot in gop.slots]
    np.testing.assert_allclose(times, 31 / 15 + np.arange(4), atol=1e-6)


def test_long_videos_keep_their_gops_places() -> None:
    data = clip(64, width=160, height=96, fps=5)
    whole = cope_codec.open(data, mode="paper", gop_slots=2).plan
    part = cope_codec.open(data, mode="paper", gop_slots=2, max_gops=5).plan
    assert (part.total_gops, [gop.index for gop in part.gops]) == (32, [0, 7, 15, 23, 31])
    assert [gop.key for gop in part.gops] == [whole.gops[gop.index].key for gop in part.gops]


def test_a_gap_of_hours_is_planned_at_once() -> None:
    data = clip_at((0.0, 1.0, 8 * 3600.0))
    plan = cope_codec.open(data, mode="paper").plan
    # The last frame says that it lasts another eight hours: it is shown until the ninth.
    assert (plan.total_gops, len(plan.gops)) == (9 * 3600 // 8, 64)
    assert plan.gops[-1].slots[-1].time_s == 9 * 3600.0 - 1


@pytest.mark.parametrize("fps", [0.7, 4.0, 7.0, 29.97, 60.0])
def test_rates_that_do_not_divide_30_are_refused(fps: float) -> None:
    with pytest.raises(CodecError) as caught:
        VideoOptions(mode="paper", fps=fps)
    assert (caught.value.code, caught.value.param) == ("invalid_option", "fps")
    assert VideoOptions(mode="transcode", fps=fps).fps == fps


@pytest.mark.parametrize("fps", [0.1, 0.5, 1, 2, 3, 5, 6, 10, 15, 30])
def test_rates_that_divide_30_are_taken(fps: float) -> None:
    step = ConstantRate(cope_codec.open(clip(4)).index, VideoOptions(mode="paper", fps=fps)).step
    assert step == Fraction(30) / Fraction(str(fps))


def test_content_and_place_make_the_key() -> None:
    data = clip(24, width=160, height=96, fps=15)
    keys = [gop.key for gop in cope_codec.open(data, mode="paper").plan.gops]
    assert len(set(keys)) == 3
    assert not set(keys) & {gop.key for gop in cope_codec.open(data, mode="transcode").plan.gops}
    assert keys[:1] == [gop.key for gop in cope_codec.open(data, mode="paper", end_s=12.0).plan.gops][:1]
