"""One pass over a container: what the stream is, and when and how each of its packets is shown. Decodes nothing."""

# N packets of the video stream, in decode order.

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import av.container
import av.error
import numpy as np
import numpy.typing as npt

from cope_codec.container import Source, StreamInfo, describe, open_container, video_stream
from cope_codec.errors import CodecError
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.order import OrderParser

DIGEST_BYTES = 16
# Containers that store no presentation times, and codecs for which FFmpeg makes up wrong ones: decode order for H.264,
# and for MPEG-1 the first frames before it has seen that there are B-frames.
_UNTIMED = {"avi": ("h264", "hevc"), "mpegvideo": ("mpeg1video", "mpeg2video")}
_REORDER_FRAMES = 16  # the most that any codec lets a frame wait for its turn
_NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """When and how each packet of the stream is shown; position in the arrays = decode order.

    Attributes:
        info: the stream.
        pts: int64 (N,), presentation timestamps, ticks of `info.time_base`.
        end_pts: int64, the time at which the last frame stops being shown, ticks.
        keyframe: bool (N,), decoding can start here.
        shown: bool (N,), the frame is presented: an edit list can hide frames that are only decoded, and what comes
            before a stream's first keyframe cannot be decoded.
        anchor: bool (N,), shown later than everything decoded before it: an I- or P-frame that later frames build
            on, as opposed to a reordered B-frame. Needs no parsing of the packets, so it works for every codec.
        digests: uint8 (N, 16), BLAKE2b of each packet's bytes; zeros for packets that were not read, see `tables`.
        extradata: the codec's out-of-band headers.
        synthetic: `pts` are not the container's: it has none, and they count frames in display order at the frame
            rate, or its clock was set back on the way, and they go on. Such a stream is read from its start.
        truncated: reading broke off, or the container announces more frames than it holds; only MP4, MOV and AVI
            announce them, so the end of other files can be missing unnoticed.
        settled_pts: no frame that might still be appended is shown before this time, ticks.
    """

    info: StreamInfo
    pts: npt.NDArray[np.int64]
    end_pts: int
    keyframe: npt.NDArray[np.bool_]
    shown: npt.NDArray[np.bool_]
    anchor: npt.NDArray[np.bool_]
    digests: npt.NDArray[np.uint8]
    extradata: bytes
    synthetic: bool
    truncated: bool
    settled_pts: int

    def __post_init__(self) -> None:
        lengths = {len(array) for array in (self.pts, self.keyframe, self.shown, self.anchor, self.digests)}
        if len(lengths) != 1:
            raise ValueError(f"arrays of one packet index differ in length: {sorted(lengths)}")

    @property
    def start_pts(self) -> int:
        """Timestamp of the first frame shown: the zero of every time that the package reports, ticks."""
        return int(self.pts[self.shown].min())

    def __repr__(self) -> str:
        return f"PacketIndex({self.info.codec} {self.info.width}x{self.info.height}, {len(self.pts)} packets)"


def read_index(
    source: Source, limits: Limits = DEFAULT_LIMITS, *, stream: int | None = None
) -> tuple[PacketIndex, av.container.InputContainer]:
    """Demux a video once and note its packets.

    Args:
        source: a path, or the bytes of a whole file.
        limits: where to stop.
        stream: which of the video streams, as in `video_stream`.

    Returns:
        The packets, and the container, read to its end: opening one again takes as long as decoding ten frames.

    Raises:
        CodecError: `invalid_video`, `no_video_stream`, `unsupported_codec`, `no_frames`, `video_too_large`, or
            `invalid_option`.
    """
    container = open_container(source, limits)
    try:
        log = PacketLog(source, container, stream, limits)
        log.read()
        return log.index(), container
    except CodecError:
        container.close()
        raise


def digest(packet: av.Packet[av.VideoStream]) -> bytes:
    """What a packet holds, as `PacketIndex.digests` has it."""
    return hashlib.blake2b(packet, digest_size=DIGEST_BYTES).digest()


def refuse_longer(seconds: float, packets: int, limits: Limits) -> None:
    """Raise `video_too_large` for a duration, seconds, or a number of packets beyond the limits."""
    if seconds > limits.max_duration_s:
        raise CodecError(
            "video_too_large", f"the video lasts {seconds:.0f} s; at most {limits.max_duration_s:.0f} s are accepted"
        )
    if packets > limits.max_packets:
        raise CodecError("video_too_large", f"the video has more than {limits.max_packets} frames")


