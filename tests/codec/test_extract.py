"""The invariants of the primitives, on generated clips and on every real one.

1. Eq. 1 is exact: `check_invariants`, here over all files in every mode.
2. Tokens are planned before anything is decoded: the layout in `check_invariants`; counts in `test_plan.py`; the
   server's `usage.prompt_tokens` in `tests/e2e`.
3. Same bytes and options, same arrays: the orders, threads and processes here; a GOP alone in `check_alone`, over all
   files in every mode, and in `test_subsets.py`.
4. Growth: `test_a_growing_video_keeps_the_arrays_of_its_gops` here; `test_plan.py` and `test_feed.py`.
5. Order, grid, true times, clip bounds: `check_invariants`, and `test_clips_start_and_end_at_the_frame_asked_for` here;
   `test_plan.py`, `test_streams.py` and `test_paper.py`.
6. Memory: `test_bounded_memory` here; `test_long.py`.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from clips import clip, encoded, harmed_clips, scaled
from requirements import VIDEOS

import cope_codec
from cope_codec import CodecError, GopPrimitives
from cope_codec.container import open_container, video_stream
from cope_codec.plan import GopPlan

PAPER_ERROR = 8  # mean grey levels that re-encoding may cost; a small test pattern enlarged costs 6.3

CODECS = {
    "h264 with B-frames": {},
    "h264 without": {"b_frames": 0},
    "h264 long GOP": {"gop": 250},
    "mpeg4": {"codec": "mpeg4", "b_frames": 0},
    "mpeg4 with B-frames": {"codec": "mpeg4", "container": "matroska"},
    "mpeg2": {"codec": "mpeg2video", "container": "mpegts"},
    "vp8": {"codec": "libvpx", "container": "webm", "b_frames": 0},
    "hevc": {"codec": "libx265"},
}


def digest(gop: GopPrimitives) -> tuple[object, ...]:
    return (gop.key, *(array.tobytes() for array in gop.arrays().values()))


def pictures_at_slots(source: bytes | Path, video: cope_codec.Video, side: int) -> dict[int, np.ndarray]:
    """The slots' frames, decoded plainly and scaled as the extractor scales."""
    wanted = {slot.pts for gop in video.plan.gops for slot in gop.slots}
    scaler = av.video.reformatter.VideoReformatter()
    found = {}
    with open_container(source) as container:
        for frame in container.decode(video_stream(container)):
            if frame.pts in wanted:
                found[frame.pts] = np.rot90(scaled(scaler, frame, side), frame.rotation // 90)
                if len(found) == len(wanted):
                    break
    return found


def check_invariants(source: bytes | Path, **options: object) -> tuple[cope_codec.Video, list[GopPrimitives]]:
    video = cope_codec.open(source, **options)
    side = 128
    truth = pictures_at_slots(source, video, side)
    gops = list(video.gops(side))
    assert [gop.index for gop in gops] == [plan.index for plan in video.plan.gops]
    last = -1.0
    for plan, gop in zip(video.plan.gops, gops, strict=True):
        assert gop.missing == 0 and not gop.corrupt
        # 1. warp + residual gives the pictures exactly, and they are the stream's own.
        for slot, picture in zip(plan.slots, gop.frames(), strict=True):
            if gop.mode == "paper":
                # Re-encoded, so not the same; exactness has a test of its own in test_paper.py.
                error = np.abs(picture.astype(np.int16) - truth[slot.pts]).mean()
                assert error < PAPER_ERROR, f"slot at {slot.time_s} s"
            else:
                np.testing.assert_array_equal(picture, truth[slot.pts], err_msg=f"slot at {slot.time_s} s")
        # 2. what was planned is what came.
        assert gop.layout.tolist() == [slot.kind for slot in plan.slots]
        # 5. in time order, with the planned times.
        assert gop.timestamps_s.tolist() == [slot.time_s for slot in plan.slots]
        assert gop.timestamps_s[0] > last
        last = float(gop.timestamps_s[-1])
    return video, gops


def check_alone(source: bytes | Path, video: cope_codec.Video, among: GopPrimitives, plan: GopPlan) -> None:
    """3. A GOP decoded by itself, from a file just opened, is the GOP decoded after the ones before it."""
    (alone,) = cope_codec.open(source, video.plan.options).gops(128, only=[plan])
    assert digest(alone) == digest(among)


@pytest.mark.parametrize("mode", ["auto", "transcode", "paper", "dense"])
@pytest.mark.parametrize("name", CODECS)
def test_invariants_on_generated_clips(name: str, mode: str) -> None:
    data = clip(10, **CODECS[name])
    check_invariants(data, **({"frames": 12} if mode == "dense" else {"mode": mode, "keyframes_per_gop": 2}))


# Every video of the folder, whatever is put there; without the folder one test stands for all and is skipped.
REAL = (
    sorted(path.name for path in Path(VIDEOS).iterdir() if path.is_file() and path.suffix != ".md") if VIDEOS else [""]
)
ONE_FRAME = "testsrc2_mpeg4.mp4"


@pytest.mark.parametrize("mode", ["native", "transcode", "paper", "dense"])
@pytest.mark.parametrize("name", REAL)
def test_invariants_on_every_real_clip(videos: Path, name: str, mode: str) -> None:
    """The options vary from file to file: 1, 2 and 3 FPS, 1, 2 and 4 keyframes per GOP."""
    source, number = videos / name, REAL.index(name)
    options: dict[str, object] = {
        "mode": mode,
        "fps": 1.0 + number % 3,
        "keyframes_per_gop": (1, 2, 4)[number // 3 % 3],
    }
    if mode == "dense":
        options = {"frames": 12}
    elif mode == "native" and not cope_codec.open(source).info.has_vectors:
        with pytest.raises(CodecError) as caught:
            cope_codec.open(source, **options)
        assert (caught.value.code, caught.value.param) == ("invalid_option", "mode")
        return
    video, gops = check_invariants(source, end_s=9.0, **options)
    check_alone(source, video, gops[-1], video.plan.gops[-1])
    if mode == "dense":
        assert sum(len(gop.layout) for gop in gops) == min(12, video.plan.frames)
    if name == ONE_FRAME:
        assert [gop.layout.tolist() for gop in gops] == [[0]]


def test_two_whole_real_clips(videos: Path) -> None:
    for name, options in (("bottle-detection.mp4", {"fps": 3.0}), ("vid_mpeg4_part2.mp4", {"fps": 2.0})):
        check_invariants(videos / name, mode="native", **options)


@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
def test_any_part_in_any_order_gives_the_same_arrays(mode: str) -> None:
    """3. The order of work and the number of threads do not matter."""
    data = clip(12)
    video = cope_codec.open(data, mode=mode, gop_slots=3)
    whole = [digest(gop) for gop in video.gops(128)]
    backwards = [digest(gop) for plan in reversed(video.plan.gops) for gop in video.gops(128, only=[plan])]
    assert backwards[::-1] == whole
    assert [digest(gop) for gop in video.gops(128, threads=2)] == whole


def _digests(path: str) -> list[tuple[object, ...]]:
    return [digest(gop) for gop in cope_codec.open(path).gops(128)]


def test_other_processes_give_the_same_arrays(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip(12))
    here = _digests(str(path))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_digests, [str(path)] * 2) == [here, here]
    assert [digest(gop) for gop in cope_codec.open(path.read_bytes()).gops(128)] == here


@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
def test_a_growing_video_keeps_the_arrays_of_its_gops(mode: str) -> None:
    """4. What has been extracted stays valid."""
    whole = clip(12, container="mpegts")
    full = [digest(gop) for gop in cope_codec.open(whole, mode=mode, gop_slots=3).gops(128)]
    part = [digest(gop) for gop in cope_codec.open(whole[: len(whole) * 7 // 10], mode=mode, gop_slots=3).gops(128)]
    assert part[:-1] == full[: len(part) - 1]
    assert len(part) >= 2


def test_bounded_memory() -> None:
    """6. A video ten times as long takes no more memory: its arrays would be 600 MB."""
    script = """
import sys, cope_codec, clips
data = clips.clip(float(sys.argv[1]), width=160, height=96, fps=4, gop=16)
next(iter(cope_codec.open(clips.clip(16, width=160, height=96, fps=4, gop=16))))
before = clips.peak_kib()
count = sum(1 for _ in cope_codec.open(data, max_gops=1000))
print(count, clips.peak_kib() - before)
"""
    tests = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", script, "720"], capture_output=True, text=True, cwd=tests, check=True)
    gops, grown_kib = map(int, done.stdout.split())
    assert gops == 90
    assert grown_kib < 60 * 1024


def test_clips_start_and_end_at_the_frame_asked_for() -> None:
    """A clip from the middle equals the same span of the whole video, slot by slot."""
    data = clip(12, b_frames=0)
    part = list(cope_codec.open(data, start_s=4.0, end_s=9.0, gop_slots=1).gops(128))
    whole = list(cope_codec.open(data, gop_slots=1).gops(128))
    assert [gop.timestamps_s[0] for gop in part] == [4.0, 5.0, 6.0, 7.0, 8.0]
    for ours, theirs in zip(part, whole[4:9], strict=True):
        np.testing.assert_array_equal(ours.keyframes, theirs.keyframes)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
@pytest.mark.parametrize("frame", range(60, 67))
def test_a_clip_may_begin_with_a_b_frame(frame: int, codec: str) -> None:
    """Its first slot is that frame, and the motion to the next is what happened since: 30 pixels of 320 a second."""
    data = clip(8, codec=codec, container="matroska", disc=False, b_frames=3 if codec == "libx264" else 2)
    check_invariants(data, mode="native", start_s=frame / 15 - 0.01, fps=5.0)
    gop = next(iter(cope_codec.open(data, mode="native", start_s=frame / 15 - 0.01, fps=5.0).gops(320)))
    assert gop.timestamps_s[0] == pytest.approx(frame / 15, abs=0.001)
    moved = np.median(gop.model_motion()[:3].reshape(3, -1, 2), axis=1) / 16
    np.testing.assert_allclose(moved[:, 0], -30 * np.diff(gop.timestamps_s[:4]), atol=1.1)


@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_turns_pixels_and_vectors(rotation: int, mode: str) -> None:
    how = {"seconds": 2.5, "fps": 10, "width": 160, "height": 96, "b_frames": 0, "pan_px_s": 40.0}
    plain = next(iter(cope_codec.open(encoded(**how), mode=mode).gops(128)))
    turned = next(iter(cope_codec.open(encoded(**how, rotation=rotation), mode=mode).gops(128)))
    turns = rotation // 90
    np.testing.assert_array_equal(turned.keyframes[0], np.rot90(plain.keyframes[0], turns))
    np.testing.assert_array_equal(turned.frames()[-1], np.rot90(plain.frames()[-1], turns))
    assert turned.rotation == (360 - rotation) % 360
    wide = (160, 96) if turns == 2 else (96, 160)
    assert (turned.source_width, turned.source_height) == wide
    # The content moves right by 40 pixels a second; turned counter-clockwise by 90 degrees, it moves up.
    moved = np.median(turned.model_motion()[0].reshape(-1, 2), axis=0) / 16
    px = 40 * 128 / 160
    expected = {90: (0, px), 180: (px, 0), 270: (0, -px)}[rotation]
    np.testing.assert_allclose(moved, expected, atol=3.0)


@pytest.mark.parametrize("name", ["truncated", "flipped bytes"])
@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
def test_what_can_be_read_of_a_harmed_video_is_delivered(name: str, mode: str) -> None:
    video = cope_codec.open(harmed_clips()[name], mode=mode)
    gops = list(video.gops(128))
    assert sum(len(gop.layout) for gop in gops) == video.plan.i_frames + video.plan.p_frames
    assert all(gop.missing < len(gop.layout) for gop in gops)
    for gop in gops:
        assert gop.frames().shape == (len(gop.layout), 128, 128, 3)


def test_one_frame_is_one_keyframe() -> None:
    (gop,) = cope_codec.open(harmed_clips()["one frame"])
    assert gop.layout.tolist() == [0]
    assert gop.residual.shape == (0, 384, 384, 3)


def test_a_stream_without_a_single_good_frame_is_an_error() -> None:
    data = bytearray(clip(4))
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    with pytest.raises(CodecError) as caught:
        list(cope_codec.open(bytes(data)))
    assert caught.value.code == "undecodable_video"


def test_arrays_are_read_only_and_checked() -> None:
    gop = next(iter(cope_codec.open(clip(4)).gops(128)))
    with pytest.raises(ValueError, match="read-only"):
        gop.keyframes[0, 0, 0, 0] = 1
    fields = {name: getattr(gop, name) for name in GopPrimitives.__dataclass_fields__}
    with pytest.raises(ValueError, match="residual is int32"):
        GopPrimitives(**{**fields, "residual": gop.residual.astype(np.int32)})
    with pytest.raises(ValueError, match="time order"):
        GopPrimitives(**{**fields, "timestamps_s": gop.timestamps_s[::-1].copy()})
    assert "keyframes=uint8[1, 128, 128, 3]" in repr(gop)
