"""What the fuzzer does with one input: open it, extract it, accept documented errors and nothing else."""

from __future__ import annotations

import av

import cope_codec
from cope_codec import CODES, CodecError, VideoFeed, VideoOptions, samples, tables
from cope_codec.limits import Limits

SIDE = 16
# Small enough for thousands of inputs a minute; what a worker's wall time and memory bound, these bound here.
LIMITS = Limits(
    max_bytes=1 << 20,
    max_pixels=256 * 256,
    max_packets=2000,
    max_duration_s=3600.0,
    max_decoded_pixels=10**8,
)
OPTIONS = (
    VideoOptions(fps=4.0, gop_slots=2, max_gops=2),
    VideoOptions(fps=10.0, gop_slots=3, keyframes_per_gop=2, max_gops=4),
    VideoOptions(fps=4.0, mode="transcode", max_gops=1),
    VideoOptions(frames=3),
    VideoOptions(start_s=0.25, end_s=0.8, fps=5.0),
    VideoOptions(stream=1),
)
_PIECE = 4096


def prepare() -> None:
    """Make this process fit for thousands of inputs: a quiet FFmpeg, and sample tables read of short files too."""
    av.logging.set_level(av.logging.PANIC)
    tables.LEAST_PACKETS = 2


def check(data: bytes) -> str:
    """Open and extract what the bytes but the last hold; the last chooses the options, and whether they are fed.

    Returns:
        `decoded`, or the code of the error.

    Raises:
        Exception: a bug; everything that is not a `CodecError` with a documented code.
    """
    if not data:
        return "nothing"
    video, choice = data[:-1], data[-1]
    options = OPTIONS[choice % len(OPTIONS)]
    try:
        if choice >= 192 and options.frames is None:
            _feed(video, options)
        else:
            _extract(video, options)
    except CodecError as error:
        assert error.code in CODES, error.code
        return error.code
    except MemoryError:  # FFmpeg's word for a table of a billion entries; a worker makes `out_of_memory` of it
        return "out_of_memory"
    return "decoded"


def _extract(video: bytes, options: VideoOptions) -> None:
    opened = cope_codec.open(video, options, limits=LIMITS)
    gops = list(opened.gops(SIDE))
    assert [gop.index for gop in gops] == [plan.index for plan in opened.plan.gops]
    for gop in gops:
        assert (gop.timestamps_s[1:] > gop.timestamps_s[:-1]).all(), "slots go back in time"
        assert len(gop.frames()) == len(gop.layout)


def _feed(video: bytes, options: VideoOptions) -> None:
    with VideoFeed(options, SIDE, limits=LIMITS) as feed:
        given = [gop.index for at in range(0, len(video), _PIECE) for gop in feed.feed(video[at : at + _PIECE])]
        given += [gop.index for gop in feed.finish()]
    assert given == list(range(len(given)))


def seeds() -> dict[str, bytes]:
    """One small good file per codec and container, by name; the last byte is the choice."""
    kinds: dict[str, dict[str, object]] = {
        "h264.mp4": {},
        "h264.mkv": {"container": "matroska"},
        "h264.ts": {"container": "mpegts"},
        "h264.264": {"container": "h264"},
        "h264.flv": {"container": "flv"},
        "h264.avi": {"container": "avi"},
        "hevc.265": {"codec": "libx265", "container": "hevc"},
        "mpeg4.mp4": {"codec": "mpeg4"},
        "mpeg4.avi": {"codec": "mpeg4", "container": "avi", "b_frames": 0},
        "mpeg2.mpg": {"codec": "mpeg2video", "container": "mpeg"},
        "mpeg1.m1v": {"codec": "mpeg1video", "container": "mpeg1video", "fps": 25},
        "vp8.webm": {"codec": "libvpx", "container": "webm", "b_frames": 0},
    }
    found = {}
    for number, (name, how) in enumerate(kinds.items()):
        pictures = samples.scene(64, 64, 0.9, 10, pan_px_s=(20.0, 0.0))  # x265 writes past its memory below 64
        data = samples.encode(pictures, **{"fps": 10, "gop": 4, **how})  # type: ignore[arg-type]
        for choice in (number % len(OPTIONS), 192 + number % len(OPTIONS)):
            found[f"{choice}-{name}"] = data + bytes([choice])
    return found
