"""Clips and long videos: only what is needed is decoded, and memory does not grow with length."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from clips import clip

import cope_codec
from cope_codec.reader import FrameReader

SIDE = 64


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the packets that were given to a decoder."""
    numbers: list[int] = []
    packets = FrameReader._packets

    def counting(self: FrameReader, first: int, last: int) -> Iterator[tuple[int, av.Packet]]:
        for number, packet in packets(self, first, last):
            numbers.append(number)
            yield number, packet

    monkeypatch.setattr(FrameReader, "_packets", counting)
    return numbers


@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_nothing_before_the_nearest_keyframe_is_decoded(decoded: list[int], container: str, mode: str) -> None:
    data = clip(40, width=160, height=96, container=container, fps=15, gop=15, b_frames=0)
    video = cope_codec.open(data, start_s=30.4, end_s=32.0, mode=mode, fps=5)
    (gop,) = video.gops(SIDE)
    assert min(decoded) == 450  # the keyframe at 30 s
    assert max(decoded) < 480
    assert gop.timestamps_s[0] == pytest.approx(456 / 15, abs=1e-3)
    assert gop.timestamps_s[-1] < 32.0


@pytest.mark.parametrize("mode", ["native", "transcode"])
def test_sampled_gops_decode_nothing_that_only_leads_up_to_them(decoded: list[int], mode: str) -> None:
    data = clip(64, width=160, height=96, fps=5, gop=25)
    video = cope_codec.open(data, gop_slots=2, max_gops=4, mode=mode)
    list(video.gops(SIDE))
    assert [gop.slots[0].packet for gop in video.plan.gops] == [gop.first_packet for gop in video.plan.gops]
    spans = sum(gop.last_packet - gop.first_packet + 1 for gop in video.plan.gops)
    assert len(decoded) == spans
    assert spans <= 4 * (5 + 3)  # one second from slot to slot, and what is reordered at its end


def test_eight_hours_go_by_in_bounded_memory() -> None:
    """28,800 frames at one per second, all of them slots; the first 150 of 3,600 GOPs are decoded."""
    script = """
import cope_codec, clips
data = clips.encoded(8 * 3600, width=32, height=32, fps=1, gop=250, b_frames=0, options=(("preset", "ultrafast"),))
count = slots = 0
for gop in cope_codec.open(data, max_gops=4096).gops(384):
    count += 1
    slots += len(gop.layout)
    if count == 150:  # memory stands still long before
        break
print(count, slots, clips.peak_kib())
"""
    tests = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tests, check=True)
    gops, slots, peak_kib = map(int, done.stdout.split())
    assert (gops, slots) == (150, 1200)
    assert peak_kib < 600 * 1024


def test_a_million_packets_are_indexed_in_bounded_memory() -> None:
    """Eight hours at 30 frames per second: the index and the plan, without their pictures."""
    script = """
import clips
from fractions import Fraction
import numpy as np
from cope_codec import VideoOptions
from cope_codec.container import StreamInfo
from cope_codec.index import PacketIndex
from cope_codec.plan import make_plan
n = 8 * 3600 * 30
before = clips.peak_kib()
info = StreamInfo("mp4", "h264", 1280, 720, Fraction(1, 30), Fraction(30), False, 0)
every = np.ones(n, bool)
index = PacketIndex(info, np.arange(n), n, np.arange(n) % 250 == 0, every, every, np.ones((n, 16), np.uint8), b"",
                    False, False, n)
plan = make_plan(index, VideoOptions(max_gops=4096))
print(len(plan.gops), plan.i_frames + plan.p_frames, clips.peak_kib() - before)
"""
    tests = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tests, check=True)
    gops, slots, grown_kib = map(int, done.stdout.split())
    assert (gops, slots) == (3600, 28800)
    assert grown_kib < 150 * 1024
