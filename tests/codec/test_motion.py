from __future__ import annotations

import numpy as np
import pytest
from clips import clip

import cope_codec
from cope_codec.motion import MOTION_VECTOR, MotionWindow


@pytest.mark.parametrize("name", ["vid_h264", "vid_mpeg4_part2"])
def test_vectors_equal_the_reference_extractor(videos, name: str) -> None:
    """Every frame and every field that mv-extractor's own tests expect."""
    reference = np.load(videos / "reference" / f"{name}.npz")
    begins = np.concatenate(([0], np.cumsum(reference["counts"])))
    frames = list(cope_codec.iter_vectors(videos / f"{name}.mp4"))
    assert len(frames) == len(reference["counts"])
    for number, frame in enumerate(frames):
        expected = reference["vectors"][begins[number] : begins[number + 1]]
        found = np.stack([frame.vectors[field] for field in MOTION_VECTOR.names], axis=-1).reshape(-1, 10)
        np.testing.assert_array_equal(found, expected, err_msg=f"frame {number}")
        assert frame.kind == str(reference["frame_types"][number])


def record(x: int, y: int, w: int, h: int, motion: tuple[int, int], scale: int = 4, source: int = -1) -> tuple:
    return (source, w, h, 0, 0, x + w // 2, y + h // 2, *motion, scale)


class Frame:
    """Enough of a decoded frame for a window: its vectors."""

    pict_type = 2  # P

    def __init__(self, *records: tuple) -> None:
        self.records = np.array(list(records), MOTION_VECTOR)


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> MotionWindow:
    monkeypatch.setattr("cope_codec.motion.side_data", lambda frame: frame.records.tobytes())
    return MotionWindow(64, 64, side=64, cell_px=4)


def test_one_vector_covers_its_block_only(window: MotionWindow) -> None:
    window.add(Frame(record(16, 32, 16, 8, (12, -4))))
    motion = window.fuse()
    assert motion.shape == (16, 16, 2)
    expected = np.zeros((16, 16, 2), np.int16)
    expected[8:10, 4:8] = (12, -4)  # rows 32-39 and columns 16-31 in cells of 4 pixels
    np.testing.assert_array_equal(motion, expected)


def test_half_pixel_vectors_become_quarter_pixels(window: MotionWindow) -> None:
    window.add(Frame(record(16, 16, 16, 16, (3, -5), scale=2)))
    assert window.fuse()[5, 5].tolist() == [6, -10]


def test_future_references_are_not_used(window: MotionWindow) -> None:
    window.add(Frame(record(0, 0, 16, 16, (9, 9), source=1)))
    assert not window.fuse().any()
    assert window.vectors == 0


def test_a_window_follows_content_through_its_frames(window: MotionWindow) -> None:
    """Content that was at column 8, then 16, then 24: the last cell's motion leads all the way back."""
    window.add(Frame(record(16, 16, 8, 8, (-8 * 4, 0))))
    window.add(Frame(record(24, 16, 8, 8, (-8 * 4, 0))))
    motion = window.fuse()
    assert (motion[4:6, 6:8] == (-16 * 4, 0)).all()
    assert (motion[4:6, 4:6] == (-8 * 4, 0)).all()  # what is at column 16 came from 8 one frame earlier and stayed
    assert not motion[4:6, 2:4].any()  # nothing is known to have moved to column 8


def test_positions_stay_within_the_picture(window: MotionWindow) -> None:
    window.add(Frame(record(0, 0, 16, 16, (-4000, -4000))))
    centre = 2 * 4  # of the first cell, quarter pixels
    assert window.fuse()[0, 0].tolist() == [-centre, -centre]


def test_blocks_that_overhang_the_picture_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cope_codec.motion.side_data", lambda frame: frame.records.tobytes())
    window = MotionWindow(20, 20, side=20, cell_px=4)
    window.add(Frame(record(16, 16, 16, 16, (4, 4)), record(-8, 0, 16, 16, (-4, 0))))
    motion = window.fuse()
    assert motion[4, 4].tolist() == [4, 4]
    assert motion[0, 1].tolist() == [-4, 0]


def test_many_fields_are_composed_without_losing_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cope_codec.motion.side_data", lambda frame: frame.records.tobytes())
    blocks = [record(x, y, 8, 8, (-1, 0)) for x in range(0, 64, 8) for y in range(0, 64, 8)]
    short, long = (MotionWindow(64, 64, side=64, cell_px=4, capacity=capacity) for capacity in (4, 64))
    for _ in range(40):
        short.add(Frame(*blocks))
        long.add(Frame(*blocks))
    # Where the way back does not lead out of the picture: at its border, composing is as coarse as its blocks.
    np.testing.assert_array_equal(short.fuse()[:, 6:], long.fuse()[:, 6:])
    assert long.fuse()[5, 12].tolist() == [-40, 0]


def test_an_i_frame_within_a_window_does_not_stop_the_motion() -> None:
    data = clip(6, pan=(32.0, 0.0), disc=False, fps=16, gop=10, b_frames=0)
    gop = next(iter(cope_codec.open(data, mode="native")))
    measured = np.median(gop.motion[:, 24:72, 24:72].reshape(5, -1, 2), axis=1) / 4
    np.testing.assert_allclose(measured, [(-32, 0)] * 5, atol=1.5)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_a_pan_is_measured_with_its_sign_and_size(codec: str) -> None:
    """Content moves right by 32 and down by 16 pixels a second: its source lies to the left and above."""
    data = clip(
        4, codec=codec, pan=(32.0, 16.0), disc=False, fps=16, gop=100, quantiser=None if codec == "libx264" else 2
    )
    gop = next(iter(cope_codec.open(data, mode="native")))
    step_s = np.diff(gop.timestamps_s)
    inner = gop.motion[:, 24:72, 24:72].reshape(len(step_s), -1, 2) / 4
    for seconds, motion in zip(step_s, inner, strict=True):
        np.testing.assert_allclose(np.median(motion, axis=0), (-32 * seconds, -16 * seconds), atol=2.0)  # px


def test_transcoding_sees_the_same_pan() -> None:
    data = clip(4, codec="libvpx", container="webm", b_frames=0, pan=(32.0, 0.0), disc=False, fps=16)
    gop = next(iter(cope_codec.open(data)))
    assert gop.mode == "transcode"
    model_px = gop.model_motion()[:, 24:72, 24:72].reshape(3, -1, 2) / 16
    np.testing.assert_allclose(np.median(model_px, axis=1), [(-32 * 384 / 320, 0)] * 3, atol=2.5)
