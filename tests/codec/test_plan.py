from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from clips import clip, clip_at

import cope_codec
from cope_codec import I_SLOT, CodecError, VideoOptions
from cope_codec.plan import make_plan


@pytest.mark.parametrize(("keyframes", "i_frames", "p_frames"), [(1, 8, 56), (2, 16, 48), (4, 32, 32)])
def test_a_64_second_clip_has_the_papers_slots(keyframes: int, i_frames: int, p_frames: int) -> None:
    video = cope_codec.open(clip(64, width=160, height=96, fps=5), keyframes_per_gop=keyframes)
    plan = video.plan
    assert (plan.seconds, len(plan.gops), plan.i_frames, plan.p_frames) == (64.0, 8, i_frames, p_frames)
    assert plan.dense_frames == 64


@pytest.mark.parametrize("mode", ["native", "transcode"])
@pytest.mark.parametrize("fps", [0.3, 0.5, 1, 1.7, 2, 3, 4.6])
def test_slots_are_the_first_frames_of_their_grid_cells(mode: str, fps: float) -> None:
    video = cope_codec.open(clip(12), mode=mode, fps=fps)
    times = np.array([slot.time_s for gop in video.plan.gops for slot in gop.slots])
    cells = np.floor(times * fps + 1e-9)
    assert cells.tolist() == list(range(math.floor(179 / 15 * fps) + 1))
    # The next frame of a 15 FPS video, and B-frames cannot be slots in native mode: up to b_frames more.
    assert (times - cells / fps).max() < (3 if mode == "native" else 1) / 15


def test_layout_repeats_per_gop_and_the_last_gop_is_a_prefix() -> None:
    video = cope_codec.open(clip(12), gop_slots=5, keyframes_per_gop=2)
    layouts = ["".join("IP"[slot.kind] for slot in gop.slots) for gop in video.plan.gops]
    assert layouts == ["IPIPP", "IPIPP", "IP"]


def test_a_gap_has_no_slots_but_true_times() -> None:
    video = cope_codec.open(clip_at((0.0, 0.5, 1.0, 7.25, 7.5, 9.0)))
    assert [slot.time_s for slot in video.plan.gops[0].slots] == [0.0, 1.0, 7.25, 9.0]


@pytest.mark.parametrize("mode", ["native", "transcode", "paper", "auto"])
def test_clip_bounds_hold_to_one_frame(mode: str) -> None:
    video = cope_codec.open(clip(12), start_s=3.25, end_s=8.0, mode=mode)
    times = [slot.time_s for gop in video.plan.gops for slot in gop.slots]
    assert min(times) == pytest.approx(49 / 15, abs=1e-4)
    assert max(times) < 8.0
    assert video.plan.seconds == pytest.approx(4.75)
    assert video.plan.frames == 71  # from 49 to 119 of 15 a second
    assert all(later - earlier > 0 for earlier, later in pairwise(times))


def test_an_empty_clip_is_an_error_that_names_the_option() -> None:
    with pytest.raises(CodecError) as caught:
        cope_codec.open(clip(4), start_s=100.0)
    assert (caught.value.code, caught.value.param) == ("no_frames", "start_s")


def test_long_videos_are_sampled_uniformly() -> None:
    """Uniform would be 0, 7, 15, 23, 31; each moves to the nearest of the keyframes, six seconds (3 GOPs) apart."""
    video = cope_codec.open(clip(64, width=160, height=96, fps=5), gop_slots=2, max_gops=5)
    assert [gop.index for gop in video.plan.gops] == [0, 6, 15, 24, 30]
    assert [gop.slots[0].time_s for gop in video.plan.gops] == [0.0, 12.0, 30.0, 48.0, 60.0]
    assert [len(gop.slots) for gop in video.plan.gops] == [2] * 5
    assert video.plan.total_gops == 32


@pytest.mark.parametrize("mode", ["native", "transcode"])
@pytest.mark.parametrize("max_gops", [1, 2, 11, 21])
@pytest.mark.parametrize("codec_gop", [7, 33, 600])
def test_sampled_gops_do_not_overlap(mode: str, max_gops: int, codec_gop: int) -> None:
    data = clip(64, width=160, height=96, fps=5, gop=codec_gop)
    plan = cope_codec.open(data, gop_slots=3, max_gops=max_gops, mode=mode).plan
    assert len(plan.gops) == max_gops
    times = [slot.time_s for gop in plan.gops for slot in gop.slots]
    assert all(later > earlier for earlier, later in pairwise(times))
    places = [gop.index for gop in plan.gops]
    assert places == sorted(set(places))
    uniform = np.linspace(0, plan.total_gops - 1, max_gops).astype(int)
    assert np.abs(np.array(places) - uniform).max() <= plan.total_gops / max_gops / 2
    assert len({gop.key for gop in plan.gops}) == max_gops
    assert all(len(gop.slots) == 3 for gop in plan.gops[:-1])


