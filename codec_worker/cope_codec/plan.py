"""From packet times to slots and GOPs: every token of a video is known here, before a frame is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from cope_codec.errors import CodecError
from cope_codec.index import PacketIndex
from cope_codec.options import VideoOptions
from cope_codec.primitives import I_SLOT, P_SLOT

PlanMode = Literal["native", "transcode", "dense"]

DENSE_FRAMES = 64  # what LLaVA-Video and the paper's baseline take
DENSE_FRAMES_PER_GOP = 8  # dense frames travel in groups of this size, so that caches and batches work as for GOPs
# Part of every key: raise it when the same packets and options begin to give other arrays.
_FORMAT = b"cope-codec 1"


@dataclass(frozen=True, slots=True)
class Slot:
    """One step of the time grid.

    Attributes:
        packet: position of the slot's packet in decode order.
        pts: its presentation timestamp, ticks of the stream's time base.
        time_s: the same in seconds from the video's first frame.
        kind: `I_SLOT` or `P_SLOT`.
    """

    packet: int
    pts: int
    time_s: float
    kind: int


@dataclass(frozen=True, slots=True)
class GopPlan:
    """Up to `gop_slots` consecutive slots that begin with a keyframe.

    Attributes:
        index: position among all GOPs of the clip; sampling leaves positions out.
        key: identity of the content: hash of the packets from `first_packet` to `last_packet`, of the codec's headers
            and of every option that shapes the arrays. It does not change when the video grows.
        slots: in time order.
        first_packet: the stream keyframe at which decoding starts, decode order.
        last_packet: the last packet that the slots need, decode order.
    """

    index: int
    key: str
    slots: tuple[Slot, ...]
    first_packet: int
    last_packet: int

    def __post_init__(self) -> None:
        if not self.slots or self.slots[0].kind != I_SLOT:
            raise ValueError("a GOP begins with a keyframe")
        if not self.first_packet <= min(slot.packet for slot in self.slots):
            raise ValueError("decoding must start at or before the first slot")

    @property
    def i_frames(self) -> int:
        """Slots coded as pictures."""
        return sum(slot.kind == I_SLOT for slot in self.slots)

    @property
    def p_frames(self) -> int:
        """Slots coded as delta-tokens."""
        return len(self.slots) - self.i_frames


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """What a video becomes under given options.

    Attributes:
        options: the options that made it.
        mode: `native`, `transcode` or `dense`; `auto` is resolved.
        seconds: length of the clip.
        frames: frames shown within the clip.
        gops: in time order.
        total_gops: GOPs of the clip before sampling to `max_gops`.
    """

    options: VideoOptions
    mode: PlanMode
    seconds: float
    frames: int
    gops: tuple[GopPlan, ...]
    total_gops: int

    @property
    def i_frames(self) -> int:
        """Keyframes of the whole video."""
        return sum(gop.i_frames for gop in self.gops)

    @property
    def p_frames(self) -> int:
        """Delta-coded slots of the whole video."""
        return sum(gop.p_frames for gop in self.gops)

    @property
    def dense_frames(self) -> int:
        """RGB frames that the dense baseline would take of the same clip."""
        return min(DENSE_FRAMES, self.frames)


def resolve_mode(index: PacketIndex, options: VideoOptions) -> PlanMode:
    """The mode that `options` mean for this stream.

    Raises:
        CodecError: `invalid_option` for `native` on a codec whose vectors FFmpeg does not export.
    """
    if options.frames is not None:
        return "dense"
    if options.mode == "auto":
        return "native" if index.info.has_vectors else "transcode"
    if options.mode == "native" and not index.info.has_vectors:
        what = "interlaced video" if index.info.interlaced else f"codec {index.info.codec}"
        raise CodecError(
            "invalid_option", f"{what} carries no usable motion vectors; use auto or transcode", param="mode"
        )
    return options.mode


def make_plan(index: PacketIndex, options: VideoOptions) -> VideoPlan:
    """Cut a video into slots and GOPs.

    A slot is the first usable frame within its cell of the time grid; a cell without one has no slot, so a still
    picture of an hour costs no more than what changes in it. Usable are anchors in native mode (B-frames carry no
    vectors that later frames build on) and all frames otherwise.

    Raises:
        CodecError: `no_frames` when the clip holds none, `invalid_option` from `resolve_mode`.
    """
    mode = resolve_mode(index, options)
    info = index.info
    in_clip = _clip(index, options)
    shown = np.flatnonzero(in_clip & index.shown)
    if not len(shown):
        raise CodecError(
            "no_frames", "no frame lies between start_s and end_s", param="start_s" if options.start_s else "end_s"
        )
    by_time = shown[np.argsort(index.pts[shown], kind="stable")]
    # Damaged files show several frames at one time: no slot may, so the first of them stands for all.
    by_time = by_time[np.concatenate(([True], np.diff(index.pts[by_time]) > 0))]
    if mode == "dense":
        assert options.frames is not None
        picks = np.linspace(0, len(by_time) - 1, min(options.frames, len(by_time))).astype(np.int64)
        chosen, per_gop, keyframes = by_time[picks], DENSE_FRAMES_PER_GOP, frozenset(range(DENSE_FRAMES_PER_GOP))
    else:
        usable = by_time[index.anchor[by_time]] if mode == "native" else by_time
        # A clip can start between two anchors and end before the next one: take its first frame then.
        usable = usable if len(usable) else by_time[:1]
        origin = index.start_pts + _ticks(options.start_s, info.time_base)
        cells = _cells(index.pts[usable] - origin, info.time_base, options.fps)
        chosen = usable[np.concatenate(([True], np.diff(cells) > 0))]
        per_gop, keyframes = options.gop_slots, frozenset(options.keyframe_slots())

    start = index.start_pts
    tick_s = float(info.time_base)
    groups = [chosen[i : i + per_gop] for i in range(0, len(chosen), per_gop)]
    taken = range(len(groups))
    if mode != "dense" and len(groups) > options.max_gops:
        taken_array = np.linspace(0, len(groups) - 1, options.max_gops).astype(int)
        taken = taken_array.tolist()
    last_needed = _last_needed(index)
    gops = []
    for number in taken:
        slots = tuple(
            Slot(
                packet=int(packet),
                pts=int(index.pts[packet]),
                time_s=(int(index.pts[packet]) - start) * tick_s,
                kind=I_SLOT if position in keyframes else P_SLOT,
            )
            for position, packet in enumerate(groups[number])
        )
        first = _decode_start(index, slots)
        # Between its slots, transcoding also needs every frame shown; the others need the slots' own packets.
        last = max(slot.packet for slot in slots)
        if mode == "transcode":
            last = max(last, int(last_needed[slots[-1].packet]))
        key = _key(index, options, mode, slots, first, last)
        gops.append(GopPlan(index=number, key=key, slots=slots, first_packet=first, last_packet=last))
    clip_end = index.end_pts
    if options.end_s is not None:
        clip_end = min(clip_end, start + _ticks(options.end_s, info.time_base))
    seconds = (clip_end - start) * tick_s - (options.start_s or 0.0)
    return VideoPlan(options, mode, max(seconds, 0.0), len(by_time), tuple(gops), len(groups))


def _ticks(seconds: float | None, time_base: Fraction) -> int:
    """Seconds in ticks, rounded up: the first tick that is not earlier."""
    if seconds is None:
        return 0
    exact = Fraction(seconds).limit_denominator(1_000_000) / time_base
    return -(-exact.numerator // exact.denominator)


def _clip(index: PacketIndex, options: VideoOptions) -> npt.NDArray[np.bool_]:
    offset = index.pts - index.start_pts
    inside = np.ones(len(offset), bool)
    if options.start_s is not None:
        inside &= offset >= _ticks(options.start_s, index.info.time_base)
    if options.end_s is not None:
        inside &= offset < _ticks(options.end_s, index.info.time_base)
    return inside


def _cells(offset: npt.NDArray[np.int64], time_base: Fraction, fps: float) -> npt.NDArray[np.int64]:
    """Grid cell of each timestamp: floor(offset * time_base * fps), in exact arithmetic."""
    rate = time_base * Fraction(fps).limit_denominator(100_000)
    wide = offset.astype(object) if int(offset.max(initial=0)) * rate.numerator > 2**62 else offset
    return np.asarray(wide * rate.numerator // rate.denominator, np.int64)


def _decode_start(index: PacketIndex, slots: Sequence[Slot]) -> int:
    """The last keyframe from which every slot can be decoded.

    A frame that is decoded after a keyframe but shown before it (a leading picture of an open GOP) may build on what
    came before that keyframe, hence the look at the timestamps.
    """
    candidates = np.flatnonzero(index.keyframe[: min(slot.packet for slot in slots) + 1])
    first_pts = min(slot.pts for slot in slots)
    for packet in candidates[::-1]:
        if index.pts[packet] <= first_pts:
            return int(packet)
    return 0


def _last_needed(index: PacketIndex) -> npt.NDArray[np.int64]:
    """For each packet, the last one in decode order among those shown no later than it."""
    order = np.argsort(index.pts, kind="stable")
    needed = np.empty(len(order), np.int64)
    needed[order] = np.maximum.accumulate(order)
    return needed


def _key(
    index: PacketIndex, options: VideoOptions, mode: PlanMode, slots: Sequence[Slot], first: int, last: int
) -> str:
    digest = hashlib.blake2b(_FORMAT, digest_size=20)
    info = index.info
    digest.update(f"|{info.codec}|{info.width}x{info.height}|{info.time_base}|{mode}|{options.fps}|".encode())
    digest.update(hashlib.blake2b(index.extradata).digest())
    digest.update(index.digests[first : last + 1].tobytes())
    digest.update((index.pts[first : last + 1] - index.start_pts).tobytes())
    for slot in slots:
        digest.update(f"{slot.packet - first}:{slot.kind};".encode())
    return digest.hexdigest()
