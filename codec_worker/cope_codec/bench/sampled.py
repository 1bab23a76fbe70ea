"""Times a few sampled GOPs of a long file against decoding just their packets."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cope_codec import samples
from cope_codec.container import open_container, video_stream
from cope_codec.index import read_index
from cope_codec.options import VideoOptions
from cope_codec.plan import VideoPlan
from cope_codec.video import open as open_video

SECONDS = 3600
GOPS = 8
_BIT_RATE = 870_000  # one hour has 390 MB, as a stream of this size usually has


@contextmanager
def long_file(seconds: int = SECONDS, width: int = 1280, height: int = 720) -> Iterator[Path]:
    """A long H.264 file with B-frames and a keyframe every 4 seconds, deleted afterwards.

    Eight seconds are encoded, and their packets repeated with later timestamps.
    """
    with tempfile.TemporaryDirectory(prefix="cope-bench-") as folder:
        path = Path(folder) / "long.mp4"
        path.write_bytes(samples.repeated(width, height, seconds, bit_rate=_BIT_RATE))
        yield path


def decode_just(path: Path, plan: VideoPlan, starts: dict[int, int]) -> int:
    """Seek to each GOP and decode its packets with one thread; returns the number of frames.

    Args:
        path: the file.
        plan: what to decode.
        starts: presentation time of each GOP's first packet, by that packet's position, ticks.
    """
    frames = 0
    with open_container(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        context.thread_count = 1
        for gop in plan.gops:
            container.seek(starts[gop.first_packet], stream=stream, backward=True)
            context.flush_buffers()
            left = gop.last_packet - gop.first_packet + 1
            for packet in container.demux(stream):
                frames += len(context.decode(packet))
                left -= 1
                if not left:
                    break
            frames += len(context.decode(None))
    return frames


def time_sampled(
    path: Path, *, gops: int = GOPS, side: int = 384, repeats: int = 5, tick: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measure one long file; the ratio is the median of the repetitions' own.

    Args:
        path: the file.
        gops: how many GOPs of 8 slots, one a second, are sampled.
        side: S, side of the model's square input, pixels.
        repeats: counted repetitions, after one that warms up.
        tick: called after every repetition.

    Returns:
        seconds, bytes, gops, frames (of these GOPs); medians decode_s, open_s (open, index, plan) and extract_s;
        ratio, ratio_min, ratio_max of open_s + extract_s to decode_s.
    """
    options = VideoOptions(max_gops=gops)
    index, container = read_index(path)
    container.close()
    decode_s: list[float] = []
    open_s: list[float] = []
    extract_s: list[float] = []
    frames = 0
    plan = open_video(path, options).plan
    starts = {gop.first_packet: int(index.pts[gop.first_packet]) for gop in plan.gops}
    for number in range(repeats + 1):
        times = [time.perf_counter()]
        frames = decode_just(path, plan, starts)
        times.append(time.perf_counter())
        video = open_video(path, options)
        times.append(time.perf_counter())
        for _ in video.gops(side):
            pass
        times.append(time.perf_counter())
        if number:
            for taken, begin, end in zip((decode_s, open_s, extract_s), times, times[1:], strict=False):
                taken.append(end - begin)
        tick()
    ratios = [(a + b) / c for a, b, c in zip(open_s, extract_s, decode_s, strict=True)]
    return {
        "seconds": round(plan.seconds, 3),
        "bytes": path.stat().st_size,
        "gops": len(plan.gops),
        "frames": frames,
        "decode_s": round(statistics.median(decode_s), 4),
        "open_s": round(statistics.median(open_s), 4),
        "extract_s": round(statistics.median(extract_s), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }
