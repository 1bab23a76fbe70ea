"""Interlaced material: pictures of one field, without combs, frame by frame."""

from __future__ import annotations

import av
import numpy as np
import pytest
from clips import encoded, scaled, weave

import cope_codec
from cope_codec import VideoOptions, samples
from cope_codec.container import open_container, video_stream
from cope_codec.deinterlace import FieldPicker
from cope_codec.pool import CodecPool

X264 = (("x264-params", "tff=1"),)
KINDS: dict[str, dict[str, object]] = {
    "h264": {"container": "mp4", "options": X264},
    "h264 10 bit": {"container": "mp4", "options": X264, "pix_fmt": "yuv420p10le"},
    "mpeg2": {"codec": "mpeg2video", "container": "mpegts", "interlaced": True},
    "mpeg4 unannounced": {"codec": "mpeg4", "container": "mp4", "interlaced": True},
}


def combing(picture: np.ndarray) -> float:
    """Energy of what alternates from line to line."""
    lines = picture.astype(np.float64)
    return float(((2 * lines[1:-1] - lines[:-2] - lines[2:]) ** 2).mean())


def every_second_line(frame: av.VideoFrame) -> np.ndarray:
    """Of 8 bit 4:2:0, plane by plane: uint8 (H / 2 * 3 / 2, W)."""
    y, u, v = np.split(frame.to_ndarray(format="yuv420p"), [frame.height, frame.height * 5 // 4])
    u, v = (plane.reshape(frame.height // 2, frame.width // 2)[::2] for plane in (u, v))
    return np.concatenate([y[::2], u.reshape(-1, frame.width), v.reshape(-1, frame.width)])


def decoded(data: bytes) -> list[av.VideoFrame]:
    with open_container(data) as container:
        return list(container.decode(video_stream(container)))


def test_a_field_is_every_second_line_whatever_came_before() -> None:
    frames = decoded(encoded(1, fps=25, options=X264, woven=True))
    assert all(frame.interlaced_frame for frame in frames)
    picker = FieldPicker()
    alone = [FieldPicker()(frame).to_ndarray() for frame in frames]
    for frame, field in zip(frames, alone, strict=True):
        np.testing.assert_array_equal(picker(frame).to_ndarray(), field)
        np.testing.assert_array_equal(field, every_second_line(frame))


def test_progressive_frames_pass_and_sizes_may_change() -> None:
    (plain, *_) = decoded(encoded(1))
    picker = FieldPicker()
    assert picker(plain) is plain
    for height in (96, 144):
        frame = decoded(encoded(1, fps=25, options=X264, height=height))[0]
        field = picker(frame)
        assert (field.width, field.height) == (160, height // 2)


@pytest.mark.parametrize("mode", ["auto", "transcode", "paper", "dense"])
@pytest.mark.parametrize("name", KINDS)
def test_combing_energy_falls(name: str, mode: str) -> None:
    """Combs weigh many times what the scene's own detail does; a field has none of them."""
    data = encoded(2, fps=25, width=320, height=288, woven=True, pan_px_s=240.0, **KINDS[name])
    options = {"frames": 6} if mode == "dense" else {"mode": mode, "fps": 3.0}
    gops = list(cope_codec.open(data, **options).gops(288))
    scaler = av.video.reformatter.VideoReformatter()
    combed = [scaled(scaler, frame, 288) for frame in decoded(data)]
    whole = np.mean([combing(picture) for picture in combed])
    ours = np.mean([combing(picture) for gop in gops for picture in gop.frames()])
    assert ours < whole / 5
    assert all(gop.interlaced and not gop.missing for gop in gops)


@pytest.mark.parametrize("mode", ["transcode", "paper"])
def test_interlaced_motion_is_that_of_the_scene(mode: str) -> None:
    """30 pixels of 160 a second."""
    data = encoded(3, fps=25, container="mp4", options=X264, woven=True)
    (gop,) = cope_codec.open(data, mode=mode).gops(128)
    moved = np.median(gop.model_motion().reshape(len(gop.motion), -1, 2), axis=1) / 16
    np.testing.assert_allclose(moved, [[-30 * 128 / 160, 0]] * 2, atol=1.0)


def test_the_sandbox_lets_fields_be_picked() -> None:
    data = encoded(1, fps=25, options=X264, woven=True)
    with CodecPool(1) as pool:
        for options in (VideoOptions(mode="transcode"), VideoOptions(mode="paper")):
            (gop,) = pool.open(data, options).gops(64)
            (here,) = cope_codec.open(data, options).gops(64)
            np.testing.assert_array_equal(gop.frames(), here.frames())


def test_weaving_makes_combs() -> None:
    pictures = list(samples.scene(160, 96, 0.2, 50, pan_px_s=(120.0, 0.0), disc=False))
    (woven, *_) = weave(pictures)
    assert combing(woven) > 10 * combing(pictures[0])
