"""Every kind of file goes through the sandboxed pool as it goes through the process itself.

What FFmpeg, PyAV and numpy load when they first meet a kind of stream, a worker cannot load once its sandbox is closed:
the process itself, which can, does not show that.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from clips import encoded, with_subtitles

import cope_codec
from cope_codec import CodecError, VideoOptions
from cope_codec.pool import CodecPool, PooledVideo

SIDE = 64
OPTIONS = VideoOptions(end_s=4.0)
SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mpg"}


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with CodecPool(2) as made:
        made.wait_until_warm()
        yield made


def outcome(opened: cope_codec.Video | PooledVideo) -> list[tuple[str, dict[str, bytes]]]:
    return [(gop.key, {name: array.tobytes() for name, array in gop.arrays().items()}) for gop in opened.gops(SIDE)]


def compare(pool: CodecPool, name: str, data: bytes) -> bool:
    """Whether the file can be decoded; both must say the same."""
    try:
        here = outcome(cope_codec.open(data, OPTIONS))
    except CodecError as error:
        with pytest.raises(CodecError) as caught:
            outcome(pool.open(data, OPTIONS))
        assert (caught.value.code, str(caught.value)) == (error.code, str(error)), name
        return False
    assert here, name
    assert outcome(pool.open(data, OPTIONS)) == here, name
    return True


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_a_file_with_subtitles(pool: CodecPool, container: str) -> None:
    data = with_subtitles(container)
    with av.open(io.BytesIO(data)) as source:
        assert len(source.streams.subtitles) == 1
    assert compare(pool, container, data)


@pytest.mark.parametrize(
    "how",
    [
        {"streams": 2},
        {"cover": True},
        {"rotation": 90},
        {"codec": "libvpx", "container": "webm", "b_frames": 0},
        {"codec": "libx265", "options": (("x265-params", "log-level=none:pools=1"),)},
        {"codec": "mpeg2video", "container": "mpeg", "fps": 25},
        {"codec": "mpeg4", "container": "avi", "b_frames": 0},
        {"pix_fmt": "yuv444p"},
    ],
    ids=str,
)
def test_a_generated_file(pool: CodecPool, how: dict[str, object]) -> None:
    assert compare(pool, str(how), encoded(2, **how))  # type: ignore[arg-type]


def test_every_real_file(pool: CodecPool, videos: Path) -> None:
    files = sorted(path for path in videos.iterdir() if path.suffix in SUFFIXES)
    decoded = [compare(pool, path.name, path.read_bytes()) for path in files]
    assert len(decoded) >= 40
    assert sum(decoded) >= len(decoded) - 2  # one has sound alone
    assert pool.stats().restarts == 0
