from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import av
import pytest
from clips import broken_clips, clip, encoded

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


def cut_short(container: str, share: float) -> bytes:
    """The first part of a file that begins with an announcement of all its frames."""
    data = encoded(4, container=container)
    data = faststart(data) if container == "mp4" else data
    return data[: round(len(data) * share)]


def faststart(data: bytes) -> bytes:
    """An MP4 with its index in front; the muxer cannot move it there in memory."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        options = {"movflags": "faststart"}
        with av.open(io.BytesIO(data)) as source, av.open(file.name, "w", options=options) as output:
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
        return Path(file.name).read_bytes()


@pytest.mark.parametrize("container", ["mp4", "avi"])
def test_a_file_that_breaks_off_says_so(container: str) -> None:
    whole, part = cope_codec.open(cut_short(container, 1)), cope_codec.open(cut_short(container, 0.7))
    assert not whole.truncated
    assert part.truncated
    assert part.plan.seconds < whole.plan.seconds


def test_an_edit_list_does_not_truncate(videos: Path) -> None:
    assert not cope_codec.open(videos / "discard_first_keyframe.mp4").truncated


@pytest.mark.parametrize("mode", ["native", "transcode", "paper"])
def test_a_packet_that_the_decoder_refuses_is_damage(mode: str) -> None:
    """The frames around it come, and none is marked."""
    data = bytearray(clip(4, b_frames=0))
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = data.index(packets[20])  # the packet itself, between the slots at 15 and 30
    data[at : at + len(packets[20])] = bytes(len(packets[20]))
    (gop,) = cope_codec.open(bytes(data), mode=mode).gops(64)
    assert (gop.missing, gop.corrupt) == (0, True)
    (whole,) = cope_codec.open(clip(4, b_frames=0), mode=mode).gops(64)
    assert not whole.corrupt


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
