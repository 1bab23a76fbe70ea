"""The codec workers behind the real server: what a hostile video, a client that leaves and a crowd do to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import httpx
import psutil
import pytest
from clips import clip
from messages import text, user, video
from requirements import require
from serving import Server, metric, start, stop

from cope_server import pace

PART = "messages[0].content[0].video_url"
TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one worker, one place to wait, and little patience."""
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    folder = tmp_path_factory.mktemp("media")
    # Half a minute of work: transport streams can be joined.
    (folder / "endless.ts").write_bytes(clip(4, container="mpegts", width=640, height=480) * 60)
    words = ("--codec-workers", "1", "--codec-queue", "1", "--codec-timeout-s", str(TIMEOUT_S))
    words += ("--allowed-local-media-path", str(folder))
    running = start(folder, tmp_path_factory.mktemp("log") / "server.log", *words)
    try:
        yield running
    finally:
        stop(running)


def ask(server: Server, part: dict[str, Any], timeout_s: float = 60) -> httpx.Response:
    body = {"model": "cope-tiny", "messages": user(part, text("What moves?")), "max_completion_tokens": 2}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=timeout_s)


def endless(server: Server) -> dict[str, Any]:
    return video(f"file://{server.folder}/endless.ts", mode="transcode", gop_slots=64)


def until(what: Callable[[], bool], within_s: float = 30) -> float:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s, "it did not happen"
        time.sleep(0.02)
    return time.monotonic() - started


def test_a_second_request_extracts_nothing(server: Server) -> None:
    data = clip(12, seed=77)
    names = ("cope_codec_cache_misses_total", "cope_codec_cache_hits_total", 'cope_codec_tasks_total{outcome="ok"}')
    counts = []
    for _ in range(3):
        counts.append([metric(server, name) for name in names])
        assert ask(server, video(data, gop_slots=4)).status_code == 200
    counts.append([metric(server, name) for name in names])
    steps = [[b - a for a, b in zip(one, two, strict=True)] for one, two in pairwise(counts)]
    assert steps[0][:2] == [3, 0]
    assert steps[0][2] >= 2  # opened, and decoded by at least one worker
    assert steps[1:] == [[0, 3, 1]] * 2  # opened alone
    assert 0 < metric(server, "cope_codec_cache_bytes") <= metric(server, "cope_codec_cache_max_bytes")


def test_the_workers_are_children_that_wait_for_work(server: Server) -> None:
    workers = int(metric(server, "cope_codec_workers"))
    assert workers == len(psutil.Process(server.process.pid).cpu_affinity())
    assert metric(server, "cope_codec_busy_workers") == metric(server, "cope_codec_queue_depth") == 0


@pytest.mark.alone
def test_a_video_that_hangs_a_worker_is_a_422_and_the_server_goes_on(small: Server) -> None:
    restarts = metric(small, "cope_codec_worker_restarts_total")
    answer = ask(small, endless(small))
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("timeout", PART, "invalid_request_error")
    assert "1 s" in error["message"]
    until(lambda: metric(small, "cope_codec_worker_restarts_total") == restarts + 1)
    assert ask(small, video(clip(4))).status_code == 200
    assert metric(small, 'cope_codec_tasks_total{outcome="timeout"}') == 1


@pytest.mark.alone
def test_a_client_that_leaves_frees_its_worker(small: Server) -> None:
    until(lambda: metric(small, "cope_codec_workers") == 1)
    names = ('cope_codec_tasks_total{outcome="cancelled"}', 'cope_codec_tasks_total{outcome="timeout"}')
    before = [metric(small, name) for name in names]
    with pytest.raises(httpx.ReadTimeout):
        ask(small, endless(small), timeout_s=TIMEOUT_S / 2)
    until(lambda: metric(small, "cope_codec_busy_workers") == 0)
    assert [metric(small, name) - count for name, count in zip(names, before, strict=True)] == [1, 0]
    assert ask(small, video(clip(4))).status_code == 200


@pytest.mark.alone
def test_a_crowd_is_told_to_come_again(small: Server) -> None:
    until(lambda: metric(small, "cope_codec_workers") == 1)
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: ask(small, endless(small)), range(6)))
    assert {answer.status_code for answer in answers} == {422, 429}
    for answer in answers:
        error = answer.json()["error"]
        assert error["param"] == PART
        if answer.status_code == 429:
            assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
            # By the pace of the clips before and what waits: another number on another machine.
            assert pace.LEAST_S <= int(answer.headers["Retry-After"]) <= pace.MOST_S
    until(lambda: metric(small, "cope_codec_workers") == 1)
    assert ask(small, video(clip(4))).status_code == 200
