"""What one API key's requests leave in the caches, another key's do not find."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import clip
from model.gops import make_gop
from model.test_processor import IMAGE, VIDEO, make_processor, process
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache.base import MultiModalProcessorOnlyCache
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from cope_codec.pool import CodecPool
from cope_model import extraction, isolation
from cope_model.connector import CoPEConnector
from cope_model.processing import CoPEMultiModalProcessor

ALICE, BOB = (isolation.make_salt("secret", name) for name in ("alice", "bob"))


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> CoPEMultiModalProcessor:
    return make_processor(tiny_dir)


@pytest.fixture(autouse=True)
def separate() -> Iterator[None]:
    isolation.install(frozenset({ALICE, BOB}))
    yield
    isolation.install(frozenset())


def as_key(salt: str | None, uuid: str) -> str:
    """A uuid as the chat route hands it on for this key."""
    token = isolation.current.set(salt)
    try:
        return isolation.name_for(uuid)
    finally:
        isolation.current.reset(token)


def png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with CodecPool(1) as running:
        extraction.install(running, 128)
        yield running
        extraction.uninstall()


def load(salt: str | None, url: str, media_io: Any) -> Any:
    """A part as the server loads it for a request with this key."""

    async def run() -> Any:
        isolation.current.set(salt)
        task = asyncio.create_task(CoPEConnector().load_from_url_async(url, media_io))  # as vLLM does it
        return await task

    return asyncio.run(run())


def hashes(processor: CoPEMultiModalProcessor, kind: str, media: Any) -> list[str]:
    """The ids under which vLLM's processor and encoder caches, and its prefix cache, know a medium."""
    found = process(processor, [VIDEO if kind == "video" else IMAGE], {kind: [media]})["mm_hashes"][kind]
    assert all(isinstance(entry, str) for entry in found)
    return list(found)


def test_salts_need_the_secret_and_are_of_one_key() -> None:
    assert ALICE == isolation.make_salt("secret", "alice") != BOB
    assert isolation.make_salt("other", "alice") != ALICE
    assert len({isolation.combined(salt, own) for salt in (ALICE, BOB) for own in (None, "x", ALICE, BOB)}) == 8


@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_same_media_of_two_keys_are_two_in_vllms_caches(
    tiny: CoPEMultiModalProcessor, pool: CodecPool, kind: str
) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(clip(3)).decode() if kind == "video" else png()

    def ids(salt: str | None) -> list[str]:
        image_io = ImageMediaIO()
        media_io = image_io if kind == "image" else VideoMediaIO(image_io, video_backend="cope")
        return hashes(tiny, kind, load(salt, url, media_io))

    alice, again, bob, nobody = ids(ALICE), ids(ALICE), ids(BOB), ids(None)
    assert alice == again
    assert not set(alice) & set(bob) and not set(alice) & set(nobody)


def test_the_same_video_of_two_keys_is_extracted_twice(pool: CodecPool) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(clip(3, seed=41)).decode()
    flights = extraction.in_charge().flights  # type: ignore[union-attr]

    def misses(salt: str | None) -> int:
        before = flights.store.misses
        load(salt, url, VideoMediaIO(ImageMediaIO(), video_backend="cope"))
        return flights.store.misses - before

    assert [misses(salt) for salt in (ALICE, ALICE, BOB, None, BOB, None)] == [1, 0, 1, 1, 0, 0]


def test_a_name_is_a_keys_own(tiny: CoPEMultiModalProcessor) -> None:
    cache = MultiModalProcessorOnlyCache(tiny.info.ctx.model_config)
    theirs, ours = make_gop("IP", seed=1, key="theirs"), make_gop("IP", seed=2, key="ours")
    for salt, gop in ((ALICE, theirs), (BOB, ours)):
        process(tiny, [VIDEO], {"video": [(gop,)]}, mm_uuid_items={"video": [as_key(salt, "film")]}, cache=cache)
    for salt, gop in ((ALICE, theirs), (BOB, ours)):
        named = process(tiny, [VIDEO], {"video": [None]}, mm_uuid_items={"video": [as_key(salt, "film")]}, cache=cache)
        assert named["mm_kwargs"]["video"][0].get_data()["gop_keyframes"].tolist() == gop.keyframes.tolist()


def test_nobody_recalls_what_another_key_has_named(tiny: CoPEMultiModalProcessor) -> None:
    sent = {"video": [as_key(ALICE, "holiday")]}
    process(tiny, [VIDEO], {"video": [(make_gop("IP", key="h"),)]}, mm_uuid_items=sent)
    guesses = ["holiday", as_key(BOB, "holiday"), "x/holiday", f"{ALICE[:-1]}x/holiday"]
    for guess in guesses:
        with pytest.raises(VLLMValidationError, match=r"no video with uuid '[^']*holiday' has been sent") as caught:
            process(tiny, [VIDEO], {"video": [None]}, mm_uuid_items={"video": [guess]})
        assert ALICE not in str(caught.value) and BOB not in str(caught.value)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_name_that_came_past_the_chat_route_does_not_replace_the_content(
    tiny: CoPEMultiModalProcessor, kind: str
) -> None:
    """`/invocations` hands a uuid on as the client wrote it."""
    one: Any = (make_gop("I", seed=1, key="one"),) if kind == "video" else Image.new("RGB", (8, 8), "red")
    two: Any = (make_gop("I", seed=2, key="two"),) if kind == "video" else Image.new("RGB", (8, 8), "blue")
    prompt = [VIDEO if kind == "video" else IMAGE]
    ids = [
        process(tiny, prompt, {kind: [media]}, mm_uuid_items={kind: ["poison"]})["mm_hashes"][kind]
        for media in (one, two)
    ]
    assert ids[0] != ids[1]
    assert "poison" not in str(ids)
    assert ids == [process(tiny, prompt, {kind: [media]})["mm_hashes"][kind] for media in (one, two)]


def test_without_keys_a_name_counts_as_before(tiny: CoPEMultiModalProcessor) -> None:
    isolation.install(frozenset())
    assert isolation.name_for("film") == "film"
    gops = (make_gop("IP", key="a"),)
    sent = process(tiny, [VIDEO], {"video": [gops]}, mm_uuid_items={"video": ["film"]})
    assert sent["mm_hashes"]["video"] == ["film/a"]


def test_what_vllm_keeps_of_urls_is_kept_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_CACHE", str(tmp_path))

    def path(salt: str | None) -> Path:
        token = isolation.current.set(salt)
        try:
            return CoPEConnector()._media_cache_path("https://host/a.mp4?x=1")
        finally:
            isolation.current.reset(token)

    assert path(ALICE) == path(ALICE)
    assert len({path(ALICE), path(BOB), path(None)}) == 3