class PacketLog:
    """Notes the packets of one stream as they are demuxed, and makes an index of those noted so far.

    Args:
        source: the file.
        container: the same, open, at its start.
        number: which of the video streams, as in `video_stream`.
        limits: where to stop.

    Raises:
        CodecError: `no_video_stream`, `unsupported_codec`, `invalid_video`, `video_too_large`, `invalid_option`.
    """

    def __init__(
        self, source: Source, container: av.container.InputContainer, number: int | None, limits: Limits
    ) -> None:
        self._container, self._limits = container, limits
        self._stream = video_stream(container, number)
        self.info = describe(source, container, self._stream, limits)
        # What the container announces is refused before it is read; what it hides, when it is met.
        refuse_longer((container.duration or 0) / av.time_base, self._stream.frames, limits)
        self._extradata = bytes(self._stream.codec_context.extradata or b"")
        # Machine types: eight hours have a million packets, and as many Python objects would take 200 MB.
        self._pts, self._dts, self._durations = array("q"), array("q"), array("q")
        self._keyframe, self._shown, self._digests = bytearray(), bytearray(), bytearray()
        self._order: list[tuple[int, int] | None] | None = None
        self._broken = False
        self._elapsed = 0

    def __len__(self) -> int:
        return len(self._pts)

    def elapsed_s(self) -> float:
        """About how much time the packets noted span, in decode order, seconds; cheap, where an index is not.

        It goes on where the clock is set back, and counts frames where packets carry no times.
        """
        return self._elapsed * float(self.info.time_base)

    def read(self) -> None:
        """Demux to the end, or to where reading breaks off.

        Raises:
            CodecError: `video_too_large`.
        """
        limits, time_base = self._limits, self.info.time_base
        pts, dts, durations = self._pts, self._dts, self._durations
        longest = int(limits.max_duration_s / time_base)
        second, frame = round(1 / time_base), _frame_ticks(self.info, np.empty(0, np.int64))
        earliest = latest = before = None
        untimed = self.info.codec in _UNTIMED.get(self.info.container, ())
        parser: OrderParser | None = None
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0:
                    continue
                if not pts and (untimed or (packet.pts is None and packet.dts is None)):
                    parser, self._order = OrderParser(self.info.codec, self._extradata), []
                if parser is not None and self._order is not None:
                    self._order.append(parser.next(bytes(packet)))
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None:
                    earliest = stamp if earliest is None else min(earliest, stamp)
                    latest = stamp if latest is None else max(latest, stamp)
                    if latest - earliest > longest:
                        refuse_longer(float((latest - earliest) * time_base), 0, limits)
                if len(pts) == limits.max_packets:
                    refuse_longer(0, len(pts) + 1, limits)
                clock = stamp if packet.dts is None else packet.dts
                if clock is None or (before is not None and clock < before - second):
                    self._elapsed += packet.duration or frame
                elif before is not None:
                    self._elapsed += max(0, clock - before)
                before = clock
                pts.append(_NO_TIME if stamp is None else stamp)
                dts.append(_NO_TIME if packet.dts is None else packet.dts)
                durations.append(packet.duration or 0)
                self._keyframe.append(packet.is_keyframe)
                self._shown.append(not packet.is_discard)
                self._digests += digest(packet)
        except av.error.FFmpegError:
            self._broken = True  # what came until here is still a video

    def index(self) -> PacketIndex:
        """What has been noted.

        Raises:
            CodecError: `no_frames`.
        """
        count = len(self._pts)
        return assemble(
            self.info,
            self._limits,
            np.array(self._pts, np.int64),
            np.array(self._dts, np.int64),
            np.array(self._durations, np.int64),
            keyframe=np.array(self._keyframe, bool),
            shown=np.array(self._shown, bool),
            digests=np.frombuffer(bytes(self._digests), np.uint8).reshape(count, DIGEST_BYTES),
            extradata=self._extradata,
            truncated=self._broken | (_announced(self._container, self._stream) > count),
            order=self._order,
        )


