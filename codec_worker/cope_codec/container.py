"""Opens a file with FFmpeg, narrowly: which containers, which protocols, which stream, how large a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.stream

from cope_codec.errors import CodecError
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.presentation import presentation
from cope_codec.shared import SharedFile, open_regular

Source = str | Path | bytes | SharedFile

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
        presentation: what else the container says that shapes pictures, see `presentation`.
    """

    container: str
    codec: str
    width: int
    height: int
    time_base: Fraction
    frame_rate: Fraction | None
    interlaced: bool
    stream: int
    presentation: str = ""

    @property
    def has_vectors(self) -> bool:
        """The stream's own motion vectors are exported and usable: a native codec, progressive."""
        return self.codec in NATIVE_CODECS and not self.interlaced


def open_container(source: Source, limits: Limits = DEFAULT_LIMITS) -> av.container.InputContainer:
    """Open a path, bytes or a shared file with FFmpeg.

    Raises:
        CodecError: `invalid_video` when FFmpeg does not recognise a container, `video_too_large`.
        OSError: a path that cannot be read.
    """
    if isinstance(source, bytes | SharedFile):
        size = len(source)
    else:
        with open(open_regular(source), "rb") as file:  # a missing file is the caller's OSError, not an invalid video
            size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise CodecError("invalid_video", "the video is empty (0 bytes)")
    if size > limits.max_bytes:
        raise CodecError("video_too_large", f"the video has {size} bytes; at most {limits.max_bytes} are accepted")
    target: str | io.BytesIO | io.RawIOBase
    if isinstance(source, bytes):
        target = io.BytesIO(source)
    elif isinstance(source, SharedFile):
        target = source.open()
    else:
        target = str(source)
    return open_input(target, "" if isinstance(source, bytes | SharedFile) else "file", limits)


def open_input(target: str | io.BytesIO | io.RawIOBase, protocols: str, limits: Limits) -> av.container.InputContainer:
    """Open a path or a file object with FFmpeg.

    Args:
        target: a path, or what can be read; without `seek`, FFmpeg reads it from its start to its end.
        protocols: FFmpeg's protocols that may be used, separated by commas.
        limits: how large a picture may be.

    Raises:
        CodecError: `invalid_video` when FFmpeg does not recognise a container.
    """
    options = {
        "max_pixels": str(limits.max_pixels),
        "format_whitelist": _CONTAINERS,
        "protocol_whitelist": protocols,
    }
    try:
        return av.open(target, "r", options=options)
    except MemoryError:
        raise  # says nothing about the video
    except av.error.FFmpegError as error:
        raise CodecError("invalid_video", f"not a readable video: {_reason(error)}") from error
    except UnicodeDecodeError as error:  # PyAV decodes some metadata strictly while it opens
        raise CodecError("invalid_video", "not a readable video: its metadata is damaged") from error


def video_stream(container: av.container.InputContainer, number: int | None = None) -> av.VideoStream:
    """The moving-picture stream that FFmpeg would choose, or the one asked for; cover art does not count.

    Args:
        container: an open file.
        number: position among the moving-picture streams; None is the default.

    Raises:
        CodecError: `no_video_stream`, or `invalid_option` for a `number` that the file does not have.
    """
    attached = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & attached]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise CodecError("no_video_stream", f"the file holds no video stream (only {', '.join(kinds) or 'nothing'})")
    if number is not None:
        if number >= len(streams):
            raise CodecError(
                "invalid_option", f"there is no video stream {number}: the file has {len(streams)}", param="stream"
            )
        return streams[number]
    best = container.streams.best("video")
    return next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])


def _reason(error: av.error.FFmpegError) -> str:
    """FFmpeg's words without the file name, which may be a path of the server."""
    return error.strerror or type(error).__name__


def describe(
    source: Source, container: av.container.InputContainer, stream: av.VideoStream, limits: Limits
) -> StreamInfo:
    """What the container announces of a stream.

    Raises:
        CodecError: `unsupported_codec`, `invalid_video`, `video_too_large`.
    """
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
        presentation=presentation(source, container, stream),
    )
