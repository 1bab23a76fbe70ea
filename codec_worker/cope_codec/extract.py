"""The way from packets to primitives: decode, follow the motion between slots, take pictures at slots."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import av
import av.container
import numpy as np
import numpy.typing as npt

from cope_codec import reencode
from cope_codec.builder import GopBuilder
from cope_codec.container import Source
from cope_codec.deinterlace import FieldPicker
from cope_codec.index import PacketIndex
from cope_codec.motion import MotionWindow
from cope_codec.options import ENCODED_FPS
from cope_codec.paper import PaperExtractor
from cope_codec.pictures import Scaler
from cope_codec.plan import GopPlan, VideoPlan
from cope_codec.primitives import CELL_PX, I_SLOT, GopPrimitives
from cope_codec.reader import FrameReader


def primitives_key(gop: GopPlan, side: int) -> str:
    """Identity of a GOP's arrays: its plan's key and the model side they are made for."""
    return hashlib.blake2b(f"{gop.key}|{side}|{CELL_PX}".encode(), digest_size=20).hexdigest()


def extract(
    source: Source,
    container: av.container.InputContainer,
    index: PacketIndex,
    plan: VideoPlan,
    side: int,
    gops: Sequence[GopPlan],
    *,
    threads: int = 1,
) -> Iterator[GopPrimitives]:
    """Decode GOPs of a plan and yield their primitives as soon as each is complete.

    Holds one GOP at a time, whatever the video's length. Any subset of GOPs gives the same arrays as all of them.

    Args:
        source, container: the video, and the same open, wherever it stands; closed at the end.
        index, plan: what it holds and what to make of it.
        side: S, side of the model's square input, a multiple of 4, pixels.
        gops: which GOPs of `plan`, in time order.
        threads: decoder threads.
    """
    with FrameReader(source, container, index, vectors=plan.mode == "native", threads=threads) as reader:
        extractor = _Extractor(reader, index, plan, side)
        for run in _runs(gops):
            yield from extractor.run(run)


def _runs(gops: Sequence[GopPlan]) -> Iterator[list[GopPlan]]:
    """Group GOPs whose packets overlap: they are decoded in one go."""
    run: list[GopPlan] = []
    for gop in gops:
        if run and gop.first_packet > run[-1].last_packet:
            yield run
            run = []
        run.append(gop)
    if run:
        yield run


class _Extractor:
    """Extracts runs of GOPs; holds what outlives a run (scaler, motion window)."""

    def __init__(self, reader: FrameReader, index: PacketIndex, plan: VideoPlan, side: int) -> None:
        self._reader, self._index, self._plan, self._side = reader, index, plan, side
        self._scaler = Scaler(side)
        self._field = FieldPicker()
        self._window: MotionWindow | None = None
        self._reencoder: reencode.Reencoder | None = None
        self._paper: PaperExtractor | None = None
        if plan.mode in ("transcode", "paper"):
            encoded = reencode.encoded_side(side)
            self._motion_size = (encoded, encoded)
            if plan.mode == "paper":
                self._paper = PaperExtractor(reader, index, plan, side, encoded)
        else:
            self._motion_size = (index.info.width, index.info.height)

    def run(self, gops: Sequence[GopPlan]) -> Iterator[GopPrimitives]:
        """Decode GOPs that overlap in one pass."""
        if self._paper is not None:
            yield from self._paper.run(gops, self._builder)
            return
        first, last = gops[0].first_packet, max(gop.last_packet for gop in gops)
        wanted = self._wanted(gops)
        # Searched, not hashed: one run can be a whole film, and a set of its timestamps 100 MB.
        wanted_pts = array("q", np.sort(self._index.pts[wanted]).tobytes())
        builders = (self._builder(gop) for gop in gops)
        builder: GopBuilder | None = next(builders)
        for frame in self._reader.read(first, last, wanted):
            if builder is None:
                break
            if frame.pts is None or not _holds(wanted_pts, frame.pts):
                continue
            self._follow(builder, frame, frame.pts)
            while builder is not None and builder.gop.slots[builder.filled].pts <= frame.pts:
                self._take(builder, frame)
                if builder.done:
                    yield builder.finish()
                    builder = next(builders, None)
        while builder is not None:
            while not builder.done:
                builder.pad()
            builder.corrupt = True
            yield builder.finish()
            builder = next(builders, None)

    def _builder(self, gop: GopPlan) -> GopBuilder:
        key = primitives_key(gop, self._side)
        return GopBuilder(gop, self._index.info, self._side, self._plan.mode, self._motion_size, key)

    def _wanted(self, gops: Sequence[GopPlan]) -> npt.NDArray[np.bool_]:
        """Which packets' frames are looked at: bool (N,), decode order."""
        index = self._index
        wanted = np.zeros(len(index.pts), bool)
        by_time = times = np.empty(0, np.int64)
        for gop in gops:
            wanted[[slot.packet for slot in gop.slots]] = True
            if self._plan.mode == "native":
                span = slice(gop.first_packet, gop.last_packet + 1)
                wanted[span] |= index.anchor[span] & (index.pts[span] >= gop.slots[0].pts)
            elif self._plan.mode == "transcode":
                if not len(by_time):
                    shown = np.flatnonzero(index.shown)
                    by_time = shown[np.argsort(index.pts[shown], kind="stable")]
                    times = index.pts[by_time]
                wanted[_resampled(times, by_time, gop, self._plan.options.fps)] = True
        return wanted

    def _follow(self, builder: GopBuilder, frame: av.VideoFrame, pts: int) -> None:
        """Note the frame's motion relative to the frame before, where a P slot will need it."""
        builder.corrupt |= frame.is_corrupt | self._reader.damaged()
        builder.interlaced |= frame.interlaced_frame
        if self._plan.mode == "dense":
            return
        if builder.filled == 0:
            self._restart(frame)
        if self._reencoder is not None:
            if builder.filled == 0 and builder.gop.slots[0].pts > pts:
                return  # the GOP has not begun: its encoder run starts with its first slot
            frame = self._reencoder.push(self._field(frame))
        window = self._window
        if window is None or (window.width, window.height) != (frame.width, frame.height):
            # First frame, or the picture size changed in mid-stream: nothing to relate the old motion to.
            window = self._window = MotionWindow(frame.width, frame.height, self._side, CELL_PX)
        if builder.filled and not builder.next_is_keyframe:
            window.add(frame, usable=not frame.interlaced_frame)
            if window.count == 1 and builder.filled == 1:
                self._shorten(window, builder.gop, pts)

    def _shorten(self, window: MotionWindow, gop: GopPlan, pts: int) -> None:
        """A clip can begin with a B-frame: take that part of the first anchor's motion which lies behind it."""
        begin = gop.slots[0]
        if self._plan.mode != "native" or self._index.anchor[begin.packet]:
            return
        # Of all that was decoded before: an edit list can hide the anchor that the motion starts from.
        anchors = np.maximum.accumulate(self._index.pts[gop.first_packet : begin.packet])
        anchor = int(anchors[anchors < begin.pts].max(initial=int(self._index.pts[gop.first_packet])))
        if anchor < begin.pts < pts:
            window.shorten((pts - begin.pts) / (pts - anchor))

    def _restart(self, frame: av.VideoFrame) -> None:
        """A GOP is about to begin: it must not depend on the one before it."""
        if self._plan.mode == "transcode":
            self._reencoder = reencode.Reencoder(self._motion_size[0])

    def _take(self, builder: GopBuilder, frame: av.VideoFrame) -> None:
        """Make the frame the builder's next slot."""
        if builder.gop.slots[builder.filled].pts != frame.pts:
            builder.missing += 1  # its own frame never came: this later one stands in
        motion, vectors = None, 0
        if not builder.next_is_keyframe and self._window is not None:
            motion, vectors = self._in_nominal_pixels(self._window), self._window.vectors
        builder.put(self._scaler.rgb(self._field(frame)), motion, vectors, frame.rotation)
        if self._window is not None:
            self._window.clear()

    def _in_nominal_pixels(self, window: MotionWindow) -> npt.NDArray[np.int16]:
        """The window's motion in pixels of the announced picture size, which a stream may leave in mid-way."""
        motion = window.fuse()
        if (window.width, window.height) == self._motion_size:
            return motion
        scaled = motion * np.array(self._motion_size) / np.array([window.width, window.height])
        clipped: npt.NDArray[np.int16] = np.clip(np.rint(scaled), -32767, 32767).astype(np.int16)
        return clipped


def _holds(ordered: array[int], value: int) -> bool:
    position = bisect_left(ordered, value)
    return position < len(ordered) and ordered[position] == value


def _resampled(
    times: npt.NDArray[np.int64], by_time: npt.NDArray[np.int64], gop: GopPlan, fps: float
) -> npt.NDArray[np.int64]:
    """Packets to re-encode: the frames shown between slots, thinned to 30 per second (paper, Sec. 3.1).

    Frames that a slower source would repeat are left out: a repetition has no motion to add.
    """
    per_window = max(1, round(ENCODED_FPS / fps))
    chosen = []
    for before, slot in zip(gop.slots, gop.slots[1:], strict=False):
        if slot.kind == I_SLOT:
            continue
        low, high = np.searchsorted(times, [before.pts, slot.pts], side="right")
        if high - low > per_window:
            steps = np.arange(1, per_window + 1, dtype=np.int64)
            targets = before.pts + steps * (slot.pts - before.pts) // per_window
            picks = np.searchsorted(times, targets, side="right") - 1
            chosen.append(by_time[np.unique(picks[picks >= low])])
        else:
            chosen.append(by_time[low:high])
    return np.concatenate(chosen) if chosen else np.empty(0, np.int64)
