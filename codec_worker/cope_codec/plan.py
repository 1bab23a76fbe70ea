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
_FORMAT = b"cope-codec 2"


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
        index: position among all GOPs of the clip; sampling leaves positions out, and a sampled GOP that was moved to
            a keyframe has the position of the one that it starts in.
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


def make_plan(index: PacketIndex, options: VideoOptions, *, sample: bool = True, keyed: bool = True) -> VideoPlan:
    """Cut a video into slots and GOPs.

    A slot is the first usable frame within its cell of the time grid; a cell without one has no slot, so a still
    picture of an hour costs no more than what changes in it. Usable are anchors in native mode (B-frames carry no
    vectors that later frames build on) and all frames otherwise.

    A clip of more than `max_gops` GOPs is represented by that many, spread uniformly. Each then starts at the codec
    keyframe nearest to its uniform place, if there is one close by, and its grid starts with it: nothing is decoded
    only to get there.

    Args:
        index: the packets.
        options: how to cut.
        sample: honour `max_gops`; a video that still grows cannot be sampled.
        keyed: give each GOP its key; without, the index needs no digests, and the plan tells which packets matter.

    Raises:
        CodecError: `no_frames` when the clip holds none, `invalid_option` from `resolve_mode`.
    """
    mode = resolve_mode(index, options)
    in_clip = _clip(index, options)
    shown = np.flatnonzero(in_clip & index.shown)
    if not len(shown):
        raise CodecError(
            "no_frames", "no frame lies between start_s and end_s", param="start_s" if options.start_s else "end_s"
        )
    by_time = shown[np.argsort(index.pts[shown], kind="stable")]
    # Damaged files show several frames at one time: no slot may, so the first of them stands for all.
    by_time = by_time[np.concatenate(([True], np.diff(index.pts[by_time]) > 0))]
    keyframes = frozenset(options.keyframe_slots())
    if mode == "dense":
        assert options.frames is not None
        picks = np.linspace(0, len(by_time) - 1, min(options.frames, len(by_time))).astype(np.int64)
        keyframes = frozenset(range(DENSE_FRAMES_PER_GOP))
        groups = list(enumerate(_split(by_time[picks], DENSE_FRAMES_PER_GOP)))
        total = len(groups)
    else:
        usable = by_time[index.anchor[by_time]] if mode == "native" else by_time
        # A clip can start between two anchors and end before the next one: take its first frame then.
        usable = usable if len(usable) else by_time[:1]
        origin = index.start_pts + _ticks(options.start_s, index.info.time_base)
        whole = _split(_first_of_cells(index, usable, origin, options.fps), options.gop_slots)
        total = len(whole)
        groups = list(enumerate(whole))
        if sample and total > options.max_gops:
            groups = _sampled(index, usable, whole, options)

    start = index.start_pts
    tick_s = float(index.info.time_base)
    key_packets = np.flatnonzero(index.keyframe)
    last_needed = _last_needed(index)
    gops = []
    for number, group in groups:
        slots = tuple(
            Slot(
                packet=int(packet),
                pts=int(index.pts[packet]),
                time_s=(int(index.pts[packet]) - start) * tick_s,
                kind=I_SLOT if position in keyframes else P_SLOT,
            )
            for position, packet in enumerate(group)
        )
        first = _decode_start(index, key_packets, slots)
        # Between its slots, transcoding also needs every frame shown; the others need the slots' own packets.
        last = max(slot.packet for slot in slots)
        if mode == "transcode":
            last = max(last, int(last_needed[slots[-1].packet]))
        key = _key(index, options, mode, slots, first, last) if keyed else ""
        gops.append(GopPlan(index=number, key=key, slots=slots, first_packet=first, last_packet=last))
    clip_end = index.end_pts
    if options.end_s is not None:
        clip_end = min(clip_end, start + _ticks(options.end_s, index.info.time_base))
    seconds = (clip_end - start) * tick_s - (options.start_s or 0.0)
    return VideoPlan(options, mode, max(seconds, 0.0), len(by_time), tuple(gops), total)


