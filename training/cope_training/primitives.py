"""Primitives of a data set's videos on disk, extracted once: memory-mapped shards of pictures and motion.

Every slot's picture is kept, also those of P slots: the residual follows from them by the codec worker's exact integer
warp (Eq. 1), needs no 16 bits on disk, and any slot can become a keyframe.
"""

# N slots of a shard, T slots of a GOP, S model side (px), C = S / 4 motion cells a side.

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import cope_codec
from cope_codec.options import VideoOptions
from cope_training import jobs
from cope_training.arrays import GrowingArray
from cope_training.files import read_json, write_json

_FORMAT = 2  # raise when the files or what extraction yields change
_SHARD = 64  # videos
_AT_WORK = "at-work"  # file beside a growing shard while a video is being extracted
_CRASHED = "the process that extracts it crashes"


@dataclass(frozen=True, slots=True)
class Gop:
    """A GOP in the cache.

    Attributes:
        layout: 0 = I and 1 = P for each of T slots.
        pictures: uint8 (T, S, S, 3), RGB.
        motion: int16 (T, C, C, 2), source minus destination, sixteenths of a model pixel; zero at I slots.
        timestamps_s: true times of the T slots, seconds.
    """

    layout: tuple[int, ...]
    pictures: npt.NDArray[np.uint8]
    motion: npt.NDArray[np.int16]
    timestamps_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CachedVideo:
    """Where a video's GOPs are.

    Attributes:
        name: as given to `build`.
        codec: FFmpeg's name.
        mode: `native` or `transcode`, as it came out.
        shard: folder of the arrays.
        first: its first slot in them.
        layouts: of its GOPs.
        timestamps_s: true times of its slots, seconds, GOP by GOP.
        seconds: length of the whole video.
    """

    name: str
    codec: str
    mode: str
    shard: Path
    first: int
    layouts: tuple[tuple[int, ...], ...]
    timestamps_s: tuple[tuple[float, ...], ...]
    seconds: float

    def gops(self) -> list[Gop]:
        """Read the GOPs; the arrays are views of the file."""
        pictures = np.load(self.shard / "pictures.npy", mmap_mode="r")
        motion = np.load(self.shard / "motion.npy", mmap_mode="r")
        out, at = [], self.first
        for layout, times in zip(self.layouts, self.timestamps_s, strict=True):
            out.append(Gop(layout, pictures[at : at + len(layout)], motion[at : at + len(layout)], times))
            at += len(layout)
        return out


@dataclass(frozen=True, slots=True)
class Cache:
    """Primitives of a list of videos.

    Attributes:
        videos: by position in the list that was given to `build`; None where a video could not be used.
        skipped: (name, reason) of those.
    """

    videos: tuple[CachedVideo | None, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Shard:
    folder: Path
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    options: VideoOptions
    side: int
    building: Path = Path()  # where it grows, until it is whole
    crashed_at: int | None = None  # the video that a process has already ended at


class _UnusableError(Exception):
    """A video cannot be read; says why."""


def build(
    root: Path, paths: Sequence[Path], names: Sequence[str], *, options: VideoOptions, side: int, workers: int
) -> Cache:
    """Extract what the cache lacks, and open it.

    Args:
        root: folder of the cache; every combination of format, options, side and files has a folder of its own.
        paths, names: the videos, and what to call them in messages.
        options: how they are cut.
        side: S, side of the model's square input, pixels.
        workers: processes.

    Raises:
        ValueError: not one of the videos can be used.
    """
    settings = {"format": _FORMAT, "side": side, "options": options.to_mapping()}
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    home = root / f"primitives-{side}-{key}"
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "settings.json", settings, indent=2)
    shards = []
    for start in range(0, len(paths), _SHARD):
        part = tuple(paths[start : start + _SHARD])
        digest = hashlib.blake2b("\n".join(map(_identity, part)).encode(), digest_size=10).hexdigest()
        shards.append(_Shard(home / digest, part, tuple(names[start : start + _SHARD]), options, side))
    missing = [shard for shard in shards if not shard.folder.exists()]
    with tempfile.TemporaryDirectory(prefix=".building-", dir=home) as temporary:
        growing = [replace(shard, building=Path(temporary, str(n))) for n, shard in enumerate(missing)]
        for _ in jobs.run(
            _extract, growing, workers, "primitives", unit="videos", per_job=_SHARD, crashed=_without_what_crashes
        ):
            pass
    videos: list[CachedVideo | None] = []
    skipped: list[tuple[str, str]] = []
    for shard in shards:
        for name, entry in zip(shard.names, read_json(shard.folder / "index.json"), strict=True):
            if "skipped" in entry:
                skipped.append((name, entry["skipped"]))
                videos.append(None)
            else:
                videos.append(_cached(name, shard.folder, entry))
    if len(skipped) == len(videos):
        name, reason = skipped[0] if skipped else ("", "there are none")
        raise ValueError(f"none of the {len(videos)} videos can be used; the first, {name}: {reason}")
    return Cache(tuple(videos), tuple(skipped))


