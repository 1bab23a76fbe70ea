"""Does a peer's job on a file, in the peer's own Python and on one core; needs nothing but that Python and the peer.

Reads one JSON line per job from standard input, {"peer", "path", "seconds"}, and answers with one JSON line, {"s"} or
{"error"}. The first line that it writes says which peers it has, {"peers": {name: version or null}}.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = {
    "mv-extractor": "motion-vector-extractor",
    "mv-extractor, no pictures": "motion-vector-extractor",
    "lmms-video-utils": "lmms-video-utils",
}
GROUP_FRAMES = 8  # of lmms-video-utils, as many as a GOP has slots


def mv_extractor(path: str, pictures: bool) -> None:
    """Every frame's vectors as an array, and its picture (BGR, full size) unless they are not wanted."""
    from mvextractor.videocap import VideoCap  # type: ignore[import-not-found]

    capture = VideoCap()
    if not capture.open(path):
        raise OSError("mv-extractor cannot open the file")
    capture.set_decode_frames(pictures)
    while capture.read()[0]:
        pass
    capture.release()


def lmms(path: str, seconds: float) -> None:
    """One frame a second, scored by what warping with motion vectors leaves, packed into canvases: groups of 8."""
    from lmms_video_utils import fetch_codec_video  # type: ignore[import-not-found]

    groups = max(1, round(seconds) // GROUP_FRAMES)
    fetch_codec_video(
        path,
        target_fps=1.0,
        group_size=GROUP_FRAMES,
        images_per_group=4,
        target_canvas=4 * groups,
        score_mode="mvwarp",
        backend="pyav",
        device="cpu",
    )


def do(peer: str, path: str, seconds: float) -> float:
    """Run one job; returns how long it took, seconds."""
    started = time.perf_counter()
    if peer == "lmms-video-utils":
        lmms(path, seconds)
    else:
        mv_extractor(path, peer == "mv-extractor")
    return time.perf_counter() - started


def present() -> dict[str, str | None]:
    """The peers that this Python has, with their versions."""
    found: dict[str, str | None] = {}
    for name, distribution in DISTRIBUTIONS.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Answer jobs until the input ends."""
    # FFmpeg inside a peer takes all cores that it sees; one is what is compared.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints must not mix with the answers
    warnings.simplefilter("ignore")
    answers.write(json.dumps({"peers": present()}) + "\n")
    answers.flush()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer: dict[str, object] = {"s": do(job["peer"], job["path"], job["seconds"])}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