def _split(packets: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [packets[i : i + size] for i in range(0, len(packets), size)]


def _first_of_cells(
    index: PacketIndex, packets: npt.NDArray[np.int64], origin: int, fps: float
) -> npt.NDArray[np.int64]:
    """The first packet of each cell of the grid that starts at `origin`; `packets` are in time order."""
    cells = _cells(index.pts[packets] - origin, index.info.time_base, fps)
    chosen: npt.NDArray[np.int64] = packets[np.concatenate(([True], np.diff(cells) > 0))]
    return chosen


def _sampled(
    index: PacketIndex,
    usable: npt.NDArray[np.int64],
    whole: Sequence[npt.NDArray[np.int64]],
    options: VideoOptions,
) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """`max_gops` GOPs of the clip, spread uniformly and moved to keyframes: (position, packets of the slots)."""
    taken = np.linspace(0, len(whole) - 1, options.max_gops).astype(int)
    starts = np.array([index.pts[group[0]] for group in whole], np.int64)
    ends = np.append(starts[1:], int(index.pts[usable[-1]]) + 1)
    times = index.pts[usable]
    keys = usable[index.keyframe[usable]]
    key_times = index.pts[keys]
    # Half the gap to each neighbour: two GOPs that move towards each other still do not meet. The first cannot move
    # back, and the last does not move on, for it would run out of slots.
    room_before = np.append(0, (starts[taken[1:]] - ends[taken[:-1]]) // 2)
    room_after = np.append(room_before[1:], 0)
    moved = starts[taken]
    for i, number in enumerate(taken):
        low, high = np.searchsorted(key_times, [moved[i] - room_before[i], moved[i] + room_after[i] + 1])
        if low < high:
            nearest = low + int(np.argmin(np.abs(key_times[low:high] - starts[number])))
            moved[i] = key_times[nearest]
    limits = np.append(moved[1:], ends[-1])
    sampled: list[tuple[int, npt.NDArray[np.int64]]] = []
    for number, begin, limit in zip(taken, moved, limits, strict=True):
        group = whole[number]
        if begin != starts[number]:
            low, high = np.searchsorted(times, [begin, limit])
            group = _first_of_cells(index, usable[low:high], int(begin), options.fps)[: options.gop_slots]
        place = int(np.searchsorted(starts, begin, side="right")) - 1
        if sampled and place <= sampled[-1][0]:
            place, group = int(number), whole[number]  # both came to the same long GOP: this one stays where it was
        sampled.append((place, group))
    return sampled


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


def _decode_start(index: PacketIndex, key_packets: npt.NDArray[np.int64], slots: Sequence[Slot]) -> int:
    """The last keyframe from which every slot can be decoded.

    A frame that is decoded after a keyframe but shown before it (a leading picture of an open GOP) may build on what
    came before that keyframe, hence the look at the timestamps.
    """
    before = int(np.searchsorted(key_packets, min(slot.packet for slot in slots), side="right"))
    first_pts = min(slot.pts for slot in slots)
    for packet in key_packets[:before][::-1]:
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
    if not index.digests[first : last + 1].any(axis=1).all():
        raise ValueError(f"packets {first} to {last} were not read, so their GOP has no key")
    digest = hashlib.blake2b(_FORMAT, digest_size=20)
    info = index.info
    digest.update(f"|{info.codec}|{info.width}x{info.height}|{info.time_base}|{mode}|{options.fps}|".encode())
    digest.update(hashlib.blake2b(index.extradata).digest())
    digest.update(index.digests[first : last + 1].tobytes())
    digest.update((index.pts[first : last + 1] - index.start_pts).tobytes())
    for slot in slots:
        digest.update(f"{slot.packet - first}:{slot.kind};".encode())
    return digest.hexdigest()
