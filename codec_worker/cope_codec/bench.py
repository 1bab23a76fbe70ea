"""Times extraction against a plain one-thread decode of the same file, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cope_codec import samples
from cope_codec.index import Source, open_container, video_stream
from cope_codec.options import VideoOptions
from cope_codec.video import open as open_video


def decode_all(source: Source) -> int:
    """Decode every frame with one thread and throw it away; returns how many there were."""
    with open_container(source) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def extract_all(source: Source, options: VideoOptions, side: int) -> int:
    """Open, plan and extract a whole video with one thread; returns the number of GOPs."""
    return sum(1 for _ in open_video(source, options).gops(side))


def generated() -> Iterator[tuple[str, bytes]]:
    """Clips to measure where nobody has any: 10 seconds of 1280 x 720 at 30 FPS each, encoded as one asks for them."""
    kinds: dict[str, dict[str, Any]] = {
        "H.264, B-frames": {"b_frames": 3, "gop": 120},
        "H.264, no B-frames": {"b_frames": 0, "gop": 120},
        "MPEG-4": {"codec": "mpeg4", "b_frames": 0, "gop": 120, "quantiser": 4},
    }
    for name, how in kinds.items():
        yield name, samples.encode(samples.scene(1280, 720, 10, pan_px_s=(-48.0, 20.0), zoom_s=1.02, noise=4), **how)


def residual_ratio(data: bytes, mode: str, side: int = 384) -> float | None:
    """How much of the change between slots the motion leaves to the residual.

    Args:
        data: the file's bytes.
        mode: `native` or `transcode`.
        side: S, side of the model's square input, pixels.

    Returns:
        Energy of the residuals over energy of the plain differences from slot to slot, over all P slots; lower is
        better, 1 is what no motion at all would give. None where nothing changes or there are no P slots.
    """
    options = VideoOptions(mode=mode, max_gops=4096)  # type: ignore[arg-type]  # checked by VideoOptions
    left = plain = 0
    for gop in open_video(data, options).gops(side):
        frames = gop.frames().astype(np.int32)
        p_slots = np.flatnonzero(gop.layout)
        left += int((gop.residual.astype(np.int64) ** 2).sum())
        plain += sum(int(((frames[t] - frames[t - 1]).astype(np.int64) ** 2).sum()) for t in p_slots)
    return round(left / plain, 4) if plain else None


def time_file(
    data: bytes, *, mode: str = "auto", side: int = 384, repeats: int = 7, tick: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measure one file.

    Each repetition times one decode and one extraction; the ratio is the median of the repetitions' own ratios, which
    a machine that changes its speed between repetitions does not disturb.

    Args:
        data: the file's bytes; measuring from memory leaves the disk out.
        mode: `auto`, `native`, `transcode` or `paper`.
        side: S, side of the model's square input, pixels.
        repeats: counted repetitions, after one that warms up.
        tick: called after every repetition.

    Returns:
        codec, mode, width, height, frames, decode_ms_per_frame, extract_ms_per_frame, ratio, ratio_min, ratio_max.
    """
    # All GOPs of a long file: sampling would make it look fast.
    options = VideoOptions(mode=mode, max_gops=4096)  # type: ignore[arg-type]  # checked by VideoOptions
    video = open_video(data, options)
    decode_s: list[float] = []
    extract_s: list[float] = []
    frames = 0
    for number in range(repeats + 1):
        started = time.perf_counter()
        frames = decode_all(data)
        decoded = time.perf_counter()
        extract_all(data, options, side)
        extracted = time.perf_counter()
        if number:
            decode_s.append(decoded - started)
            extract_s.append(extracted - decoded)
        tick()
    ratios = [extract / decode for extract, decode in zip(extract_s, decode_s, strict=True)]
    return {
        "codec": video.info.codec,
        "mode": video.plan.mode,
        "width": video.info.width,
        "height": video.info.height,
        "frames": frames,
        "decode_ms_per_frame": round(statistics.median(decode_s) * 1e3 / max(frames, 1), 4),
        "extract_ms_per_frame": round(statistics.median(extract_s) * 1e3 / max(frames, 1), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }
