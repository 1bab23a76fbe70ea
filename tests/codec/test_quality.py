"""How much of the change from slot to slot the motion explains, on footage: the marks of the project."""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from clips import clip, encoded

from cope_codec import CodecError
from cope_codec import open as open_video
from cope_codec.bench import counts_for_quality, residual_ratio

MARKS = {"native": 0.60, "transcode": 0.49}


def ratio(path: Path, mode: str) -> float | None:
    return residual_ratio(path.read_bytes(), mode)


def counted(videos: Path) -> list[Path]:
    found = []
    for path in sorted(path for path in videos.iterdir() if path.suffix in (".mp4", ".mkv", ".avi", ".webm", ".mpg")):
        try:
            if counts_for_quality(open_video(path)):
                found.append(path)
        except CodecError:
            continue
    return found


def test_the_marks_on_footage(videos: Path) -> None:
    files = counted(videos)
    assert len(files) >= 7
    jobs = [(path, mode) for mode in MARKS for path in files]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        found = list(processes.map(ratio, *zip(*jobs, strict=True)))
    for mode, mark in MARKS.items():
        ratios = [value for (_, of), value in zip(jobs, found, strict=True) if of == mode]
        assert all(value is not None and 0 < value < 1 for value in ratios), ratios
        assert statistics.geometric_mean(ratios) <= mark, (mode, ratios)


def test_which_files_count() -> None:
    assert counts_for_quality(open_video(clip(2)))
    assert not counts_for_quality(open_video(clip(1)))
    assert not counts_for_quality(open_video(encoded(2)))  # 96 lines
    assert not counts_for_quality(open_video(clip(2, codec="mpeg4", b_frames=0)))


def test_motion_explains_a_panning_camera_and_plain_differences_do_not() -> None:
    moving = residual_ratio(clip(4, pan=(32.0, 0.0)), "native", 64)
    assert moving is not None
    assert moving < 0.5


@pytest.mark.parametrize("mode", MARKS)
def test_a_file_without_change_has_no_ratio(mode: str) -> None:
    assert residual_ratio(clip(1), mode, 64) is None
