"""The end of a server: nothing new is begun, what runs may finish up to a limit, the rest is told and broken off."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cope_server.errors import error_body, refusal

logger = logging.getLogger("vllm.cope_server.draining")  # below vLLM's logger, so that its settings apply

WORDS = "the server is shutting down"
_METRICS = "/metrics"  # answered to the end: that is when they are looked at
_LAST_WORDS_S = 1.0  # for a request that is broken off to end by itself, and once more when it is cancelled
_ENGINE_S = 10.0  # for an engine without work to end


class Drain:
    """Which requests are being answered, and how they end with the server; for one event loop."""

    def __init__(self) -> None:
        self.begun = False
        self._running: set[Running] = set()
        self._also: list[Callable[[], Awaitable[None]]] = []

    def also_end(self, work: Callable[[], Awaitable[None]]) -> None:
        """Call this when the end begins: work that nobody waits for."""
        self._also.append(work)

    async def run(self, limit_s: float) -> None:
        """Refuse what comes from here on, wait for what runs, and break it off after the limit.

        Args:
            limit_s: seconds.
        """
        self.begun = True
        started = time.monotonic()
        others = [asyncio.ensure_future(work()) for work in self._also]
        logger.info("draining: %d requests may finish within %g s", len(self._running), limit_s)
        await self._ended(limit_s)
        if self._running:
            logger.warning("%d requests did not finish within %g s and are broken off", len(self._running), limit_s)
        for running in self._running:
            running.end()
        await self._ended(_LAST_WORDS_S)
        for running in self._running:
            running.task.cancel()
        await self._ended(_LAST_WORDS_S)
        if others:
            await asyncio.wait(others, timeout=_LAST_WORDS_S)
        logger.info("drained after %.1f s", time.monotonic() - started)

    async def _ended(self, within_s: float) -> None:
        """Wait until nothing runs any more, or so many seconds."""
        tasks = {running.task for running in self._running}
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)

    def add(self, running: Running) -> None:
        """A request begins."""
        self._running.add(running)

    def remove(self, running: Running) -> None:
        """A request has ended."""
        self._running.discard(running)


@dataclass(eq=False, slots=True)
class Running:
    """A request that is being answered.

    Attributes:
        task: in which.
        broken: done when it is to end.
        begun: its answer has.
        stream: its answer is a stream of events.
        complete: the last byte of its answer was sent.
    """

    task: asyncio.Task[Any]
    broken: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    begun: bool = False
    stream: bool = False
    complete: bool = False

    def end(self) -> None:
        """Break it off."""
        if not self.broken.done():
            self.broken.set_result(None)


class DrainMiddleware:
    """Keeps a `Drain` informed, and answers 503 once it has begun.

    A request that is broken off sees its client leave: vLLM's routes and ours then free the worker and the engine. The
    client gets an error in place of whatever the application says to that.

    Args:
        app: the application behind it.
        drain: the end of the server.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app, self.drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.drain.begun and not scope["path"].rstrip("/").endswith(_METRICS):
            await refusal("cancelled", WORDS, headers={"Connection": "close"})(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        running = Running(task)
        self.drain.add(running)
        try:
            await self._answer(running, scope, receive, send)
        finally:
            self.drain.remove(running)

    async def _answer(self, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
        body_read = False

        async def receive_or_end() -> Message:
            nonlocal body_read
            if running.broken.done():
                return {"type": "http.disconnect"}
            if not body_read:
                message = await receive()
                body_read = not message.get("more_body", False)
                return message
            return await _first_of(receive, running.broken)

        async def send_unless_broken(message: Message) -> None:
            if running.broken.done():
                return
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                running.begun = True
                running.stream = headers.get("content-type", "").startswith("text/event-stream")
                if self.drain.begun:
                    headers["connection"] = "close"
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                running.complete = True
            await send(message)

        try:
            await self.app(scope, receive_or_end, send_unless_broken)
        except asyncio.CancelledError:
            if not running.broken.done():
                raise
            running.task.uncancel()
        except Exception:
            if not running.broken.done():
                raise  # else what an application says to a client that has left
        if running.broken.done() and not running.complete:
            await _last_words(running, scope, receive, send)


async def _first_of(receive: Receive, broken: asyncio.Future[None]) -> Message:
    """The client's next message, or that it has left."""
    message = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((message, broken), return_when=asyncio.FIRST_COMPLETED)
        return message.result() if message.done() else {"type": "http.disconnect"}
    finally:
        message.cancel()


async def _last_words(running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    if not running.begun:
        await refusal("cancelled", WORDS, headers={"Connection": "close"})(scope, receive, send)
    elif running.stream:
        event = json.dumps(error_body(WORDS, None, "cancelled", "service_unavailable"))
        await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode()})


def drain_first(engine: Any, drain: Drain, loop: asyncio.AbstractEventLoop, api_servers: int) -> None:
    """Have the engine client wait for the requests of this process when vLLM ends it.

    At SIGTERM vLLM calls the engine client's `shutdown` in a thread, and its HTTP server listens on. The engine alone
    would finish what it has already, but nothing that is still being fetched or decoded for it.

    Args:
        engine: vLLM's client.
        drain: of the process.
        loop: in which requests are answered.
        api_servers: how many processes there are; of several, vLLM kills those that have not ended within the limit.
    """
    stop = engine.shutdown

    def shutdown(timeout: float | None = None) -> None:
        if not drain.begun and not _runs_here(loop):
            limit = timeout or 0.0
            if api_servers > 1:
                limit = max(limit - 5.0, limit / 2)
            asyncio.run_coroutine_threadsafe(drain.run(limit), loop).result()
            timeout = _ENGINE_S if timeout else timeout
            handler = getattr(engine, "output_handler", None)
            if handler is not None:  # else vLLM logs the engine's end as a failure of this task
                loop.call_soon_threadsafe(handler.cancel)
        stop(timeout=timeout)

    engine.shutdown = shutdown


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the loop's own thread, which cannot wait for it, or nobody's any more."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return not loop.is_running()
