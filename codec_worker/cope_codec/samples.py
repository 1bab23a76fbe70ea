"""Clips with real motion, drawn and encoded here: for the demo, the warm-up and the tests. No footage is shipped."""

# H, W = picture size, pixels.

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numba as nb
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

Picture = npt.NDArray[np.uint8]
_REPEATED_S = 8
_MARGIN = 2  # the texture is this many times larger than the picture, so that a camera can move over it


def texture(height: int, width: int, seed: int) -> npt.NDArray[np.float32]:
    """Noise of several scales, so that every block has something for a motion search to hold on to.

    Returns:
        float32 (H, W, 3) in 0..255.
    """
    random = np.random.default_rng(seed)
    out = np.zeros((height, width, 3), np.float32)
    for octave, weight in ((4, 0.3), (8, 0.3), (16, 0.25), (32, 0.15)):
        coarse = random.random((octave + 2, octave * width // height + 2, 3), np.float32)
        rows = np.linspace(0, coarse.shape[0] - 1.001, height)
        columns = np.linspace(0, coarse.shape[1] - 1.001, width)
        out += weight * _sample(coarse, rows, columns)
    low, high = out.min(), out.max()
    scaled: npt.NDArray[np.float32] = (out - low) * (255 / (high - low))
    return scaled


@nb.njit(cache=True, nogil=True)
def _sample(image, y, x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Bilinear look-up on a grid of rows `y` and columns `x`, which must lie within the image: float32 (H, W, 3)."""
    out = np.empty((y.size, x.size, 3), np.float32)
    for i in range(y.size):
        y0 = int(y[i])
        v = np.float32(y[i] - y0)
        y1 = min(y0 + 1, image.shape[0] - 1)
        for j in range(x.size):
            x0 = int(x[j])
            u = np.float32(x[j] - x0)
            x1 = min(x0 + 1, image.shape[1] - 1)
            for c in range(3):
                top = image[y0, x0, c] * (1 - u) + image[y0, x1, c] * u
                bottom = image[y1, x0, c] * (1 - u) + image[y1, x1, c] * u
                out[i, j, c] = top * (1 - v) + bottom * v
    return out


def scene(
    width: int,
    height: int,
    seconds: float,
    fps: int = 30,
    *,
    pan_px_s: tuple[float, float] = (0.0, 0.0),
    zoom_s: float = 1.0,
    disc: bool = True,
    noise: int = 0,
    seed: int = 0,
) -> Iterator[Picture]:
    """A textured wall under a moving camera, with a textured red disc that crosses it from left to right.

    Args:
        width, height: picture size, pixels.
        seconds: length.
        fps: frames per second.
        pan_px_s: how far the picture's content moves per second, (x, y), pixels; it bounces within its margin.
        zoom_s: growth of the picture's content per second; 1 is none.
        disc: draw the disc.
        noise: spread of a camera's noise, grey levels; without any, an encoder's work is unusually easy.
        seed: other seeds give other textures.

    Yields:
        uint8 (H, W, 3), RGB.
    """
    wall = texture(height * _MARGIN, width * _MARGIN, seed)
    ball = texture(height // 3, height // 3, seed + 1)
    ball[..., 0] = ball[..., 0] * 0.3 + 170
    ball[..., 1:] *= 0.35
    grain = np.random.default_rng(seed + 2).normal(0, noise, (height + 64, width + 64, 1)).astype(np.float32)
    radius = height / 6
    rows, columns = np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64)
    span_y, span_x = height * (_MARGIN - 1), width * (_MARGIN - 1)
    for number in range(round(seconds * fps)):
        t = number / fps
        scale = zoom_s**-t
        left = _bounce(span_x / 2 - pan_px_s[0] * t, span_x)
        top = _bounce(span_y / 2 - pan_px_s[1] * t, span_y)
        y = np.clip(top + height / 2 + (rows - height / 2) * scale, 0, wall.shape[0] - 1.001)
        x = np.clip(left + width / 2 + (columns - width / 2) * scale, 0, wall.shape[1] - 1.001)
        picture = _sample(wall, y, x)
        if disc:
            _draw_disc(picture, ball, radius, (t / seconds) * (width + 2 * radius) - radius)
        if noise:
            down, right = (number * 37) % 64, (number * 23) % 64  # another cut of it for every frame
            picture = np.clip(picture + grain[down : down + height, right : right + width], 0, 255)
        yield picture.astype(np.uint8)


def _draw_disc(picture: npt.NDArray[np.float32], ball: npt.NDArray[np.float32], radius: float, centre_x: float) -> None:
    """Paste a disc cut from `ball` at half height; what lies outside the picture is cut off."""
    height, width = picture.shape[:2]
    first, last = max(0, int(centre_x - radius)), min(width, int(centre_x + radius) + 2)
    if first >= last:
        return
    dy = np.arange(height)[:, None] - height / 2
    dx = np.arange(first, last)[None, :] - centre_x
    inside = dy**2 + dx**2 < radius**2
    side = ball.shape[0]
    ball_y = np.clip((dy / radius + 1) / 2 * side, 0, side - 1).astype(int)
    ball_x = np.clip((dx / radius + 1) / 2 * side, 0, side - 1).astype(int)
    picture[:, first:last][inside] = ball[ball_y, ball_x][inside]


def _bounce(value: float, span: float) -> float:
    """Fold a coordinate into 0..span, turning round at the ends."""
    folded = value % (2 * span)
    return folded if folded <= span else 2 * span - folded


@functools.cache
def _avx512() -> bool:
    """This machine has AVX-512, with which x264's macroblock tree differs from run to run, by a quantiser step or so.

    Held to AVX2 (`asm=avx2`), x264 makes the same bytes in every run, and those that it makes held to AVX or SSE4.
    """
    with contextlib.suppress(OSError):
        return "avx512" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False


def encode(
    pictures: Iterable[Picture],
    *,
    codec: str = "libx264",
    container: str = "mp4",
    fps: int = 30,
    gop: int = 60,
    b_frames: int = 2,
    quantiser: int | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode pictures to a file in memory.

    Args:
        pictures: uint8 (H, W, 3), RGB, all of one size.
        codec: FFmpeg's encoder name.
        container: FFmpeg's container name.
        fps: frames per second.
        gop: most frames from one I-frame to the next.
        b_frames: most B-frames in a row.
        quantiser: fixed quantiser of the MPEG encoders, 1 (best) to 31; None leaves the bit rate to the encoder.
        options: the encoder's private options.
    """
    buffer = io.BytesIO()
    chosen = {"preset": "veryfast", "x264-params": "threads=1"} if codec == "libx264" else {}
    chosen |= options or {}
    if codec == "libx264" and _avx512():
        chosen["x264-params"] += ":asm=avx2"
    with av.open(buffer, "w", format=container) as output:
        stream: VideoStream | None = None
        for number, picture in enumerate(pictures):
            if stream is None:
                added = output.add_stream(codec, rate=fps, options=chosen)
                assert isinstance(added, VideoStream)
                stream = added
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                context = stream.codec_context
                context.gop_size, context.max_b_frames = gop, b_frames
                if quantiser is not None:
                    context.qmin = context.qmax = quantiser  # PyAV ignores global_quality
                context.thread_count = 1  # the same bytes on every machine
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        if stream is not None:
            output.mux(stream.encode(None))
    return buffer.getvalue()


def repeated(width: int, height: int, seconds: int, *, bit_rate: int, fps: int = 30) -> bytes:
    """A long H.264 file (MP4, B-frames, a keyframe every 4 seconds) at the price of eight seconds: its packets repeat.

    Args:
        width, height: picture size, pixels.
        seconds: length; what exceeds a multiple of eight is cut off.
        bit_rate: bits per second.
        fps: frames per second.
    """
    pictures = scene(width, height, _REPEATED_S, fps, pan_px_s=(-48.0, 20.0), zoom_s=1.02, noise=4)
    rate = {"x264-params": f"threads=1:bitrate={bit_rate // 1000}:scenecut=0"}
    short = encode(pictures, fps=fps, gop=4 * fps, b_frames=3, options=rate)
    buffer = io.BytesIO()
    with av.open(io.BytesIO(short), "r") as source, av.open(buffer, "w", format="mp4") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        assert stream.time_base is not None
        span = round(_REPEATED_S / stream.time_base)
        for turn in range(max(1, seconds // _REPEATED_S)):
            for packet in packets:
                assert packet.pts is not None and packet.dts is not None
                shifted = av.Packet(bytes(packet))
                shifted.stream, shifted.time_base, shifted.is_keyframe = copy, stream.time_base, packet.is_keyframe
                shifted.pts, shifted.dts = packet.pts + turn * span, packet.dts + turn * span
                shifted.duration = packet.duration
                output.mux(shifted)
    return buffer.getvalue()


def demo_clip() -> bytes:
    """16 seconds of H.264 with B-frames, 640 x 360: a red disc crosses a wall while the camera drifts and zooms in."""
    return encode(scene(640, 360, 16, pan_px_s=(-24.0, 10.0), zoom_s=1.02), gop=120, b_frames=3)
