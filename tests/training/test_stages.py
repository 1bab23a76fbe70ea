from pathlib import Path

import pytest

from cope_model.presets import Geometry
from cope_training.primitives import Cache, CachedVideo
from cope_training.stages import without_long

GEOMETRY = Geometry(side=128, patch=8)  # 72 tokens per keyframe, 10 per P-frame


def video(name: str, gops: int) -> CachedVideo:
    layouts, times = ((0, 1, 1, 1, 1, 1, 1, 1),) * gops, ((0.0,) * 8,) * gops
    return CachedVideo(name, "h264", "native", Path("shard"), 0, layouts, times, 8.0 * gops)


def test_videos_that_the_context_cannot_hold_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = Cache((video("short", 1), None, video("long", 5)), (("bad", "no video"),))
    # At 4 keyframes a GOP has 4 * 72 + 4 * 10 = 328 tokens; 512 are kept for text.
    assert without_long(found, GEOMETRY, 4, 5 * 328 + 512).videos == found.videos
    left = without_long(found, GEOMETRY, 4, 5 * 328 + 511)
    assert left.videos == (found.videos[0], None, None)
    assert [name for name, _ in left.skipped] == ["bad", "long"]
    assert "skipped long: 1640 visual tokens" in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the 1 videos fits"):
        without_long(Cache((video("long", 5),), ()), GEOMETRY, 4, 1000)
