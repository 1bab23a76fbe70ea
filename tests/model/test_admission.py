"""Whoever loads a video asks for the share of its request, and says when it is done."""

from __future__ import annotations

import asyncio
import http.server
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from clips import clip
from messages import data_uri
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

import cope_codec
from cope_codec.cache import PrimitivesCache
from cope_codec.groups import decoded_packets
from cope_codec.pool import CodecPool
from cope_model import admission, extraction
from cope_model.addresses import AddressPolicy
from cope_model.connector import CoPEConnector
from cope_model.media_errors import MediaError, MediaFetchError
from cope_model.url_options import attach

PART = "messages[0].content[1].video_url"
DATA = clip(9)
PIXELS = decoded_packets(cope_codec.open(DATA).plan.gops) * 320 * 240


class Share:
    """Notes what is asked of it; refuses what `refused` names."""

    def __init__(self, refused: str = "") -> None:
        self.refused, self.asked, self.held, self.most = refused, [], 0, 0  # type: ignore[var-annotated]

    def note(self, what: str, part: str, *more: Any) -> None:
        assert part == PART
        self.asked.append((what, *more))
        if what == self.refused:
            raise MediaError("queue_full", "come again", parameter=part)

    def add_video(self, part: str) -> None:
        self.note("video", part)

    def hold_bytes(self, count: int, part: str) -> None:
        if self.refused == "bytes":
            self.note("bytes", part)
        self.held += count
        self.most = max(self.most, self.held)

    def release_bytes(self, count: int) -> None:
        self.held -= count

    @asynccontextmanager
    async def decoding(self, seconds: float, pixels: int, part: str, *, at_once: bool) -> AsyncIterator[None]:
        self.note("decoding", part, round(seconds), pixels, at_once)
        yield
        self.asked.append(("decoded",))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the clip; its first answer breaks off."""
    answers = 0

    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal answers
            answers += 1
            self.send_response(200)
            self.send_header("content-length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA[: len(DATA) // 2 if answers == 1 else len(DATA)])

        def log_message(self, *args: object) -> None:
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://public.test:{host.server_address[1]}/clip.mp4"
    host.shutdown()
    host.server_close()


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: look_up("127.0.0.1", *rest))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("cope_codec.cache.shared", PrimitivesCache())
    with CodecPool(1) as pool:
        extraction.install(pool, 64)
        yield
        extraction.uninstall()


def load(url: str, share: Share) -> Any:
    async def run() -> Any:
        admission.current.set(share)
        connector = CoPEConnector(policy=AddressPolicy.parse(["public.test"]))
        media_io = VideoMediaIO(ImageMediaIO(), video_backend="cope")
        return await connector.load_from_url_async(attach(url, {}, PART), media_io, fetch_timeout=60)

    return asyncio.run(run()).media[0]


def test_a_fetched_video_is_held_until_it_is_loaded(installed: None, address: str) -> None:
    share = Share()
    load(address, share)
    assert (share.most, share.held) == (len(DATA), 0)  # the first half is given back before it comes again
    assert share.asked == [("video",), ("decoding", 9, PIXELS, False), ("decoded",)]
    again = Share()
    load(data_uri(DATA), again)
    assert again.asked == [("video",), ("decoding", 9, PIXELS, True), ("decoded",)]  # the cache has all of it


@pytest.mark.parametrize("what", ["video", "bytes", "decoding"])
def test_a_refusal_comes_through_and_nothing_stays_held(installed: None, address: str, what: str) -> None:
    share = Share(what)
    with pytest.raises(MediaError) as caught:
        load(address, share)
    assert (caught.value.code, caught.value.parameter) == ("queue_full", PART)
    assert share.held == 0
    assert share.asked[-1][0] == what


def full_disk(buffering: int = -1) -> Any:
    return open("/dev/full", "r+b", buffering=buffering)


def no_folder(buffering: int = -1) -> Any:
    raise FileNotFoundError("no usable temporary directory")


@pytest.mark.parametrize("temporary", [full_disk, no_folder])
def test_a_full_disk_is_told_and_nothing_stays_held(
    installed: None, address: str, temporary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    share = Share()
    with pytest.raises(MediaFetchError) as caught:
        load(address, share)
    assert (caught.value.code, caught.value.parameter) == ("storage_full", PART)
    assert str(caught.value) == "the server has no room for what is fetched"
    assert (share.asked, share.held) == ([("video",)], 0)
