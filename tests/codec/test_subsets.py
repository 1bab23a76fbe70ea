"""A GOP decoded alone, from a container just opened, is the GOP decoded among all the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import clip

import cope_codec
from cope_codec import VideoOptions

KINDS: dict[str, dict[str, object]] = {
    "h264 mp4": {},
    "h264 transport stream": {"container": "mpegts"},
    "h264 raw": {"container": "h264", "b_frames": 0},
    "mpeg4 avi": {"codec": "mpeg4", "container": "avi", "b_frames": 0},
    "mpeg2 program stream": {"codec": "mpeg2video", "container": "mpeg"},
    "vp8 webm": {"codec": "libvpx", "container": "webm", "b_frames": 0},
}
OPTIONS = (
    VideoOptions(fps=4.0, gop_slots=4),
    VideoOptions(frames=20),
    VideoOptions(mode="transcode", gop_slots=2),
    VideoOptions(mode="paper", gop_slots=2),
)


def check(source: bytes | Path, options: VideoOptions) -> None:
    video = cope_codec.open(source, options)
    whole = list(video.gops(64))
    assert len(whole) > 1
    for plan, among in list(zip(video.plan.gops, whole, strict=True))[-6:]:
        (alone,) = cope_codec.open(source, options).gops(64, only=[plan])
        assert (alone.missing, alone.corrupt) == (among.missing, among.corrupt)
        for name, array in alone.arrays().items():
            assert array.tobytes() == among.arrays()[name].tobytes(), (plan.index, name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_generated(kind: str, options: VideoOptions) -> None:
    check(clip(6, width=160, height=96, fps=10, gop=20, **KINDS[kind]), options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["av1_video.mkv", "sine_stereo_mp2.mpg"])
def test_real(videos: Path, name: str, options: VideoOptions) -> None:
    check(videos / name, options)
