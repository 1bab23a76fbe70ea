"""What a worker found, checked against what it was asked for: a decoder may have been taken over by its video.

A worker that lies well enough is believed: the pictures, the motion and the keys of its own video are what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cope_codec.extract import primitives_key
from cope_codec.index import PacketIndex
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, VideoPlan
from cope_codec.primitives import I_SLOT, P_SLOT, GopPrimitives
from cope_codec.wire import MalformedError, unpack

_KEY_DIGITS = 40
_MOST_SIDE = 1 << 16  # of a source picture, pixels; FFmpeg's own bound is lower


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker finds out when it opens a video."""

    index: PacketIndex
    plan: VideoPlan


def read_opened(memory: memoryview, options: VideoOptions | None) -> Opened:
    """The answer to `worker.open_source`.

    Raises:
        MalformedError: it is none.
    """
    opened: Opened = unpack(memory, Opened)
    index, plan = opened.index, opened.plan
    _insist(plan.options == (options or VideoOptions()), "other options")
    _insist(len(index.pts) > 0 and index.digests.ndim == 2 and bool(index.shown.any()), "an index without packets")
    _insist(all(array.ndim == 1 for array in (index.pts, index.keyframe, index.shown, index.anchor)), "an index")
    _insist(index.info.time_base > 0 and min(index.info.width, index.info.height) > 0, "a stream")
    _insist(plan.seconds >= 0 and plan.frames >= 0 and plan.total_gops >= len(plan.gops) > 0, "a plan")
    before = -1
    for gop in plan.gops:
        packets = [slot.packet for slot in gop.slots]
        _insist(0 <= gop.first_packet <= min(packets), "where a GOP begins")
        _insist(max(packets) <= gop.last_packet < len(index.pts), "where a GOP ends")
        _insist(all(slot.kind in (I_SLOT, P_SLOT) for slot in gop.slots), "a slot")
        _insist(len(gop.key) == _KEY_DIGITS and gop.key.isalnum() and gop.key.isascii(), "a key")
        _insist(gop.index > before, "the GOPs' order")
        before = gop.index
    return opened


def read_gops(
    memory: memoryview, index: PacketIndex, plan: VideoPlan, side: int, gops: Sequence[GopPlan]
) -> list[GopPrimitives]:
    """The answer to `worker.extract_gops`: these GOPs of the plan, for a model of that side, and no others.

    Raises:
        MalformedError: it is none.
    """
    found: list[GopPrimitives] = unpack(memory, list[GopPrimitives])
    _insist(len(found) == len(gops), "the number of GOPs")
    for gop, asked in zip(found, gops, strict=True):
        _insist(gop.key == primitives_key(asked, side) and gop.index == asked.index, "a GOP's key")
        _insist(gop.model_side == side and gop.mode == plan.mode and gop.codec == index.info.codec, "a GOP's kind")
        _insist(gop.layout.tolist() == [slot.kind for slot in asked.slots], "a GOP's layout")
        times = np.array([slot.time_s for slot in asked.slots])
        _insist(bool(np.array_equal(gop.timestamps_s, times)), "a GOP's timestamps")
        _insist(0 <= gop.missing <= len(asked.slots) and gop.rotation in (0, 90, 180, 270), "a GOP's notes")
        sizes = (gop.motion_width, gop.motion_height, gop.source_width, gop.source_height)
        _insist(all(0 < size <= _MOST_SIDE for size in sizes), "a GOP's sizes")
    return found


def _insist(true: bool, what: str) -> None:
    if not true:
        raise MalformedError(f"{what} cannot be right")
