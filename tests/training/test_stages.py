import json
from pathlib import Path

import pytest

from cope_codec import VideoOptions
from cope_model.presets import Geometry
from cope_training.primitives import Cache, CachedVideo
from cope_training.stages import open_data, without_long

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


def test_bad_records_and_videos_are_left_out_counted_and_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((data / "annotations.json").read_text())[:2]
    rows = [{**row, "video": str(data / row["video"])} for row in rows]
    turns = rows[0]["conversations"]
    rows += [{"id": "no video", "conversations": turns}, {"id": "lost", "video": "lost.mp4", "conversations": turns}]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(rows))
    clips, found = open_data([path], tmp_path / "cache", side=64, options=VideoOptions(), workers=1)
    assert [video is None for video in found.videos] == [False, True]
    assert [len(clip.questions) for clip in clips] == [2, 1]
    told = capsys.readouterr().err
    assert f"skipped {path}: record 2: no name of a video in video" in told
    assert "bad records skipped: 1; questions left: 3" in told
    assert "skipped lost.mp4: No such file or directory" in told
    assert "skipped 1 of 2 videos" in told
