import os
import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import cope_codec
from cope_codec import VideoOptions
from cope_training import jobs, primitives, qa
from cope_training.arrays import GrowingArray
from cope_training.views import View, show


def build(data: Path, root: Path, **options: object) -> primitives.Cache:
    clips = qa.read([data])[:6]
    return primitives.build(
        root,
        [clip.path for clip in clips],
        [clip.name for clip in clips],
        options=VideoOptions(**options),  # type: ignore[arg-type]
        side=128,
        workers=1,
    )


@pytest.fixture(scope="module")
def cache(data: Path, tmp_path_factory: pytest.TempPathFactory) -> primitives.Cache:
    return build(data, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("keyframes", [1, 2, 4])
def test_what_is_shown_is_what_the_codec_worker_extracts(data: Path, cache: primitives.Cache, keyframes: int) -> None:
    """Native clips with any number of keyframes, from a cache that was extracted with one."""
    compared = 0
    for clip, video in zip(qa.read([data]), cache.videos, strict=False):
        assert video is not None
        if video.mode != "native":
            continue
        opened = cope_codec.open(clip.path, keyframes_per_gop=keyframes)
        (real,) = opened.gops(128)
        (cached,) = video.gops()
        shown = show(cached, View(keyframes))
        assert shown.layout == tuple(real.layout.tolist())
        assert np.array_equal(shown.keyframes, real.keyframes)
        assert np.array_equal(shown.motion, real.model_motion())
        assert np.array_equal(shown.residual, real.residual)
        assert (video.seconds, shown.timestamps_s) == (opened.length_s, tuple(real.timestamps_s.tolist()))
        assert show(cached, View(keyframes, "none")).timestamps_s == tuple(real.timestamps_s[real.layout == 0].tolist())
        compared += 1
    assert compared >= 3


def test_an_extracted_cache_is_found_again_and_other_options_make_another(data: Path, tmp_path: Path) -> None:
    first = build(data, tmp_path)
    folder = next(video.shard for video in first.videos if video)
    written = (folder / "pictures.npy").stat().st_mtime_ns
    assert build(data, tmp_path) == first
    assert (folder / "pictures.npy").stat().st_mtime_ns == written
    other = build(data, tmp_path, fps=2)
    assert {video.shard.parent for video in other.videos if video} != {folder.parent}


def test_bad_videos_are_skipped_and_named_and_none_left_is_an_error(data: Path, tmp_path: Path) -> None:
    good = qa.read([data])[0].path
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    missing = tmp_path / "missing.mp4"
    options = VideoOptions()
    root = tmp_path / "cache"
    names = ["good", "bad", "missing"]
    found = primitives.build(root, [good, bad, missing], names, options=options, side=128, workers=1)
    assert [video is None for video in found.videos] == [False, True, True]
    assert [name for name, _ in found.skipped] == ["bad", "missing"]
    assert found.skipped[1][1] == "No such file or directory"
    with pytest.raises(ValueError, match="none of the 2 videos can be used; the first, bad"):
        primitives.build(root, [bad, missing], names[1:], options=options, side=128, workers=1)
    assert not list(root.rglob(".building-*"))


SIDE = 64


@dataclass
class DrawnGop:
    """As much of a GOP as extraction reads."""

    value: int
    codec: str = "h264"
    mode: str = "native"

    @property
    def layout(self) -> np.ndarray:
        return np.array([0, 1, 1, 1], np.uint8)

    @property
    def timestamps_s(self) -> np.ndarray:
        return np.arange(4.0) + self.value

    def frames(self) -> np.ndarray:
        return np.full((4, SIDE, SIDE, 3), self.value, np.uint8)

    def model_motion(self) -> np.ndarray:
        return np.full((3, SIDE // 4, SIDE // 4, 2), self.value, np.int16)


@dataclass
class DrawnVideo:
    """Three GOPs of its own number; what its name says happens before the last."""

    path: Path
    length_s: float = 12.0

    def gops(self, side: int) -> Iterator[DrawnGop]:
        number = int(self.path.stem.split("-")[-1])
        yield DrawnGop(number)
        yield DrawnGop(number)
        if self.path.name.startswith("broken"):
            raise cope_codec.CodecError("undecodable_video", "it breaks off")
        if self.path.name.startswith("killer"):
            os.kill(os.getpid(), signal.SIGKILL)
        once = self.path.with_suffix(".once")
        if self.path.name.startswith("unlucky") and once.exists():
            once.unlink()  # as where the system has chosen this process, short of memory
            os.kill(os.getpid(), signal.SIGKILL)
        yield DrawnGop(number)


@pytest.fixture
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cope_codec, "open", lambda path, options: DrawnVideo(path))
    monkeypatch.setattr(jobs, "_START", "fork")  # a spawned process would not know of the line above


def build_drawn(root: Path, names: list[str]) -> primitives.Cache:
    paths = [root / name for name in names]
    return primitives.build(root / "cache", paths, names, options=VideoOptions(), side=SIDE, workers=2)


def values(video: primitives.CachedVideo | None) -> list[tuple[int, int, int, int]]:
    """The GOPs' number of slots, and the values in pictures, in motion at I and at P slots."""
    assert video is not None
    out = []
    for gop in video.gops():
        (picture,), (first,), (rest,) = (np.unique(a) for a in (gop.pictures, gop.motion[:1], gop.motion[1:]))
        out.append((len(gop.pictures), int(picture), int(first), int(rest)))
    return out


@pytest.mark.usefixtures("_drawn")
def test_a_video_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    found = build_drawn(tmp_path, ["a-1", "broken-2", "a-3"])
    assert found.skipped == (("broken-2", "it breaks off"),)
    assert [values(video) for video in found.videos if video] == [[(4, n, 0, n)] * 3 for n in (1, 3)]
    last = found.videos[2]
    assert last is not None
    assert len(np.load(last.shard / "pictures.npy")) == 24


@pytest.mark.usefixtures("_drawn")
def test_a_video_that_ends_the_process_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primitives, "_SHARD", 4)
    names = ["killer-0", "a-1", "killer-2", "unlucky-3", "a-4", "a-5", "killer-6"]
    (tmp_path / "unlucky-3.once").touch()
    found = build_drawn(tmp_path, names)
    reason = "the process that extracts it crashes"
    assert found.skipped == tuple((name, reason) for name in names if name.startswith("killer"))
    assert [values(found.videos[n]) for n in (1, 3, 4, 5)] == [[(4, n, 0, n)] * 3 for n in (1, 3, 4, 5)]
    assert not list(tmp_path.rglob(".building-*"))
    # What is in the cache is not tried again.
    monkeypatch.setattr(cope_codec, "open", None)
    assert build_drawn(tmp_path, names) == found
    shards = {video.shard for video in found.videos if video}
    assert {path.name for shard in shards for path in shard.iterdir()} == {"index.json", "pictures.npy", "motion.npy"}


@pytest.mark.usefixtures("_drawn")
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        paths = tuple(Path(f"a-{n}") for n in range(count))
        building = tmp_path / f"building-{count}"
        shard = primitives._Shard(tmp_path / f"{count}", paths, (), VideoOptions(), SIDE, building)
        tracemalloc.start()
        primitives._extract(shard)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # what is made once
    pictures = 4 * SIDE * SIDE * 3
    assert peak(32) < peak(2) + 3 * pictures  # thirty more videos take less than the pictures of one
    assert np.load(tmp_path / "32" / "pictures.npy", mmap_mode="r").nbytes == 32 * 3 * pictures


def test_a_growing_array_is_the_file_that_numpy_writes(tmp_path: Path) -> None:
    rows = np.arange(1200 * 6, dtype=np.int16).reshape(1200, 2, 3)
    path = tmp_path / "rows.npy"
    with GrowingArray(path, np.int16, (2, 3)) as growing:
        growing.append(rows[:9])
        growing.append(rows[:40])
        growing.cut(9)
        growing.append(rows[9:50])
        growing.flush()
        with pytest.raises(ValueError, match="do not fit int16"):
            growing.append(rows[:1].astype(np.uint8))
    with path.open("ab") as file:
        file.write(b"of a process that has ended")
    with GrowingArray(path, np.int16, (2, 3), 20) as growing:
        growing.append(rows[20:])
        assert len(growing) == 1200
    np.save(tmp_path / "whole.npy", rows)
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert np.array_equal(np.load(path, mmap_mode="r"), rows)
