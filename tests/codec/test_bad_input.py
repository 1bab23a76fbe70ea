from __future__ import annotations

import time
from pathlib import Path

import pytest
from clips import broken_clips, clip

import cope_codec
from cope_codec import CodecError

EXPECTED = {
    "zero bytes": "invalid_video",
    "text": "invalid_video",
    "random bytes": "invalid_video",
    "cut before its index": "invalid_video",
    "audio only": "no_video_stream",
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("as_file", [False, True])
def test_what_is_no_video_is_refused_with_a_code(name: str, as_file: bool, tmp_path: Path) -> None:
    data = broken_clips()[name]
    source: bytes | Path = data
    if as_file:
        source = tmp_path / "upload"
        source.write_bytes(data)
    with pytest.raises(CodecError) as caught:
        cope_codec.open(source)
    assert caught.value.code == EXPECTED[name]
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile {path}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{path}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["concat", "hls", "sdp"],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_formats_that_lead_elsewhere_are_refused_at_once(text: str, as_file: bool, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip(2))
    source: bytes | Path = text.format(path=secret).encode()
    if as_file:
        (tmp_path / "upload").write_bytes(source)
        source = tmp_path / "upload"
    started = time.perf_counter()
    with pytest.raises(CodecError) as caught:
        cope_codec.open(source)
    assert caught.value.code == "invalid_video"
    assert time.perf_counter() - started < 2


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cope_codec.open(tmp_path / "nothing.mp4")


def test_options_and_keywords_exclude_each_other() -> None:
    with pytest.raises(TypeError):
        cope_codec.open(b"x", cope_codec.VideoOptions(), fps=2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.ffconcat", "ffconcat version 1.0\nfile neighbour.ts\n"),
        ("upload", "ffconcat version 1.0\nfile neighbour.ts\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\nneighbour.ts\n#EXT-X-ENDLIST\n"),
        ("talk.sdp", "v=0\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
    ],
)
def test_playlists_do_not_open_what_they_name(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "neighbour.ts").write_bytes(clip(4, container="mpegts"))
    (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / name, text.encode()):
        with pytest.raises(CodecError) as caught:
            cope_codec.open(source)
        assert caught.value.code == "invalid_video"
