"""Clips that tests share, encoded once per run."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from cope_codec import samples


@functools.cache
def clip(
    seconds: float = 12,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    width: int = 320,
    height: int = 240,
    fps: int = 15,
    gop: int = 30,
    b_frames: int = 2,
    pan: tuple[float, float] = (30.0, 0.0),
    disc: bool = True,
    seed: int = 0,
    quantiser: int | None = None,
    options: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """A textured scene with known camera motion."""
    pictures = samples.scene(width, height, seconds, fps, pan_px_s=pan, disc=disc, seed=seed)
    return samples.encode(
        pictures,
        codec=codec,
        container=container,
        fps=fps,
        gop=gop,
        b_frames=b_frames,
        quantiser=quantiser,
        options=dict(options),
    )


@functools.cache
def clip_at(times_s: tuple[float, ...], rotation: int = 0) -> bytes:
    """H.264 whose frames are shown at the given times, without B-frames; optionally with a display rotation."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30, options={"preset": "ultrafast", "x264-params": "threads=1"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        if rotation:
            stream.set_display_rotation(rotation)
        pictures = samples.scene(160, 96, len(times_s) / 10, 10, pan_px_s=(40.0, 0.0), disc=False)
        for time_s, picture in zip(times_s, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@functools.cache
def encoded(
    seconds: float = 4,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    width: int = 160,
    height: int = 96,
    fps: int = 15,
    gop: int = 15,
    b_frames: int = 2,
    pix_fmt: str = "yuv420p",
    options: tuple[tuple[str, str], ...] = (),
    muxer: tuple[tuple[str, str], ...] = (),
    interlaced: bool = False,
    first_s: float = 0.0,
    woven: bool = False,
    pan_px_s: float = 30.0,
    rotation: int = 0,
    streams: int = 1,
    cover: bool = False,
    seed: int = 0,
) -> bytes:
    """What `clip` does not do: other pixel formats, muxer options, several streams, cover art, interlaced frames.

    `interlaced` sets the encoder's flags; `woven` makes each frame of the fields of two moments, as a camera does.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=dict(muxer)) as output:
        tracks = []
        for _ in range(streams):
            track = output.add_stream(codec, rate=fps, options=dict(options))
            track.width, track.height, track.pix_fmt = width, height, pix_fmt
            context = track.codec_context
            context.gop_size, context.max_b_frames, context.thread_count = gop, b_frames, 1
            if interlaced:
                context.flags |= Flags.interlaced_dct | Flags.interlaced_me
            if rotation:
                track.set_display_rotation(rotation)
            tracks.append(track)
        if cover:
            picture = output.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 640, 480, "rgb24"
            picture.disposition = Disposition.attached_pic
            art = av.VideoFrame(640, 480, "rgb24")
            art.pts = 0
        for number, track in enumerate(tracks):
            rate = 2 * fps if woven else fps
            scene = samples.scene(
                width, height, seconds, rate, pan_px_s=(pan_px_s, 0.0), disc=False, seed=seed + number
            )
            for position, pixels in enumerate(weave(scene) if woven else scene):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = position + round(first_s * fps), Fraction(1, fps)
                output.mux(track.encode(frame))
            output.mux(track.encode(None))
        if cover:
            output.mux(picture.encode(art))
    return buffer.getvalue()


def weave(fields: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Interlaced frames: the upper lines of one picture, the lower lines of the next."""
    moments = iter(fields)
    for upper, lower in zip(moments, moments, strict=True):
        frame = upper.copy()
        frame[1::2] = lower[1::2]
        yield frame


@functools.cache
def with_subtitles(container: str = "matroska") -> bytes:
    """Four seconds of H.264 with a subtitle stream."""
    codec, text = ("subrip", b"a wall") if container == "matroska" else ("mov_text", b"\0\6a wall")
    buffer = io.BytesIO()
    with av.open(io.BytesIO(encoded(4))) as source, av.open(buffer, "w", format=container) as output:
        pictures = output.add_stream_from_template(source.streams.video[0])
        lines = output.add_mux_stream(codec)
        line = av.Packet(text)
        line.stream, line.time_base = lines, Fraction(1, 1000)
        line.pts, line.dts, line.duration = 0, 0, 500
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream = pictures
                output.mux(packet)
            if number == 0:
                output.mux(line)
    return buffer.getvalue()


@functools.cache
def audio_only() -> bytes:
    """A WAV-in-mp4 tone: readable, but no pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        tone = (np.sin(np.arange(1024 * 8) / 10) * 0.2).astype(np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(tone[:, :1024], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for number in range(8):
            frame.pts = number * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def scaled(scaler: VideoReformatter, frame: av.VideoFrame, side: int) -> np.ndarray:
    """A frame in the model's size as the package promises it, by FFmpeg and numpy alone: uint8 (S, S, 3), RGB."""
    return scaler.reformat(frame, side, side, "bgr24", interpolation="AREA", threads=1).to_ndarray()[..., ::-1]


def peak_kib() -> int:
    """Most memory that this process has held so far, KiB.

    `ru_maxrss` would do, but a child inherits its parent's, so that a test's script would begin with pytest's.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def broken_clips() -> dict[str, bytes]:
    """Files that are no videos, or videos that came to harm, by what happened to them."""
    good = clip(4)
    random = np.random.default_rng(7)
    index = good.index(b"moov")
    return {
        "zero bytes": b"",
        "text": b"this is not a video\n" * 50,
        "random bytes": random.bytes(20_000),
        "cut before its index": good[: index - 100],
        "audio only": audio_only(),
    }


def harmed_clips() -> dict[str, bytes]:
    """Videos of which something can still be read."""
    good = bytearray(clip(4, container="matroska"))
    random = np.random.default_rng(8)
    flipped = bytearray(clip(4))
    for position in random.integers(2000, len(flipped) * 3 // 4, 60):
        flipped[position] ^= 0xFF
    return {
        "truncated": bytes(good[: len(good) * 2 // 3]),
        "flipped bytes": bytes(flipped),
        "one frame": samples.encode(list(samples.scene(160, 96, 0.1, 10)), fps=10),
    }
