"""The real server with more work than it can do, with clients that leave, and at its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import psutil
import pytest
from clips import clip
from messages import text, user, video
from requirements import require
from serving import Server, metric, start, stop

pytestmark = pytest.mark.alone

ROUTE = "/v1/chat/completions"
WORKERS = 2
CROWD, FILES = 100, 20
FREED_S = 0.2  # a client's worker, and the engine
MOST_GROWTH_BYTES = 64_000_000
LEVELS = ("cope_requests", "cope_video_requests", "cope_waiting_video_seconds", "cope_waiting_video_pixels")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers, little room to wait, and caches that are soon full; its last test ends it."""
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    folder = tmp_path_factory.mktemp("media")
    for number in range(FILES):
        (folder / f"{number}.mp4").write_bytes(clip(4, seed=500 + number))
    # More work than any test waits for: transport streams can be joined.
    (folder / "endless.ts").write_bytes(clip(4, container="mpegts", width=640, height=480) * 60)
    words = ("--codec-workers", str(WORKERS), "--codec-queue", "16", "--codec-cache-mb", "8", "--limit-videos", "3")
    words += ("--limit-video-requests", "12", "--mm-processor-cache-gb", "0.01", "--max-model-len", "8192")
    words += ("--allowed-local-media-path", str(folder), "--shutdown-timeout", "60")
    running = start(folder, tmp_path_factory.mktemp("log") / "server.log", *words)
    try:
        yield running
    finally:
        stop(running)


def body(*parts: dict[str, Any], tokens: int = 4, **more: Any) -> dict[str, Any]:
    fixed = {"model": "cope-tiny", "temperature": 0, "max_completion_tokens": tokens, "ignore_eos": True}
    return {**fixed, "messages": user(*parts, text("What moves?")), **more}


def endless(server: Server) -> dict[str, Any]:
    return video(f"file://{server.folder}/endless.ts", mode="transcode", gop_slots=64)


def client_of(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=server.url, timeout=httpx.Timeout(120), limits=limits)


async def until(what: Callable[[], bool], within_s: float = 30) -> float:
    started = time.monotonic()
    while not await asyncio.to_thread(what):
        assert time.monotonic() - started < within_s, "it did not happen"
        await asyncio.sleep(0.01)
    return time.monotonic() - started


@contextlib.asynccontextmanager
async def begun(client: httpx.AsyncClient, count: int, content: dict[str, Any]) -> AsyncIterator[None]:
    """So many requests for as long as the block lasts; then their clients leave."""
    tasks = [asyncio.create_task(client.post(ROUTE, json=content)) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def level_bytes(server: Server) -> int:
    """Memory of the server and of all its processes."""
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))


