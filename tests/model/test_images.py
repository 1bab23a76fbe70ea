"""Still images from strangers: small in memory whatever they announce, and never the server's error."""

from __future__ import annotations

import asyncio
import http.server
import io
import random
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from messages import data_uri
from PIL import Image
from vllm.multimodal.media.image import ImageMediaIO

from cope_model import account, admission, extraction, images
from cope_model.addresses import AddressPolicy
from cope_model.connector import CoPEConnector
from cope_model.media_errors import MediaError, MediaFetchError
from cope_model.presets import PRESETS
from cope_model.url_options import attach

PART = "messages[0].content[0].image_url"
GEOMETRY = PRESETS["tiny"].geometry
MIB = 1 << 20


def picture(width: int, height: int, kind: str = "png") -> bytes:
    """A picture with something in it, as a file."""
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, kind)
    return buffer.getvalue()


def announced(width: int, height: int, bits: int = 1) -> bytes:
    """A black PNG, a thousand times smaller than its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compressobj(9)
    row = bytes(1 + (width * bits + 7) // 8)
    body = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


async def load(url: str, connector: CoPEConnector | None = None, part: str = PART) -> Any:
    return await (connector or CoPEConnector()).load_from_url_async(attach(url, {}, part), ImageMediaIO())


def refused(data: bytes) -> tuple[str, str | None]:
    with pytest.raises(MediaError) as caught:
        asyncio.run(load(data_uri(data, "image/png")))
    return caught.value.code, caught.value.parameter


@pytest.fixture
def in_charge() -> Iterator[None]:
    """A server's state; no worker is needed for images."""
    extraction.install(None, GEOMETRY.side)  # type: ignore[arg-type]
    yield
    extraction.uninstall()


def test_pixels_beyond_all_measure_are_the_clients_fault() -> None:
    assert refused(announced(1 << 15, 1 << 15)[:64]) == ("invalid_media", PART)
    assert refused(announced(1 << 20, 4)[:40]) == ("invalid_media", PART)


@pytest.mark.filterwarnings("ignore")  # Pillow's own about what is damaged
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp", "avif", "dds", "qoi", "ico", "tga"])
def test_damage_of_whatever_kind_is_the_clients_fault(kind: str) -> None:
    rng = random.Random(kind)
    whole = picture(40, 30, kind)
    outcomes = set()

    async def attempt(data: bytes) -> None:
        try:
            await load(data_uri(data, "image/png"))
        except MediaError as error:
            outcomes.add(error.code)

    async def run() -> None:
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
            await attempt(bytes(data[: rng.randrange(1, len(data))] if rng.random() < 0.3 else data))

    asyncio.run(run())
    assert outcomes == {"invalid_media"}


def test_an_image_is_kept_as_small_as_the_model_wants_it(in_charge: None) -> None:
    data = picture(640, 300)
    media = asyncio.run(load(data_uri(data, "image/png")))
    side = GEOMETRY.side
    assert media.media.size == (side, side)
    assert media.original_bytes == data
    with Image.open(io.BytesIO(data)) as image:
        expected = images.to_square(image, side)
    assert np.array_equal(images.to_square(media.media, side), expected)


def test_large_images_are_decoded_one_after_the_other(in_charge: None, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, lock, most = ImageMediaIO.load_bytes, threading.Lock(), 0
    running = {"large": 0, "small": 0}
    together = threading.Barrier(2, timeout=30)

    def watched(self: Any, data: bytes) -> Any:
        nonlocal most
        size = "large" if len(data) == len(large) else "small"
        with lock:
            running[size] += 1
            most = max(most, running["large"])
        if size == "small":
            together.wait()  # these need not wait for each other
        try:
            return decode(self, data)
        finally:
            with lock:
                running[size] -= 1

    large, small = announced(4200, 4200), picture(8, 8)
    monkeypatch.setattr(ImageMediaIO, "load_bytes", watched)

    async def run() -> None:
        await asyncio.gather(*(load(data_uri(data, "image/png")) for data in [large] * 3 + [small] * 2))

    asyncio.run(run())
    assert most == 1


def test_images_that_do_not_fit_into_the_context_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    decode = ImageMediaIO.load_bytes
    monkeypatch.setattr(ImageMediaIO, "load_bytes", lambda self, data: asked.append(data) or decode(self, data))

    async def run() -> None:
        account.current.set(account.RequestVideos(GEOMETRY, 2 * GEOMETRY.i_tokens + 1))
        for _ in range(2):
            await load(data_uri(picture(8, 8), "image/png"))
        with pytest.raises(MediaError, match="send fewer images") as caught:
            await load(data_uri(picture(8, 8), "image/png"))
        assert (caught.value.code, caught.value.parameter) == ("context_exceeded", PART)

    asyncio.run(run())
    assert len(asked) == 2


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "1")
    with (tmp_path / "recording.mp4").open("wb") as file:
        file.truncate(1 << 40)
    connector = CoPEConnector(allowed_local_media_path=str(tmp_path))
    with pytest.raises(MediaFetchError) as caught:
        asyncio.run(load((tmp_path / "recording.mp4").as_uri(), connector))
    assert (caught.value.code, caught.value.parameter) == ("media_too_large", PART)


class Share:
    """What one request may hold."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def hold_bytes(self, count: int, part: str) -> None:
        assert part == PART
        if self.held + count > self.most:
            raise MediaError("queue_full", "come again", parameter=part)
        self.held += count


def test_fetched_images_count_among_what_is_held() -> None:
    class Padded(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    data = picture(8, 8) + bytes(MIB)
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Padded)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{host.server_address[1]}/a.png"
    connector = CoPEConnector(policy=AddressPolicy.parse(["127.0.0.1"]))
    share: Any = Share(2 * MIB)

    async def run() -> None:
        admission.current.set(share)
        await load(url, connector)
        assert share.held == len(data)  # until its request ends
        with pytest.raises(MediaError) as caught:
            await load(url, connector)
        assert (caught.value.code, caught.value.parameter) == ("queue_full", PART)

    try:
        asyncio.run(run())
    finally:
        host.shutdown()
        host.server_close()
