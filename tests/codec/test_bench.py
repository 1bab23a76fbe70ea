from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from clips import clip

from cope_codec import bench, samples
from cope_codec.bench import Peer, PeerError, PeerProcess, peers
from cope_codec.index import read_index

TINY = {"width": 96, "height": 64}


def stand_in(folder: Path) -> Path:
    """A Python for which both peers are installed, as modules that do what a test can foresee."""
    (folder / "mvextractor").mkdir()
    (folder / "mvextractor" / "__init__.py").write_text("")
    (folder / "mvextractor" / "videocap.py").write_text(
        "import time\n"
        "class VideoCap:\n"
        "    left = 4\n"
        "    def open(self, path): return open(path, 'rb').read(4) is not None\n"
        "    def set_decode_frames(self, wanted): self.cost = 0.02 if wanted else 0.01\n"
        "    def read(self):\n"
        "        print('a peer may print')\n"
        "        time.sleep(self.cost)\n"
        "        self.left -= 1\n"
        "        return self.left >= 0, None, None, 'P'\n"
        "    def release(self): pass\n"
    )
    (folder / "lmms_video_utils.py").write_text("def fetch_codec_video(path, **how): raise RuntimeError('too short')\n")
    for name in ("motion_vector_extractor", "lmms_video_utils"):
        info = folder / f"{name}-9.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 9.0\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_peers_are_timed_in_turns_with_us(tmp_path: Path) -> None:
    ticks: list[None] = []
    with PeerProcess(stand_in(tmp_path)) as process:
        assert set(process.versions.values()) == {"9.0"}
        row = bench.time_file(
            clip(2, **TINY),
            side=32,
            repeats=2,
            peers=peers.available(process),
            tick=lambda: ticks.append(None),
        )
    assert len(ticks) == 3
    assert row["frames"] == 30
    full, vectors = row["peers"]["mv-extractor"], row["peers"]["mv-extractor, no pictures"]
    assert full["ms_per_frame"] == pytest.approx(5 * 20 / 30, rel=0.5)  # five reads of 20 ms, the last of them in vain
    assert vectors["ms_per_frame"] < full["ms_per_frame"]
    assert full["ratio"] == pytest.approx(full["ms_per_frame"] / row["decode_ms_per_frame"], rel=0.9)
    assert row["peers"]["lmms-video-utils"] == {"failed": "lmms-video-utils: RuntimeError: too short"}


def test_a_peer_gets_one_core(tmp_path: Path) -> None:
    python = stand_in(tmp_path)
    (tmp_path / "lmms_video_utils.py").write_text(
        "import os\ndef fetch_codec_video(path, **how): raise ValueError(len(os.sched_getaffinity(0)))\n"
    )
    with PeerProcess(python) as process, pytest.raises(PeerError, match=r"ValueError: 1$"):
        process.time("lmms-video-utils", tmp_path, 8)


def test_peers_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="cannot be started"):
        PeerProcess(tmp_path / "python")
    with pytest.raises(PeerError, match="ended with"):
        PeerProcess("/bin/false")
    with PeerProcess() as process:
        process.versions = dict.fromkeys(process.versions)
        with pytest.raises(PeerError, match="--peer-python"):
            peers.available(process)


def test_a_peer_that_would_hold_a_film_in_memory_is_spared() -> None:
    with PeerProcess() as process:
        peer = Peer("lmms-video-utils", process)
        assert peer.refuses(1280, 720, 300) is None
        assert peer.refuses(1280, 720, 1920) == "it would hold 5.3 GB of frames"
        assert Peer("mv-extractor", process).refuses(1280, 720, 1920) is None


def test_scaling_uses_one_core_and_then_all() -> None:
    row = bench.time_scaling(samples.repeated(96, 64, 16, bit_rate=100_000), side=32, repeats=1)
    assert row["workers"] == len(os.sched_getaffinity(0))
    assert row["gops"] == 2
    assert row["speed_up"] == pytest.approx(row["one_s"] / row["all_s"], rel=0.01)


def test_sampled_gops_of_a_long_file() -> None:
    with bench.long_file(80, **TINY) as path:
        index, container = read_index(path)
        container.close()
        assert (len(index.pts), int(index.keyframe.sum())) == (2400, 20)
        row = bench.time_sampled(path, gops=2, side=32, repeats=1)
        assert row["bytes"] == path.stat().st_size
    assert not path.exists()
    assert (row["seconds"], row["gops"]) == (80.0, 2)
    assert 2 * 200 <= row["frames"] <= 2 * 240  # eight slots, one a second, from a keyframe to the last of them
    assert row["ratio"] == pytest.approx((row["open_s"] + row["extract_s"]) / row["decode_s"], rel=0.02)


def test_conditions_say_what_machine_this_is() -> None:
    told = bench.conditions()
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert told["cpu"]
    assert told["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
