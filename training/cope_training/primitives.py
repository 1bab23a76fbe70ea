"""Primitives of a data set's videos on disk, extracted once: memory-mapped shards of pictures and motion.

Every slot's picture is kept, also those of P slots: the residual follows from them by the codec worker's exact integer
warp (Eq. 1), needs no 16 bits on disk, and any slot can become a keyframe.
"""

# N slots of a shard, T slots of a GOP, S model side (px), C = S / 4 motion cells a side.

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import cope_codec
from cope_codec.options import VideoOptions
from cope_training import jobs
from cope_training.files import read_json, write_json

_FORMAT = 2  # raise when the files or what extraction yields change
_SHARD = 64  # videos


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
    for _ in jobs.run(_extract, missing, workers, "primitives", unit="videos", per_job=_SHARD):
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
    """Extract the videos of a shard into its folder, which appears when all is there."""
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=shard.folder.parent))
    try:
        index: list[dict[str, Any]] = []
        pictures: list[npt.NDArray[np.uint8]] = []
        motion: list[npt.NDArray[np.int16]] = []
        slots = 0
        for path in shard.paths:
            try:
                video = cope_codec.open(path, shard.options)
                gops = list(video.gops(shard.side))
            except (cope_codec.CodecError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                index.append({"skipped": reason})
                continue
            entry = {"codec": gops[0].codec, "mode": gops[0].mode, "first": slots, "seconds": video.length_s}
            entry["layouts"] = [gop.layout.tolist() for gop in gops]
            entry["timestamps_s"] = [gop.timestamps_s.tolist() for gop in gops]
            index.append(entry)
            for gop in gops:
                pictures.append(gop.frames())
                motion.append(_by_slot(gop))
                slots += len(gop.layout)
        cells = shard.side // cope_codec.CELL_PX
        empty = np.empty((0, shard.side, shard.side, 3), np.uint8), np.empty((0, cells, cells, 2), np.int16)
        np.save(building / "pictures.npy", np.concatenate([empty[0], *pictures]))
        np.save(building / "motion.npy", np.concatenate([empty[1], *motion]))
        write_json(building / "index.json", index)
        building.chmod(0o755)
        building.rename(shard.folder)
    except OSError:
        if not shard.folder.exists():  # otherwise another run was faster
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _by_slot(gop: cope_codec.GopPrimitives) -> npt.NDArray[np.int16]:
    """A GOP's motion with a row for every slot: int16 (T, C, C, 2)."""
    model = gop.model_motion()
    out = np.zeros((len(gop.layout), *model.shape[1:]), np.int16)
    out[gop.layout == cope_codec.P_SLOT] = model
    return out
