"""Drawn clips have the motion, the structure and the bytes that their manifest says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

import cope_codec
from cope_loadtest.assign import Assignment, own_clips
from cope_loadtest.corpus.clips import MANIFEST, Wanted, describe, encode, make_clips, read_folder
from cope_loadtest.corpus.motion import draw
from cope_loadtest.corpus.spec import MOTIONS, ClipSpec
from cope_loadtest.scenario import ScenarioError, read_scenario

SMALL = ClipSpec(width=160, height=96, fps=10, seconds=4, gop=10, b_frames=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_clips([Wanted(SMALL, seed) for seed in range(4)], folder)
    return folder


def test_the_manifest_says_what_is_in_the_clips(corpus: Path) -> None:
    entries = json.loads((corpus / MANIFEST).read_text())["clips"]
    assert sorted(entry["motion"] for entry in entries) == sorted(MOTIONS)
    for entry in entries:
        data = (corpus / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"] and len(data) == entry["bytes"]
        with av.open(corpus / entry["file"]) as container:
            kinds = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
        for name in "IPB":
            assert entry[f"{name.lower()}_frames"] == kinds.count(name)
        assert len(kinds) == 40 and kinds.count("I") >= 4 and entry["b_frames"] > 0
        assert (entry["width"], entry["height"], entry["codec"]) == (160, 96, "h264")
        assert entry["seconds"] == pytest.approx(4.0, abs=0.2)
        assert entry["vectors_per_frame"] > 10
        assert entry["residual_energy"] > 0


def test_clips_really_move(corpus: Path) -> None:
    for path in corpus.glob("*.mp4"):
        kind = path.name.split("-")[0]
        motion = np.concatenate([gop.motion.reshape(-1, 2) for gop in cope_codec.open(path)]).astype(float) / 4
        length = np.hypot(*motion.T)
        assert (length > 1).mean() > (0.02 if kind == "sprites" else 0.2), kind


def test_zooming_moves_away_from_the_middle() -> None:
    spec = replace(SMALL, seconds=2, motion=("zoom",), b_frames=0)
    pictures = list(draw(spec, "zoom", 5))
    assert len(pictures) == 20 and pictures[0].shape == (96, 160, 3) and pictures[0].dtype == np.uint8
    # A picture is the middle of the one a frame before, grown: 2 ** (1 / 40) for a doubling in four seconds at 10 fps.
    small = 2 ** (-1 / 40)
    rows, columns = np.mgrid[20:76:4, 30:130:4]
    from_rows = np.rint((rows - 48) * small + 48).astype(int)
    from_columns = np.rint((columns - 80) * small + 80).astype(int)
    grown = np.abs(pictures[1][rows, columns].astype(int) - pictures[0][from_rows, from_columns]).mean()
    shrunk_rows = np.rint((rows - 48) / small**3 + 48).astype(int)
    shrunk_columns = np.rint((columns - 80) / small**3 + 80).astype(int)
    other = np.abs(pictures[1][rows, columns].astype(int) - pictures[0][shrunk_rows, shrunk_columns]).mean()
    assert grown < 0.7 * other


@pytest.mark.parametrize("motion", MOTIONS)
def test_pictures_are_textured_and_repeat_with_the_seed(motion: str) -> None:
    spec = replace(SMALL, seconds=0.3)
    first, again, other = (list(draw(spec, motion, seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert first[0].std() > 15 and not np.array_equal(first[0], first[1])


def test_what_is_there_is_not_drawn_again(corpus: Path) -> None:
    wanted = [Wanted(SMALL, seed) for seed in range(4)]
    before = {path.name: path.stat().st_mtime_ns for path in corpus.glob("*.mp4")}
    ticks: list[int] = []
    again = make_clips(wanted, corpus, lambda: ticks.append(1))
    assert {path.name: path.stat().st_mtime_ns for path in corpus.glob("*.mp4")} == before
    assert len(ticks) == 4 and list(again) == wanted
    assert again[wanted[0]].path.read_bytes() == encode(wanted[0])


def test_a_clip_that_was_changed_is_drawn_again(tmp_path: Path) -> None:
    one = Wanted(replace(SMALL, seconds=1), 1)
    path = make_clips([one], tmp_path)[one].path
    good = path.read_bytes()
    path.write_bytes(good[:-10])
    make_clips([one], tmp_path)
    assert path.read_bytes() == good


@pytest.mark.parametrize(("codec", "b_frames", "vectors"), [("mpeg4", 1, True), ("h265", 0, False), ("vp9", 0, False)])
def test_other_codecs(codec: str, b_frames: int, vectors: bool, tmp_path: Path) -> None:
    one = Wanted(replace(SMALL, codec=codec, b_frames=b_frames, seconds=2), 1)
    facts = make_clips([one], tmp_path)[one].facts
    assert facts["codec"] == {"mpeg4": "mpeg4", "h265": "hevc", "vp9": "vp9"}[codec]
    assert facts["i_frames"] + facts["p_frames"] + facts["b_frames"] == 20
    assert (facts["b_frames"] > 0) == (b_frames > 0)
    assert (facts["vectors_per_frame"] > 0) == vectors


def test_the_users_own_folder(corpus: Path, tmp_path: Path) -> None:
    clips = read_folder(corpus)
    assert [clip.name for clip in clips] == sorted(path.name for path in corpus.glob("*.mp4"))
    assert clips[0].media_type == "video/mp4" and clips[0].facts == describe(clips[0].path)
    with pytest.raises(ValueError, match="has no videos"):
        read_folder(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"this is not a video")
    with pytest.raises(ValueError, match=r"corpus.folder: a.mp4: "):
        read_folder(tmp_path)


def test_too_few_clips_for_cold(corpus: Path) -> None:
    scenario = read_scenario({"cache": "cold", "load": {"requests": 9, "warmup": 0}, "requests": {"a": {}}}, "test")
    with pytest.raises(ScenarioError, match=r"9 different clips are needed, and .* has 4"):
        own_clips(len(Assignment(scenario, 0).wanted), read_folder(corpus), corpus)


def test_one_picture_leaves_no_residual(tmp_path: Path) -> None:
    one = Wanted(replace(SMALL, seconds=0.1), 1)
    facts = make_clips([one], tmp_path)[one].facts
    assert (facts["i_frames"], facts["vectors_per_frame"], facts["residual_energy"]) == (1, 0.0, None)
