"""Clips as files: drawn and encoded, or the user's own, each with what is in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cope_loadtest.corpus.spec import CODECS, ClipSpec

MANIFEST = "manifest.json"
_SUFFIXES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
    ".ts": "video/mp2t",
    ".mpg": "video/mpeg",
}
# Options of encoders: quick ones, and no words on the terminal.
_PRIVATE = {
    "h265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "vp9": {"deadline": "realtime", "cpu-used": "8"},
}
_SIDE = 96  # pixels: the model side at which residuals are measured


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip on disk.

    Attributes:
        path: the file.
        media_type: as in a data URI.
        facts: its entry in the manifest.
    """

    path: Path
    media_type: str
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Its file's name."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class Wanted:
    """A clip to be drawn: the same gives the same bytes."""

    spec: ClipSpec
    seed: int

    @property
    def motion(self) -> str:
        """Kinds take turns."""
        return self.spec.motion[self.seed % len(self.spec.motion)]

    @property
    def name(self) -> str:
        """A file name that tells clips of different specs apart."""
        digest = hashlib.sha256(json.dumps(asdict(self.spec), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.motion}-{digest}-{self.seed}.{CODECS[self.spec.codec][1]}"


def make_clips(
    wanted: Sequence[Wanted], folder: Path, tick: Callable[[], None] = lambda: None, workers: int | None = None
) -> dict[Wanted, Clip]:
    """Draw and encode clips into a folder, and write its manifest; files that are there already are kept.

    Args:
        wanted: which.
        folder: it exists.
        tick: called after each clip, from other threads.
        workers: threads (default: one per core; drawing and encoding leave Python's lock alone).

    Raises:
        ValueError: the encoder is not in this build of FFmpeg.
        OSError: a file cannot be written.
    """
    old = _read_manifest(folder)

    def make(one: Wanted) -> Clip:
        path = folder / one.name
        facts = old.get(one.name)
        if facts is None or not path.is_file():
            data = encode(one)
            path.write_bytes(data)
            facts = {"motion": one.motion, "seed": one.seed, **describe(path)}
        tick()
        return Clip(path, CODECS[one.spec.codec][2], facts)

    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        futures = [pool.submit(make, one) for one in wanted]
        try:
            made = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # one that cannot be made, or Ctrl-C
            raise
    write_manifest(folder, made)
    return dict(zip(wanted, made, strict=True))


def encode(one: Wanted) -> bytes:
    """A clip's bytes."""
    import av

    from cope_codec import samples
    from cope_loadtest.corpus.motion import draw

    encoder, container, _, _ = CODECS[one.spec.codec]
    if encoder not in av.codecs_available:
        raise ValueError(f"corpus.codec: this build of FFmpeg has no {encoder}")
    return samples.encode(
        draw(one.spec, one.motion, one.seed),
        codec=encoder,
        container=container,
        fps=one.spec.fps,
        gop=one.spec.gop,
        b_frames=one.spec.b_frames,
        options=_PRIVATE.get(one.spec.codec),
    )


def read_folder(folder: Path, tick: Callable[[], None] = lambda: None) -> list[Clip]:
    """The user's own clips, by name.

    Raises:
        ValueError: there are none, or one of them is no video.
        OSError: the folder cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"corpus.folder: {folder} has no videos ({', '.join(_SUFFIXES)})")
    clips = []
    for path in paths:
        try:
            facts = describe(path)
        except ValueError as error:
            raise ValueError(f"corpus.folder: {path.name}: {error}") from None
        clips.append(Clip(path, _SUFFIXES[path.suffix.lower()], facts))
        tick()
    return clips


def describe(path: Path) -> dict[str, Any]:
    """What is in a clip: one entry of the manifest.

    Returns:
        file, bytes, sha256, codec, width, height, seconds; i_frames, p_frames, b_frames as coded; vectors_per_frame,
        the mean over frames that are not I, and 0 where the codec exports none; residual_energy, the mean square of
        what motion leaves between pictures a second apart (grey levels squared, pictures of 96 x 96), None where there
        is but one.

    Raises:
        CodecError: it is no video that can be read.
    """
    import numpy as np

    import cope_codec

    kinds = {"I": 0, "P": 0, "B": 0}
    vectors = 0
    for frame in cope_codec.iter_vectors(path):
        kind = frame.kind if frame.kind in kinds else "P"
        kinds[kind] += 1
        vectors += len(frame.vectors)
    video = cope_codec.open(path)
    squares, count = 0.0, 0
    for gop in video.gops(_SIDE):
        squares += float(np.square(gop.residual, dtype=np.float64).sum())
        count += gop.residual.size
    info, between = video.info, kinds["P"] + kinds["B"]
    data = path.read_bytes()
    return {
        "file": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "seconds": round(video.plan.seconds, 3),
        "i_frames": kinds["I"],
        "p_frames": kinds["P"],
        "b_frames": kinds["B"],
        "vectors_per_frame": round(vectors / between, 1) if between else 0.0,
        "residual_energy": round(squares / count, 2) if count else None,
    }


def write_manifest(folder: Path, clips: Iterable[Clip]) -> None:
    """Write the manifest of a folder's clips; what it said of others stays."""
    entries = {**_read_manifest(folder), **{clip.name: clip.facts for clip in clips}}
    text = json.dumps({"clips": [entries[name] for name in sorted(entries)]}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries whose files are still what they say; a manifest that cannot be read counts as none."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["clips"]
        return {
            entry["file"]: entry
            for entry in entries
            if (folder / entry["file"]).is_file()
            and hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