def assemble(
    info: StreamInfo,
    limits: Limits,
    stamps: npt.NDArray[np.int64],
    decoded: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    keyframe: npt.NDArray[np.bool_],
    shown: npt.NDArray[np.bool_],
    digests: npt.NDArray[np.uint8],
    extradata: bytes,
    truncated: bool = False,
    order: Sequence[tuple[int, int] | None] | None = None,
) -> PacketIndex:
    """Make an index of what the container says of each packet.

    Args:
        info: the stream.
        limits: what is too long.
        stamps, decoded: int64 (N,), presentation and decode times, ticks; `_NO_TIME` where there is none.
        lengths: int64 (N,), for how long each frame is shown, ticks; 0 where it is not known.
        keyframe, shown, digests, extradata, truncated: as in `PacketIndex`.
        order: display order from the packets' headers; None where the container's times are to be used.

    Raises:
        CodecError: `no_frames`.
    """
    if not shown.any():
        raise CodecError("no_frames", "the video stream holds no frames")
    keys, visible = keyframe, shown
    ticks = _frame_ticks(info, lengths)
    if order is not None or np.count_nonzero(stamps == _NO_TIME) * 2 > len(stamps):
        times, synthetic = _display_ranks(order or [None] * len(stamps)) * ticks, True
        end_pts, settled = len(stamps) * ticks, (len(stamps) - _REORDER_FRAMES) * ticks
    else:
        visible = visible & (stamps != _NO_TIME)
        if not visible.any():
            raise CodecError("no_frames", "not one frame of the video stream says when it is shown")
        times, decoded, synthetic = _continuous(_filled(stamps), decoded, info.time_base, ticks)
        # Containers without packet durations: the last frame is shown as long as the one before it.
        steps = np.diff(np.sort(times))
        end_pts = max(int((times + lengths).max()), int(times.max()) + (int(steps[-1]) if len(steps) else 1))
        settled = int(decoded[-1]) if decoded[-1] != _NO_TIME else int(times.max()) - _REORDER_FRAMES * ticks
    if keys.any():
        first = int(np.argmax(keys))
        decodable = (np.arange(len(keys)) >= first) & (times >= times[first])
        visible = visible & decodable if (visible & decodable).any() else visible
    else:
        # Nothing is marked (damaged, or intra refresh): the start is the only place to begin.
        keys = np.arange(len(keys)) == 0
        settled = _NO_TIME  # a keyframe that comes later would be the start instead
    # The last frame may announce any length of its own, and what is still to be shown counts in paper mode.
    longest = int(limits.max_duration_s / info.time_base)
    end_pts = max(int(times.max()), min(end_pts, int(times[visible].min()) + longest))
    highest_before = np.concatenate(([_NO_TIME], np.maximum.accumulate(times)[:-1]))
    return PacketIndex(
        info=info,
        pts=times,
        end_pts=end_pts,
        keyframe=keys,
        shown=visible,
        anchor=(times > highest_before) & visible,
        digests=digests,
        extradata=extradata,
        synthetic=synthetic,
        truncated=truncated,
        settled_pts=settled,
    )


def _announced(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Frames that a file says it holds, 0 where it does not say."""
    if "mp4" in container.format.name:
        # An edit list takes frames out of this index, not out of the number in the header.
        return min(stream.frames, len(stream.index_entries))
    return stream.frames


def _frame_ticks(info: StreamInfo, durations: npt.NDArray[np.int64]) -> int:
    """How long one frame is shown, ticks: what the packets say first, for raw streams have no other true rate."""
    known = durations[durations > 0]
    if len(known):
        return int(known[0])
    return max(1, round(1 / ((info.frame_rate or Fraction(25)) * info.time_base)))


def _display_ranks(order: Sequence[tuple[int, int] | None]) -> npt.NDArray[np.int64]:
    """Position of each packet in display order; where a header does not tell, behind the packet before it."""
    place = (0, 0)
    places = [place := known or place for known in order]
    by_time = sorted(range(len(order)), key=places.__getitem__)
    ranks = np.empty(len(order), np.int64)
    ranks[by_time] = np.arange(len(order))
    return ranks


def _filled(stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Timestamps without gaps: a packet that has none (it is not shown) takes the one before it, or the first."""
    known = np.flatnonzero(stamps != _NO_TIME)
    before = np.searchsorted(known, np.arange(len(stamps)), side="right") - 1
    filled: npt.NDArray[np.int64] = stamps[known[np.maximum(before, 0)]]
    return filled


def _continuous(
    pts: npt.NDArray[np.int64], dts: npt.NDArray[np.int64], time_base: Fraction, ticks: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
    """Undo every jump of the clock back by more than a second, as in transport streams that were joined.

    Returns:
        pts, dts, and whether anything was changed.
    """
    if (dts == _NO_TIME).any():
        return pts, dts, False
    jumps = np.flatnonzero(np.diff(dts) < -round(1 / time_base)) + 1
    offsets = np.zeros(len(dts), np.int64)
    offsets[jumps] = dts[jumps - 1] + ticks - dts[jumps]
    offsets = np.cumsum(offsets)
    return pts + offsets, dts + offsets, bool(len(jumps))
