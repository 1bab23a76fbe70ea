"""One pass over a container: what the stream is, and when and how each of its packets is shown. Decodes nothing."""

# N packets of the video stream, in decode order.

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.stream
import numpy as np
import numpy.typing as npt

from cope_codec.errors import CodecError
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.shared import SharedFile

Source = str | Path | bytes | SharedFile

_DIGEST_BYTES = 16
# Containers that hold their own streams, by FFmpeg's names. Playlists (hls, dash, concat, sdp, image sequences) are
# left out: they name other files and hosts, and FFmpeg would open whatever a stranger's upload names.
_CONTAINERS = (
    "3g2,3gp,aac,ac3,aiff,apng,asf,av1,avi,avs2,avs3,caf,dirac,dnxhd,dv,eac3,evc,flac,flv,gif,gxf,h261,h263,h264,hevc,ivf,"
    "m4a,m4v,matroska,mj2,mjpeg,mjpeg_2000,mov,mp3,mp4,mpeg,mpegts,mpegtsraw,mpegvideo,mxf,nsv,nut,obu,ogg,rm,"
    "swf,vc1,vc1test,vvc,w64,wav,webm,wtv,yuv4mpegpipe"
)
# Codecs whose decoders export motion vectors that the native mode can use, by FFmpeg's decoder name.
NATIVE_CODECS = frozenset(
    {"h264", "mpeg4", "mpeg1video", "mpeg2video", "h263", "flv", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "wmv1", "wmv2"}
)
_PROGRESSIVE_FIELD_ORDERS = (0, 1)  # AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The video stream as its container announces it.

    Attributes:
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the decoder.
        width, height: coded picture size before rotation, pixels.
        time_base: seconds per tick of every timestamp.
        frame_rate: average frames per second, or None where the container does not say.
        interlaced: the container announces interlaced material.
        stream: position of the stream in the container.
    """

    container: str
    codec: str
    width: int
    height: int
    time_base: Fraction
    frame_rate: Fraction | None
    interlaced: bool
    stream: int

    @property
    def has_vectors(self) -> bool:
        """The stream's own motion vectors are exported and usable: a native codec, progressive."""
        return self.codec in NATIVE_CODECS and not self.interlaced


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """When and how each packet of the stream is shown; position in the arrays = decode order.

    Attributes:
        info: the stream.
        pts: int64 (N,), presentation timestamps, ticks of `info.time_base`.
        end_pts: int64, the time at which the last frame stops being shown, ticks.
        keyframe: bool (N,), decoding can start here.
        shown: bool (N,), the frame is presented (an edit list can hide frames that are only decoded).
        anchor: bool (N,), shown later than everything decoded before it: an I- or P-frame that later frames build
            on, as opposed to a reordered B-frame. Needs no parsing of the packets, so it works for every codec.
        digests: uint8 (N, 16), BLAKE2b of each packet's bytes.
        extradata: the codec's out-of-band headers.
        synthetic: the container has no timestamps; `pts` counts packets at `frame_rate`.
        truncated: the container ended or broke before it said so.
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


def open_container(source: Source, limits: Limits = DEFAULT_LIMITS) -> av.container.InputContainer:
    """Open a path, bytes or a shared file with FFmpeg.

    Raises:
        CodecError: `invalid_video` when FFmpeg does not recognise a container, `video_too_large`.
        OSError: a path that cannot be read.
    """
    if isinstance(source, bytes | SharedFile):
        size = len(source)
    else:
        with Path(source).open("rb") as file:  # a missing file is the caller's OSError, not an invalid video
            size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise CodecError("invalid_video", "the video is empty (0 bytes)")
    if size > limits.max_bytes:
        raise CodecError("video_too_large", f"the video has {size} bytes; at most {limits.max_bytes} are accepted")
    target: str | io.BytesIO | io.RawIOBase = str(source)
    if isinstance(source, bytes):
        target = io.BytesIO(source)
    elif isinstance(source, SharedFile):
        target = source.open()
    options = {
        "max_pixels": str(limits.max_pixels),
        "format_whitelist": _CONTAINERS,
        "protocol_whitelist": "" if isinstance(source, bytes | SharedFile) else "file",
    }
    try:
        return av.open(target, "r", options=options)
    except MemoryError:
        raise  # says nothing about the video
    except av.error.FFmpegError as error:
        raise CodecError("invalid_video", f"not a readable video: {_reason(error)}") from error
    except UnicodeDecodeError as error:  # PyAV decodes some metadata strictly while it opens
        raise CodecError("invalid_video", "not a readable video: its metadata is damaged") from error


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The moving-picture stream that FFmpeg would choose; cover art does not count.

    Raises:
        CodecError: `no_video_stream`.
    """
    attached = av.stream.Disposition.attached_pic
    best = container.streams.best("video")
    if isinstance(best, av.VideoStream) and not best.disposition & attached:
        return best
    for stream in container.streams.video:
        if not stream.disposition & attached:
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise CodecError("no_video_stream", f"the file holds no video stream (only {', '.join(kinds) or 'nothing'})")


