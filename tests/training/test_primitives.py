from pathlib import Path

import numpy as np
import pytest

import cope_codec
from cope_codec import VideoOptions
from cope_training import primitives, qa
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