def test_a_hundred_at_once_are_all_answered(crowded: Server) -> None:
    """With an answer or with 429, and afterwards nothing of them is left."""

    async def crowd() -> list[httpx.Response]:
        async with client_of(crowded) as client:

            async def one(number: int) -> httpx.Response:
                url = f"file://{crowded.folder}/{number % FILES}.mp4"
                return await client.post(ROUTE, json=body(video(url, start_s=number // FILES / 2)))

            return await asyncio.gather(*(one(number) for number in range(CROWD)))

    def idle() -> bool:
        names = (*LEVELS, "cope_held_bytes", "cope_codec_queue_depth", "cope_codec_busy_workers")
        return all(metric(crowded, name) == 0 for name in names)

    asyncio.run(crowd())  # what is made once, and what the caches keep, belongs to the level
    asyncio.run(until(idle))
    level = level_bytes(crowded)
    refused_before = metric(crowded, "cope_rejected_total")
    answers = asyncio.run(crowd())
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}, counts
    assert counts.total() == CROWD
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["usage"]["completion_tokens"] == 4
        else:
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
            assert answer.headers["retry-after"] == "1"
    assert metric(crowded, "cope_rejected_total") - refused_before == counts[429]
    asyncio.run(until(idle))
    deadline = time.monotonic() + 20
    while (grown := level_bytes(crowded) - level) > MOST_GROWTH_BYTES:
        assert time.monotonic() < deadline, f"{grown:,} bytes more than before"
        time.sleep(0.5)


def test_text_is_answered_while_the_workers_are_busy(crowded: Server) -> None:
    async def run() -> None:
        async with client_of(crowded) as client, begun(client, 60, body(endless(crowded))):
            await until(lambda: metric(crowded, "cope_codec_busy_workers") == WORKERS)
            assert (await client.post(ROUTE, json=body(endless(crowded)))).status_code == 429
            for _ in range(5):
                started = time.monotonic()
                assert (await client.post(ROUTE, json=body())).status_code == 200
                assert time.monotonic() - started < 10  # of half a minute that the videos take
            assert metric(crowded, "cope_codec_busy_workers") == WORKERS
            assert metric(crowded, "cope_waiting_video_seconds") > 0
        await until(lambda: metric(crowded, "cope_requests") == 0)

    asyncio.run(run())


def test_a_client_that_leaves_frees_its_worker_at_once(crowded: Server) -> None:
    async def once() -> float:
        async with client_of(crowded) as client:
            async with begun(client, 1, body(endless(crowded))):
                await until(lambda: metric(crowded, "cope_codec_busy_workers") > 0)
                await asyncio.sleep(0.3)  # it is decoding
                left = time.monotonic()
            await until(lambda: metric(crowded, "cope_codec_busy_workers") == 0)
            return time.monotonic() - left

    # The machine may be busy with something else once, not every time.
    assert min(asyncio.run(once()) for _ in range(4)) < FREED_S


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine_at_once(crowded: Server, stream: bool) -> None:
    async def once() -> float:
        async with client_of(crowded) as client:
            async with begun(client, 1, body(tokens=4000, stream=stream)):
                await until(lambda: metric(crowded, "vllm:num_requests_running") > 0)
                left = time.monotonic()
            await until(lambda: metric(crowded, "vllm:num_requests_running") == 0)
            return time.monotonic() - left

    assert min(asyncio.run(once()) for _ in range(4)) < FREED_S


def test_too_many_videos_are_refused_by_name(crowded: Server) -> None:
    parts = [video(f"file://{crowded.folder}/0.mp4")] * 4
    answer = httpx.post(f"{crowded.url}{ROUTE}", json=body(*parts), timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "too_many_videos")
    assert error["param"] == "messages[0].content[3].video_url"
    assert httpx.post(f"{crowded.url}{ROUTE}", json=body(*parts[:3]), timeout=60).status_code == 200


def test_sigterm_lets_what_runs_finish(crowded: Server) -> None:
    """A stream, and a video that has not reached the engine; whoever comes then is sent elsewhere."""
    children = psutil.Process(crowded.process.pid).children(recursive=True)
    (crowded.folder / "last.mp4").write_bytes(clip(20, seed=600, width=640, height=480))

    async def run() -> None:
        async with client_of(crowded) as client:
            content = body(tokens=200, stream=True)
            async with client.stream("POST", ROUTE, json=content) as answer:
                lines = answer.aiter_lines()
                while not (await anext(lines)).startswith("data: "):
                    pass
                last = video(f"file://{crowded.folder}/last.mp4", mode="transcode")
                asked = asyncio.create_task(client.post(ROUTE, json=body(last)))
                await until(lambda: metric(crowded, "cope_codec_busy_workers") > 0)
                crowded.process.send_signal(signal.SIGTERM)
                await until(lambda: httpx.get(f"{crowded.url}/health", timeout=5).status_code == 503)
                refused = await client.post(ROUTE, json=body())
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "cancelled")
                assert refused.headers["retry-after"] == "1"
                events = [line.removeprefix("data: ") async for line in lines if line]
            assert events[-1] == "[DONE]"
            reasons = [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]]
            assert reasons[-1] == "length" and len(reasons) > 100
            assert (await asked).status_code == 200

    asyncio.run(run())
    try:
        assert crowded.process.wait(60) == 0
    except subprocess.TimeoutExpired:
        pytest.fail("it did not end:\n" + crowded.log.read_text(errors="replace")[-3000:])
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