def _reason(error: av.error.FFmpegError) -> str:
    """FFmpeg's words without the file name, which may be a path of the server."""
    return error.strerror or type(error).__name__


def _describe(container: av.container.InputContainer, stream: av.VideoStream, limits: Limits) -> StreamInfo:
    context = stream.codec_context
    if context is None:
        raise CodecError("unsupported_codec", "FFmpeg has no decoder for the video stream")
    if context.width < 1 or context.height < 1:
        raise CodecError("invalid_video", "the video stream does not say how large its pictures are")
    if context.width * context.height > limits.max_pixels:
        raise CodecError("video_too_large", f"pictures of {context.width}x{context.height} are too large")
    return StreamInfo(
        container=container.format.name,
        codec=context.name,
        width=context.width,
        height=context.height,
        time_base=stream.time_base or Fraction(1, 90000),
        frame_rate=stream.average_rate or stream.guessed_rate,
        interlaced=int(context.field_order) not in _PROGRESSIVE_FIELD_ORDERS,
        stream=stream.index,
    )


def read_index(source: Source, limits: Limits = DEFAULT_LIMITS) -> tuple[PacketIndex, av.container.InputContainer]:
    """Demux a video once and note its packets.

    Args:
        source: a path, or the bytes of a whole file.
        limits: where to stop.

    Returns:
        The packets, and the container, read to its end: opening one again takes as long as decoding ten frames.

    Raises:
        CodecError: `invalid_video`, `no_video_stream`, `unsupported_codec`, `no_frames`, or `video_too_large`.
    """
    container = open_container(source, limits)
    try:
        return _read(container, limits), container
    except CodecError:
        container.close()
        raise


def digest(packet: av.Packet[av.VideoStream]) -> bytes:
    """What a packet holds, as `PacketIndex.digests` has it."""
    return hashlib.blake2b(packet, digest_size=_DIGEST_BYTES).digest()


def _refuse_longer(seconds: float, packets: int, limits: Limits) -> None:
    if seconds > limits.max_duration_s:
        raise CodecError(
            "video_too_large", f"the video lasts {seconds:.0f} s; at most {limits.max_duration_s:.0f} s are accepted"
        )
    if packets > limits.max_packets:
        raise CodecError("video_too_large", f"the video has more than {limits.max_packets} frames")


def _read(container: av.container.InputContainer, limits: Limits) -> PacketIndex:
    pts: list[int | None] = []
    ends: list[int] = []
    keyframe: list[bool] = []
    shown: list[bool] = []
    digests: list[bytes] = []
    truncated = False
    stream = video_stream(container)
    info = _describe(container, stream, limits)
    # What the container announces is refused before it is read; what it hides, when it is met.
    _refuse_longer((container.duration or 0) / av.time_base, stream.frames, limits)
    longest = int(limits.max_duration_s / info.time_base)
    earliest = latest = None
    extradata = bytes(stream.codec_context.extradata or b"")
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                earliest = stamp if earliest is None else min(earliest, stamp)
                latest = stamp if latest is None else max(latest, stamp)
                if latest - earliest > longest:
                    _refuse_longer(float((latest - earliest) * info.time_base), 0, limits)
            if len(pts) == limits.max_packets:
                _refuse_longer(0, len(pts) + 1, limits)
            pts.append(stamp)
            ends.append((stamp or 0) + (packet.duration or 0))
            keyframe.append(packet.is_keyframe)
            shown.append(not packet.is_discard)
            digests.append(digest(packet))
    except av.error.FFmpegError:
        truncated = True  # what came until here is still a video
    if not any(shown):
        raise CodecError("no_frames", "the video stream holds no frames")
    return _assemble(info, pts, ends, keyframe, shown, digests, extradata, truncated)


def _assemble(
    info: StreamInfo,
    stamps: list[int | None],
    ends: list[int],
    keyframe: list[bool],
    shown: list[bool],
    digests: list[bytes],
    extradata: bytes,
    truncated: bool,
) -> PacketIndex:
    count = len(stamps)
    synthetic = any(stamp is None for stamp in stamps)
    if synthetic:
        rate = info.frame_rate or Fraction(25)
        ticks = max(1, round(1 / (rate * info.time_base)))
        pts = np.arange(count, dtype=np.int64) * ticks
        end_pts = count * ticks
    else:
        pts = np.array(stamps, np.int64)
        # Containers without packet durations: the last frame is shown as long as the one before it.
        steps = np.diff(np.sort(pts))
        end_pts = max(int(max(ends)), int(pts.max()) + (int(steps[-1]) if len(steps) else 1))
    keys = np.array(keyframe, bool)
    if not keys.any():
        keys[0] = True  # nothing is marked (damaged, or intra refresh): the start is the only place to begin
    visible = np.array(shown, bool)
    highest_before = np.concatenate(([np.iinfo(np.int64).min], np.maximum.accumulate(pts)[:-1]))
    return PacketIndex(
        info=info,
        pts=pts,
        end_pts=end_pts,
        keyframe=keys,
        shown=visible,
        anchor=(pts > highest_before) & visible,
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(count, _DIGEST_BYTES),
        extradata=extradata,
        synthetic=synthetic,
        truncated=truncated,
    )