def test_dense_frames_are_uniform_and_all_pictures() -> None:
    video = cope_codec.open(clip(12), frames=10)
    slots = [slot for gop in video.plan.gops for slot in gop.slots]
    frames = [round(slot.time_s * 15) for slot in slots]
    assert frames == np.linspace(0, 179, 10).astype(int).tolist()
    assert {slot.kind for slot in slots} == {I_SLOT}
    assert video.plan.mode == "dense"


def test_dense_frames_never_exceed_the_video() -> None:
    assert cope_codec.open(clip_at((0.0, 0.1, 0.2)), frames=64).plan.i_frames == 3


@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
def test_keys_follow_content_and_parameters(mode: str) -> None:
    def keys(data: bytes, **options: object) -> list[str]:
        return [gop.key for gop in cope_codec.open(data, mode=mode, **options).plan.gops]

    same = keys(clip(12))
    assert keys(clip(12)) == same
    assert len(set(same)) == len(same)
    assert not set(same) & set(keys(clip(12, seed=5)))
    assert not set(same) & set(keys(clip(12), fps=2))
    other = keys(clip(12), keyframes_per_gop=2)
    assert other[0] != same[0]
    assert other[1] == same[1]  # four slots: the second keyframe would be the fifth, so the content is the same


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
def test_a_growing_video_keeps_the_keys_of_its_gops(container: str, mode: str) -> None:
    whole = clip(12, container=container)
    full = cope_codec.open(whole, mode=mode, gop_slots=3).plan
    part = cope_codec.open(whole[: len(whole) * 7 // 10], mode=mode, gop_slots=3).plan
    complete = len(part.gops) - 1
    assert 1 <= complete < len(full.gops)
    assert [gop.key for gop in part.gops[:complete]] == [gop.key for gop in full.gops[:complete]]


def test_modes_follow_the_codec() -> None:
    assert cope_codec.open(clip(4)).plan.mode == "native"
    vp8 = clip(2, codec="libvpx", container="webm", b_frames=0)
    assert cope_codec.open(vp8).plan.mode == "transcode"
    with pytest.raises(CodecError) as caught:
        cope_codec.open(vp8, mode="native")
    assert (caught.value.code, caught.value.param) == ("invalid_option", "mode")


@pytest.mark.parametrize("options", [VideoOptions(frames=64), VideoOptions(fps=60), VideoOptions(mode="transcode")])
def test_frames_shown_at_one_time_make_one_slot(options: VideoOptions) -> None:
    index = cope_codec.open(clip(4)).index
    plan = make_plan(replace(index, pts=index.pts // 2000 * 2000), options)
    times = [slot.time_s for gop in plan.gops for slot in gop.slots]
    assert all(later > earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize(("fps", "grid"), [(1, 1.0), (2, 2.0), (5, 3.0), (3, 2.0)])
def test_slow_video_with_b_frames_loses_no_slots(fps: int, grid: float) -> None:
    """Its anchors lie further apart than the grid's cells: `auto` takes all frames, re-encoded."""
    data = clip(
        30, width=64, height=64, fps=fps, gop=250, b_frames=3, options=(("b_strategy", "0"), ("sc_threshold", "0"))
    )
    plans = {mode: cope_codec.open(data, mode=mode, fps=grid).plan for mode in ("auto", "native", "transcode")}
    slots = {mode: plan.i_frames + plan.p_frames for mode, plan in plans.items()}
    assert plans["auto"].mode == "transcode"
    assert slots["auto"] == slots["transcode"] == round(30 * min(fps, grid))
    assert slots["native"] < 0.7 * slots["auto"]


def test_a_growing_slow_video_does_not_change_its_mind() -> None:
    data = clip(40, width=64, height=64, fps=1, gop=250, b_frames=3, container="mpegts", options=(("b_strategy", "0"),))
    whole = cope_codec.open(data).plan
    for share in (0.3, 0.5, 0.8):
        part = cope_codec.open(data[: int(len(data) * share)]).plan
        if len(part.gops) > 1:
            assert [gop.key for gop in part.gops[:-1]] == [gop.key for gop in whole.gops[: len(part.gops) - 1]]


def test_usual_video_is_native() -> None:
    for fps, grid in ((30, 1.0), (30, 3.0), (15, 2.0), (25, 1.7)):
        assert cope_codec.open(clip(10, width=64, height=64, fps=fps, b_frames=3), fps=grid).plan.mode == "native"
