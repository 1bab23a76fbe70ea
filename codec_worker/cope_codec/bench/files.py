"""Times extraction, and peers, against a plain one-thread decode of the same file, in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cope_codec import samples
from cope_codec.bench.peers import Peer, PeerError
from cope_codec.container import Source, open_container, video_stream
from cope_codec.options import VideoOptions
from cope_codec.video import Video
from cope_codec.video import open as open_video

# Below that a clip has hardly a P slot at 1 FPS, or is drawn larger than it is for the model.
QUALITY_S, QUALITY_LINES = 2.0, 240


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
        # Left to itself, x264 takes the noise for scene cuts and makes hardly a B-frame.
        "H.264, B-frames": {"b_frames": 3, "gop": 120, "options": {"b_strategy": "0", "sc_threshold": "0"}},
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


def counts_for_quality(video: Video) -> bool:
    """Whether a file's residual ratios belong in the geometric means: H.264 of at least 2 seconds and 240 lines."""
    return video.info.codec == "h264" and video.plan.seconds >= QUALITY_S and video.info.height >= QUALITY_LINES


def time_file(
    data: bytes,
    *,
    mode: str = "auto",
    side: int = 384,
    repeats: int = 7,
    peers: Sequence[Peer] = (),
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Measure one file.

    Each repetition times one decode, one extraction and each peer, one after another; the ratio is the median of the
    repetitions' own ratios, which a machine that changes its speed between repetitions does not disturb.

    Args:
        data: the file's bytes; measuring from memory leaves the disk out. Peers read a temporary copy.
        mode: `auto`, `native`, `transcode` or `paper`.
        side: S, side of the model's square input, pixels.
        repeats: counted repetitions, after one that warms up.
        peers: what else to measure.
        tick: called after every repetition.

    Returns:
        codec, mode, width, height, frames, decode_ms_per_frame, extract_ms_per_frame, ratio, ratio_min, ratio_max,
        and, where there are peers, `peers`: ms_per_frame, ratio, ratio_min, ratio_max of each, or `failed` with the
        reason.
    """
    # All GOPs of a long file: sampling would make it look fast.
    options = VideoOptions(mode=mode, max_gops=4096)  # type: ignore[arg-type]  # checked by VideoOptions
    video = open_video(data, options)
    jobs: dict[str, Callable[[], float]] = {
        "decode": lambda: _timed(lambda: decode_all(data)),
        "extract": lambda: _timed(lambda: extract_all(data, options, side)),
    }
    frames = decode_all(data)
    failed: dict[str, str] = {}
    with tempfile.NamedTemporaryFile(prefix="cope-bench-", suffix=".video") as copy:
        if peers:
            copy.write(data)
            copy.flush()
        for peer in peers:
            refusal = peer.refuses(video.info.width, video.info.height, frames)
            if refusal:
                failed[peer.name] = refusal
            else:
                jobs[peer.name] = partial(peer.time, Path(copy.name), video.plan.seconds)
        taken_s: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(repeats + 1):
            for name in list(jobs):
                try:
                    taken = jobs[name]()
                except PeerError as error:
                    failed[name] = str(error)
                    del jobs[name], taken_s[name]
                    continue
                if number:
                    taken_s[name].append(taken)
            tick()
    figures = {name: _figures(times, taken_s["decode"], frames) for name, times in taken_s.items()}
    extraction = figures.pop("extract")
    report = {
        "codec": video.info.codec,
        "mode": video.plan.mode,
        "width": video.info.width,
        "height": video.info.height,
        "frames": frames,
        "decode_ms_per_frame": figures.pop("decode")["ms_per_frame"],
        "extract_ms_per_frame": extraction.pop("ms_per_frame"),
        **extraction,
    }
    if peers:
        report["peers"] = {**figures, **{name: {"failed": reason} for name, reason in failed.items()}}
    return report


def _timed(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def _figures(times: Sequence[float], decode: Sequence[float], frames: int) -> dict[str, float]:
    ratios = [one / other for one, other in zip(times, decode, strict=True)]
    return {
        "ms_per_frame": round(statistics.median(times) * 1e3 / max(frames, 1), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }
