"""From packet times to slots and GOPs: every token of a video is known here, before a frame is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cope_codec.errors import CodecError
from cope_codec.grid import ConstantRate, cells, clip_end, first_of_cells, frames_in_clip, ticks
from cope_codec.index import PacketIndex
from cope_codec.options import VideoOptions
from cope_codec.primitives import I_SLOT, P_SLOT

PlanMode = Literal["native", "transcode", "paper", "dense"]

DENSE_FRAMES = 64  # what LLaVA-Video and the paper's baseline take
DENSE_FRAMES_PER_GOP = 8  # dense frames travel in groups of this size, so that caches and batches work as for GOPs
_FEWEST_ANCHORS = 0.9  # of the cells that hold a frame, in `auto`: below, the stream's own vectors miss too much
# Part of every key: raise it when the same packets and options begin to give other arrays.
_FORMAT = b"cope-codec 3"


@dataclass(frozen=True, slots=True)
class Slot:
    """One step of the time grid.

    Attributes:
        packet: position of the slot's packet in decode order.
        pts: its presentation timestamp, ticks of the stream's time base.
        time_s: when the slot is shown, seconds from the video's first frame: the time of `pts`, or, in paper mode, of
            the slot's place in the re-encoded stream, which can show one source frame in several slots.
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
        closes_pts: no frame shown at this time or later can change the GOP, once a slot follows it, ticks.
        first_place: paper mode: place of the first slot in the re-encoded stream, frames of 1/30 s; else 0.
    """

    index: int
    key: str
    slots: tuple[Slot, ...]
    first_packet: int
    last_packet: int
    closes_pts: int
    first_place: int = 0

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
        mode: `native`, `transcode`, `paper` or `dense`; `auto` is resolved.
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


def resolve_mode(index: PacketIndex, options: VideoOptions, frames: npt.NDArray[np.int64]) -> PlanMode:
    """The mode that `options` mean for this stream, of which `frames` are the clip's packets in time order.

    Raises:
        CodecError: `invalid_option` for `native` on a codec whose vectors FFmpeg does not export.
    """
    if options.frames is not None:
        return "dense"
    if options.mode == "auto":
        return "native" if index.info.has_vectors and _anchors_suffice(index, options, frames) else "transcode"
    if options.mode == "native" and not index.info.has_vectors:
        what = "interlaced video" if index.info.interlaced else f"codec {index.info.codec}"
        raise CodecError(
            "invalid_option", f"{what} carries no usable motion vectors; use auto, transcode or paper", param="mode"
        )
    return options.mode


def _anchors_suffice(index: PacketIndex, options: VideoOptions, frames: npt.NDArray[np.int64]) -> bool:
    """Whether native slots would be about as many as the grid asks for.

    In a slow video (a timelapse, slides, few frames per second) most cells of the grid hold nothing but B-frames. What
    the clip's first GOP would be decides, without its last cell, which may be cut off: that does not change when the
    video grows.
    """
    origin = index.start_pts + ticks(options.start_s, index.info.time_base)
    numbers = cells(index.pts[frames] - origin, index.info.time_base, options.fps)
    first = numbers < numbers[0] + options.gop_slots
    usable = index.anchor[frames] | (np.arange(len(frames)) == 0)
    asked, found = np.unique(numbers[first]), np.unique(numbers[first & usable])
    closed = asked[:-1] if numbers[-1] == asked[-1] else asked
    return len(np.intersect1d(closed, found)) >= _FEWEST_ANCHORS * len(closed)


def make_plan(index: PacketIndex, options: VideoOptions, *, sample: bool = True, keyed: bool = True) -> VideoPlan:
    """Cut a video into slots and GOPs.

    A slot is the first usable frame within its cell of the time grid; a cell without one has no slot, so a still
    picture of an hour costs no more than what changes in it. Usable are the clip's first frame and anchors in native
    mode (B-frames carry no vectors that later frames build on) and all frames otherwise.

    In paper mode slots lie at every 30 / fps frames of the re-encoded stream, which repeats frames where the source has
    none: there are no cells without a slot, and a still picture costs as much as any other.

    A clip of more than `max_gops` GOPs is represented by that many, spread uniformly. Each then starts at the codec
    keyframe nearest to its uniform place, if there is one close by, and its grid starts with it: nothing is decoded
    only to get there. In paper mode they stay where they are, for a GOP is a GOP of the re-encoded stream.

    Args:
        index: the packets.
        options: how to cut.
        sample: honour `max_gops`; a video that still grows cannot be sampled.
        keyed: give each GOP its key; without, the index needs no digests, and the plan tells which packets matter.

    Raises:
        CodecError: `no_frames` when the clip holds none, `invalid_option` from `resolve_mode`.
    """
    by_time = frames_in_clip(index, options)
    mode = resolve_mode(index, options, by_time)
    rate: ConstantRate | None = None
    if mode == "dense":
        assert options.frames is not None
        picks = np.linspace(0, len(by_time) - 1, min(options.frames, len(by_time))).astype(np.int64)
        groups = list(enumerate(_split(by_time[picks], DENSE_FRAMES_PER_GOP)))
        total = len(groups)
    elif mode == "paper":
        rate = ConstantRate(index, options)
        every = options.gop_slots * rate.step
        total = -(-rate.slots // options.gop_slots)
        taken = np.linspace(0, total - 1, options.max_gops).astype(int) if sample and total > options.max_gops else None
        groups = []
        for number in range(total) if taken is None else taken.tolist():
            slots_left = min(options.gop_slots, rate.slots - number * options.gop_slots)
            groups.append((number, rate.packets(number * every, slots_left, rate.step)))
    else:
        usable = by_time
        if mode == "native":
            # A clip begins with its first frame, even if that is no anchor: a keyframe needs no vectors.
            usable = by_time[index.anchor[by_time] | (np.arange(len(by_time)) == 0)]
        origin = index.start_pts + ticks(options.start_s, index.info.time_base)
        whole = _split(first_of_cells(index, usable, origin, options.fps), options.gop_slots)
        total = len(whole)
        groups = list(enumerate(whole))
        if sample and total > options.max_gops:
            groups = _sampled(index, usable, whole, options)

    planner = _Planner(index, options, mode, rate, keyed)
    gops = tuple(planner.gop(number, packets) for number, packets in groups)
    seconds = (clip_end(index, options) - index.start_pts) * planner.tick_s - (options.start_s or 0.0)
    return VideoPlan(options, mode, max(seconds, 0.0), len(by_time), gops, total)


class _Planner:
    """Makes GOP plans of slots' packets; holds what they share."""

    def __init__(
        self, index: PacketIndex, options: VideoOptions, mode: PlanMode, rate: ConstantRate | None, keyed: bool
    ) -> None:
        self._index, self._options, self._rate, self._keyed = index, options, rate, keyed
        self.tick_s = float(index.info.time_base)
        self._start = index.start_pts  # looks at every packet
        keyframes = range(DENSE_FRAMES_PER_GOP) if mode == "dense" else options.keyframe_slots()
        self._keyframes = frozenset(keyframes)
        self._key_packets = np.flatnonzero(index.keyframe)
        self._last_needed = _last_needed(index) if mode == "transcode" else None
        self._digest = _digest(index, options, mode)

    def gop(self, number: int, packets: npt.NDArray[np.int64]) -> GopPlan:
        """The GOP at position `number` whose slots are these packets' frames."""
        index, rate = self._index, self._rate
        place = number * self._options.gop_slots * rate.step if rate is not None else 0
        slots = tuple(
            Slot(
                packet=int(packet),
                pts=int(index.pts[packet]),
                time_s=(
                    (int(index.pts[packet]) - self._start) * self.tick_s
                    if rate is None
                    else rate.time_s(place + position * rate.step)
                ),
                kind=I_SLOT if position in self._keyframes else P_SLOT,
            )
            for position, packet in enumerate(packets)
        )
        first = _decode_start(index, self._key_packets, slots)
        # Between its slots, re-encoding also needs every frame shown; the others need the slots' own packets.
        last = max(slot.packet for slot in slots)
        closes_pts = slots[-1].pts + 1
        schedule = None
        if self._last_needed is not None:
            last = max(last, int(self._last_needed[slots[-1].packet]))
        if rate is not None:
            schedule = rate.packets(place, (len(slots) - 1) * rate.step + 1)
            last = int(schedule.max())
            closes_pts = rate.closes_pts(place + (len(slots) - 1) * rate.step)
        key = self._key(slots, first, last, place, schedule) if self._keyed else ""
        return GopPlan(number, key, slots, first, last, closes_pts, place)

    def _key(
        self, slots: Sequence[Slot], first: int, last: int, place: int, schedule: npt.NDArray[np.int64] | None
    ) -> str:
        """Identity of a GOP: all that its arrays depend on."""
        index = self._index
        if not index.digests[first : last + 1].any(axis=1).all():
            raise ValueError(f"packets {first} to {last} were not read, so their GOP has no key")
        digest = self._digest.copy()
        if self._rate is not None and schedule is not None:
            digest.update(f"{self._rate.origin_pts - self._start}:{place};".encode())
            digest.update((schedule - first).tobytes())
        digest.update(index.digests[first : last + 1].tobytes())
        digest.update((index.pts[first : last + 1] - self._start).tobytes())
        for slot in slots:
            digest.update(f"{slot.packet - first}:{slot.kind};".encode())
        return digest.hexdigest()


def _split(packets: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [packets[i : i + size] for i in range(0, len(packets), size)]


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
            group = first_of_cells(index, usable[low:high], int(begin), options.fps)[: options.gop_slots]
        place = int(np.searchsorted(starts, begin, side="right")) - 1
        if sampled and place <= sampled[-1][0]:
            place, group = int(number), whole[number]  # both came to the same long GOP: this one stays where it was
        sampled.append((place, group))
    return sampled


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


def _digest(index: PacketIndex, options: VideoOptions, mode: PlanMode) -> hashlib.blake2b:
    """The beginning of every key: what shapes all GOPs alike."""
    digest = hashlib.blake2b(_FORMAT, digest_size=20)
    info = index.info
    digest.update(f"|{info.codec}|{info.width}x{info.height}|{info.time_base}|{mode}|{options.fps}|".encode())
    digest.update(info.presentation.encode())
    digest.update(hashlib.blake2b(index.extradata).digest())
    return digest
