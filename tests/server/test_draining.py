"""How requests end with the server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from cope_server import draining
from cope_server.draining import Drain, DrainMiddleware, drain_first

REFUSED = {"message": "the server is shutting down", "type": "service_unavailable", "param": None, "code": "cancelled"}


class Rig:
    """An app whose answers wait for `go`."""

    def __init__(self) -> None:
        self.drain, self.go, self.inside = Drain(), asyncio.Event(), asyncio.Semaphore(0)
        self.left: list[str] = []
        app = FastAPI()
        app.add_middleware(DrainMiddleware, drain=self.drain)
        app.get("/metrics")(self.metrics)
        app.post("/whole")(self.whole)
        app.post("/deaf")(self.deaf)
        app.post("/stream")(self.stream)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")

    async def metrics(self) -> str:
        return "fine"

    async def whole(self, request: Request) -> str:
        """As vLLM's routes: ends when the client leaves."""
        self.inside.release()
        going, leaving = asyncio.create_task(self.go.wait()), asyncio.create_task(self.leaving(request))
        await asyncio.wait((going, leaving), return_when=asyncio.FIRST_COMPLETED)
        going.cancel()
        leaving.cancel()
        if not self.go.is_set():
            self.left.append("whole")
        return "done"

    async def leaving(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def deaf(self) -> str:
        self.inside.release()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.left.append("deaf")
            raise
        return "done"

    async def stream(self) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            yield "data: one\n\n"
            self.inside.release()
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.left.append("stream")
                raise
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def begin(self, *paths: str) -> list[asyncio.Task[httpx.Response]]:
        tasks = [asyncio.create_task(self.client.post(path)) for path in paths]
        for _ in tasks:
            await self.inside.acquire()
        return tasks


def test_what_runs_may_finish_and_nothing_new_begins() -> None:
    async def run() -> None:
        rig = Rig()
        tasks = await rig.begin("/whole", "/stream", "/deaf")
        ended = asyncio.create_task(rig.drain.run(30))
        await asyncio.sleep(0.01)
        refused = await rig.client.post("/whole")
        assert (refused.status_code, refused.json()["error"]) == (503, REFUSED)
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
        assert (await rig.client.get("/metrics")).status_code == 200
        assert not ended.done()
        rig.go.set()
        whole, stream, deaf = await asyncio.gather(*tasks)
        assert (whole.json(), deaf.json(), stream.text) == ("done", "done", "data: one\n\ndata: [DONE]\n\n")
        assert whole.headers["connection"] == "close"
        await asyncio.wait_for(ended, 1)
        assert rig.left == []

    asyncio.run(run())


def test_what_does_not_finish_is_told_and_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "_LAST_WORDS_S", 0.2)

    async def run() -> None:
        rig = Rig()
        tasks = await rig.begin("/whole", "/stream", "/deaf")
        started = time.monotonic()
        await asyncio.wait_for(rig.drain.run(0.1), 5)
        assert 0.1 <= time.monotonic() - started < 2
        whole, stream, deaf = await asyncio.gather(*tasks)
        for answer in (whole, deaf):
            assert (answer.status_code, answer.json()["error"]) == (503, REFUSED)
        first, last = stream.text.split("\n\n")[:2]
        assert first == "data: one"
        assert json.loads(last.removeprefix("data: "))["error"] == REFUSED
        assert sorted(rig.left) == ["deaf", "stream", "whole"]

    asyncio.run(run())


def test_without_requests_it_is_over_at_once() -> None:
    async def run() -> None:
        drain, ended = Drain(), asyncio.Event()

        async def also() -> None:
            ended.set()

        drain.also_end(also)
        await asyncio.wait_for(drain.run(60), 1)
        assert ended.is_set()

    asyncio.run(run())


class Engine:
    def __init__(self) -> None:
        self.ended: list[float | None] = []

    def shutdown(self, timeout: float | None = None) -> None:
        self.ended.append(timeout)


@pytest.mark.parametrize(("timeout", "then"), [(20, draining._ENGINE_S), (0, 0)])
def test_the_engine_ends_after_the_requests(timeout: float, then: float) -> None:
    async def run() -> None:
        rig, engine = Rig(), Engine()
        drain_first(engine, rig.drain, asyncio.get_running_loop(), 1)
        tasks = await rig.begin("/whole")
        stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown, timeout=timeout))
        await asyncio.sleep(0.05)
        assert engine.ended == ([] if timeout else [0])
        rig.go.set()
        await asyncio.gather(*tasks, stopping)
        assert engine.ended == [then]
        engine.shutdown(timeout=3)  # again, at the end of the process: nothing to wait for
        assert engine.ended == [then, 3]

    asyncio.run(run())


def test_several_processes_end_before_vllm_kills_them(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    async def noted(self: Drain, limit_s: float) -> None:
        limits.append(limit_s)

    monkeypatch.setattr(Drain, "run", noted)

    async def run() -> None:
        for timeout in (20, 4):
            engine: Any = Engine()
            drain_first(engine, Drain(), asyncio.get_running_loop(), 2)
            await asyncio.to_thread(engine.shutdown, timeout=timeout)

    asyncio.run(run())
    assert limits == [15, 2]


def test_a_loop_that_has_ended_is_not_waited_for() -> None:
    engine: Any = Engine()

    async def run() -> None:
        drain_first(engine, Drain(), asyncio.get_running_loop(), 1)

    asyncio.run(run())
    thread = threading.Thread(target=engine.shutdown, daemon=True)
    thread.start()
    thread.join(5)
    assert engine.ended == [None]