def _cached(name: str, folder: Path, entry: dict[str, Any]) -> CachedVideo:
    """A video from its entry in a shard's index."""
    layouts, times = (tuple(tuple(row) for row in entry[key]) for key in ("layouts", "timestamps_s"))
    return CachedVideo(name, entry["codec"], entry["mode"], folder, entry["first"], layouts, times, entry["seconds"])


def _identity(path: Path) -> str:
    """What a shard's name depends on: a file that is written anew gives another shard."""
    try:
        stat = path.stat()
    except OSError:
        return f"{path.name} missing"
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def _extract(shard: _Shard) -> None:
    """Extract the videos of a shard into its folder, which appears when all is there.

    Goes on after the videos that a process before this one has extracted.
    """
    shard.building.mkdir(exist_ok=True)
    entries = _entries(shard)
    slots = sum(len(layout) for entry in entries for layout in entry.get("layouts", ()))
    cells = shard.side // cope_codec.CELL_PX
    with (
        GrowingArray(shard.building / "pictures.npy", np.uint8, (shard.side, shard.side, 3), slots) as pictures,
        GrowingArray(shard.building / "motion.npy", np.int16, (cells, cells, 2), slots) as motion,
    ):
        for path in shard.paths[len(entries) :]:
            (shard.building / _AT_WORK).touch()
            entry = _extract_video(path, shard, pictures, motion)
            pictures.flush()
            motion.flush()
            _append(shard, entry)
            entries.append(entry)
            (shard.building / _AT_WORK).unlink()
    _journal(shard).unlink()
    write_json(shard.building / "index.json", entries)
    try:
        shard.building.rename(shard.folder)
    except OSError:
        if not shard.folder.exists():  # otherwise another run was faster
            raise


def _extract_video(path: Path, shard: _Shard, pictures: GrowingArray, motion: GrowingArray) -> dict[str, Any]:
    """Append a video's arrays, GOP by GOP, or nothing if it cannot be used; returns its entry in the index."""
    first = len(pictures)
    entry: dict[str, Any] = {"first": first, "layouts": [], "timestamps_s": []}
    try:
        with _told():
            video = cope_codec.open(path, shard.options)
            gops = video.gops(shard.side)
        entry["seconds"] = video.length_s
        while True:
            with _told():
                gop = next(gops, None)
            if gop is None:
                return entry
            pictures.append(gop.frames())
            motion.append(_by_slot(gop))
            entry |= {"codec": gop.codec, "mode": gop.mode}
            entry["layouts"].append(gop.layout.tolist())
            entry["timestamps_s"].append(gop.timestamps_s.tolist())
    except _UnusableError as error:
        pictures.cut(first)
        motion.cut(first)
        return {"skipped": str(error)}


@contextmanager
def _told() -> Iterator[None]:
    """Tell what makes a video unusable from a fault of our own files."""
    try:
        yield
    except (cope_codec.CodecError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _UnusableError(reason) from error


def _journal(shard: _Shard) -> Path:
    """Where a growing shard's entries are: a line each."""
    return shard.building / "index.jsonl"


def _entries(shard: _Shard) -> list[dict[str, Any]]:
    path = _journal(shard)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _append(shard: _Shard, entry: dict[str, Any]) -> None:
    with _journal(shard).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _without_what_crashes(shard: _Shard) -> _Shard:
    """What is left to do of a shard whose process has ended, as a fault of FFmpeg's ends it.

    The video is tried once more: where memory is short, the system ends processes that are not to blame.

    Raises:
        RuntimeError: no video was at work.
    """
    at_work = shard.building / _AT_WORK
    if not at_work.exists():
        raise RuntimeError("a process that extracts primitives has ended before it came to a video")
    at_work.unlink()
    number = len(_entries(shard))
    if shard.crashed_at != number:
        return replace(shard, crashed_at=number)
    _append(shard, {"skipped": _CRASHED})
    return replace(shard, crashed_at=None)


def _by_slot(gop: cope_codec.GopPrimitives) -> npt.NDArray[np.int16]:
    """A GOP's motion with a row for every slot: int16 (T, C, C, 2)."""
    model = gop.model_motion()
    out = np.zeros((len(gop.layout), *model.shape[1:]), np.int16)
    out[gop.layout == cope_codec.P_SLOT] = model
    return out
