"""Times the pool with one worker against the pool with all cores."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from cope_codec import samples
from cope_codec.limits import Limits
from cope_codec.options import VideoOptions
from cope_codec.pool import CodecPool

SECONDS = 64
_WALL_S = 600.0  # a busy machine should give a poor figure, not none


def scaling_clip(seconds: int = SECONDS, width: int = 1280, height: int = 720) -> bytes:
    """H.264 with B-frames, 30 FPS, a keyframe every 4 seconds; the scene repeats, as drawing it would take minutes."""
    return samples.repeated(width, height, seconds, bit_rate=4_000_000)


def extract(pool: CodecPool, data: bytes, side: int) -> float:
    """Open a video and decode all its GOPs; returns how long that took, seconds."""
    started = time.perf_counter()
    video = pool.open(data, VideoOptions())
    count = sum(1 for _ in video.gops(side))
    elapsed = time.perf_counter() - started
    if count != len(video.plan.gops):
        raise RuntimeError(f"{count} of {len(video.plan.gops)} GOPs came")
    return elapsed


def time_scaling(
    data: bytes, *, side: int = 384, repeats: int = 5, tick: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measure one clip through both pools, in turns, the single worker bound to one core.

    Args:
        data: the clip's bytes.
        side: S, side of the model's square input, pixels.
        repeats: counted repetitions, after one that warms up.
        tick: called after every repetition.

    Returns:
        workers, gops, one_s, all_s (medians, seconds), speed_up, speed_up_min, speed_up_max
        (median and range of the repetitions' own).
    """
    workers = len(os.sched_getaffinity(0))
    one_s: list[float] = []
    all_s: list[float] = []
    patient = Limits(wall_s=_WALL_S)
    with CodecPool(1, limits=patient) as one, CodecPool(workers, limits=patient) as all_of_them:
        one.wait_until_warm()
        all_of_them.wait_until_warm()
        for pid in one.pids():
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})  # FFmpeg and numba must not find a second core
        for number in range(repeats + 1):
            taken = extract(one, data, side), extract(all_of_them, data, side)
            if number:
                one_s.append(taken[0])
                all_s.append(taken[1])
            tick()
        gops = len(one.open(data, VideoOptions()).plan.gops)
    ratios = [single / many for single, many in zip(one_s, all_s, strict=True)]
    return {
        "workers": workers,
        "gops": gops,
        "one_s": round(statistics.median(one_s), 4),
        "all_s": round(statistics.median(all_s), 4),
        "speed_up": round(statistics.median(ratios), 3),
        "speed_up_min": round(min(ratios), 3),
        "speed_up_max": round(max(ratios), 3),
    }
