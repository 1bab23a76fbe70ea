"""With an executor in charge, the connector fetches and the executor's workers do the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import broken_clips, clip
from messages import data_uri
from vllm.connections import HTTPConnection
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

import cope_codec
from cope_codec.cache import PrimitivesCache
from cope_codec.executor import PooledVideo
from cope_codec.flights import Flights
from cope_codec.limits import Limits
from cope_codec.pool import CodecPool
from cope_model import account, extraction, loader
from cope_model.connector import CoPEConnector
from cope_model.media_errors import MediaError
from cope_model.presets import PRESETS
from cope_model.url_options import attach

PART = "messages[0].content[1].video_url"
SIDE = 128


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with CodecPool(1, limits=Limits(wall_s=20)) as made:
        made.wait_until_warm()
        yield made


@pytest.fixture
def installed(pool: CodecPool, monkeypatch: pytest.MonkeyPatch) -> Iterator[extraction.Extraction]:
    monkeypatch.setattr("cope_codec.cache.shared", PrimitivesCache())
    try:
        yield extraction.install(pool, SIDE)
    finally:
        extraction.uninstall()


def connector(**kwargs: Any) -> CoPEConnector:
    return CoPEConnector(connection=HTTPConnection(reuse_client=False), **kwargs)


async def load(url: str, chosen: CoPEConnector | None = None) -> loader.VideoGops:
    media_io = VideoMediaIO(ImageMediaIO(), video_backend="cope")
    media = await (chosen or connector()).load_from_url_async(url, media_io, fetch_timeout=2)
    video: loader.VideoGops = media.media[0]
    return video


def test_nobody_is_in_charge_unless_a_server_says_so() -> None:
    assert extraction.in_charge() is None
    video = asyncio.run(load(data_uri(clip(4))))
    assert not isinstance(video.video, PooledVideo)


def test_the_workers_give_what_the_process_itself_gives(installed: extraction.Extraction, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip(12))
    local = connector(allowed_local_media_path=str(tmp_path))
    options = {"gop_slots": 4, "keyframes_per_gop": 2}
    want = list(cope_codec.open(clip(12), **options).gops(SIDE))
    for url in (data_uri(clip(12)), (tmp_path / "clip.mp4").as_uri()):
        video = asyncio.run(load(attach(url, options, PART), local))
        assert isinstance(video.video, PooledVideo)
        assert video.gops is not None and video.extract_s > 0
        assert [gop.key for gop in video.gops] == [gop.key for gop in want]
        assert all(a.residual.tobytes() == b.residual.tobytes() for a, b in zip(video.gops, want, strict=True))
    assert (installed.flights.store.hits, installed.flights.store.misses) == (3, 3)


def test_a_video_that_the_cache_has_is_told_from_one_that_is_decoded(installed: extraction.Extraction) -> None:
    loaded = [asyncio.run(load(attach(data_uri(clip(12)), {"gop_slots": slots}, PART))) for slots in (4, 4, 8)]
    assert [video.cached for video in loaded] == [False, True, False]


def test_an_upload_whose_primitives_are_cached_is_not_opened_again(
    installed: extraction.Extraction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(clip(12))
    opened: list[Any] = []
    open_soon = installed.executor.open_soon
    monkeypatch.setattr(
        installed.executor, "open_soon", lambda source, options: opened.append(options) or open_soon(source, options)
    )

    async def ask(options: dict[str, Any], context_tokens: int = 4096) -> account.LoadedVideo:
        request = account.RequestVideos(PRESETS["tiny"].geometry, context_tokens, lambda _: path)
        account.current.set(request)
        video = await load(attach("file-abc", options, PART))
        tokens = request.geometry.tokens(video.plan.i_frames, video.plan.p_frames)
        assert request._planned.total() == tokens  # once, whether it is opened or not
        assert video.gops is not None
        assert [gop.key for gop in video.gops] == [gop.key for gop in cope_codec.open(path, **options).gops(SIDE)]
        (loaded,) = request.loaded
        return loaded

    first, again = asyncio.run(ask({})), asyncio.run(ask({"fps": 1}))  # which is the default
    assert ([first.cached, again.cached], len(opened)) == ([False, True], 1)
    assert (again.plan, again.truncated) == (first.plan, False)
    asyncio.run(ask({"fps": 2}))
    assert len(opened) == 2
    with pytest.raises(MediaError) as caught:
        asyncio.run(ask({}, context_tokens=72))
    assert (caught.value.code, len(opened)) == ("context_exceeded", 2)
    monkeypatch.setattr(installed.flights, "store", PrimitivesCache())  # what is remembered outlives the primitives
    assert not asyncio.run(ask({})).cached
    assert len(opened) == 3


def test_plans_are_remembered_up_to_a_number_of_slots() -> None:
    known = loader.Known.of(cope_codec.open(clip(12)))  # 12 slots
    options = known.plan.options
    videos = extraction.KnownVideos(most_slots=25)
    for name in ("a", "b", "a"):
        videos.put((name, options), known)
    assert videos.get(("b", options)) is known
    videos.put(("c", options), known)
    assert [videos.get((name, options)) is not None for name in "abc"] == [False, True, True]


def test_errors_name_the_part(installed: extraction.Extraction) -> None:
    for name, data in broken_clips().items():
        with pytest.raises(MediaError) as caught:
            asyncio.run(load(attach(data_uri(data), {}, PART)))
        assert caught.value.parameter == PART, name
        assert caught.value.code in ("empty_media", "invalid_video", "no_video_stream"), name
    with pytest.raises(MediaError) as caught:
        asyncio.run(
            load(attach(data_uri(clip(4, codec="libvpx", container="webm", b_frames=0)), {"mode": "native"}, PART))
        )
    assert (caught.value.code, caught.value.parameter) == ("invalid_option", f"{PART}.mode")


def test_what_exceeds_the_context_is_refused_before_it_is_decoded(
    installed: extraction.Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flights, "extract", lambda *_: pytest.fail("decoded"))

    async def request() -> None:
        account.current.set(account.RequestVideos(PRESETS["tiny"].geometry, context_tokens=72))
        await load(attach(data_uri(clip(3)), {}, PART))

    with pytest.raises(MediaError) as caught:
        asyncio.run(request())
    assert (caught.value.code, caught.value.parameter) == ("context_exceeded", PART)


def test_a_full_queue_is_told_from_a_bad_video(
    installed: extraction.Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed.executor, "max_queue", 0)
    with pytest.raises(MediaError) as caught:
        asyncio.run(load(attach(data_uri(clip(4)), {}, PART)))
    assert (caught.value.code, caught.value.parameter) == ("queue_full", PART)


@pytest.mark.alone
def test_a_request_that_goes_away_frees_the_worker(installed: extraction.Extraction) -> None:
    url = attach(data_uri(clip(24, width=640, height=480)), {"fps": 15, "max_gops": 100, "mode": "transcode"}, PART)

    async def leave() -> float:
        task = asyncio.create_task(load(url))
        while not installed.executor.stats().busy:  # noqa: ASYNC110 - the pool has no event for it
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)  # well into the decoding
        assert not task.done()
        task.cancel()
        started = time.monotonic()
        await asyncio.gather(task, return_exceptions=True)
        while installed.executor.stats().busy:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return time.monotonic() - started

    assert asyncio.run(leave()) < 1.5  # 200 ms on an idle machine
