"""What comes in and what has to wait: limits on all requests together and on those of each API key.

A request takes its share through a `Ticket` and gives all of it back when it ends, however it ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cope_model import admission
from cope_server import metrics
from cope_server.access import key_name, route_of
from cope_server.errors import refusal
from cope_server.limit_settings import LimitSettings
from cope_server.pace import Pace

_UPLOADS = "/v1/files"  # go to disk as they come, within limits of their own
_MIB = 1 << 20
_LEAST_RATE = 1024.0  # of a body, bytes per second


class Ledger:
    """How much of something is taken, by all together and by each API key; for one event loop.

    Args:
        limit: for all together.
        key_limit: for each key; 0 is none of its own.
        gauge: shows how much is taken.
        alone: a request may exceed the limits where no other one takes anything.
    """

    def __init__(self, limit: int, key_limit: int, gauge: Gauge, *, alone: bool = False) -> None:
        self.limit, self.key_limit, self.alone = limit, key_limit, alone
        self.total = 0
        self._gauge = gauge
        self._of_keys: Counter[str] = Counter()

    def take(self, key: str | None, amount: int, own: int = 0) -> str | None:
        """Take something, unless that exceeds a limit.

        Args:
            key: name of the API key; None where there are none.
            amount: how much.
            own: how much of it the same request has already.

        Returns:
            None, or whose limit it is, in words.
        """
        if self.total + amount > self.limit and not (self.alone and self.total == own):
            return "all requests together"
        of_key = self._of_keys[key] if key is not None else 0
        if key is not None and self.key_limit and of_key + amount > self.key_limit:
            if not (self.alone and of_key == own):
                return "this API key"
        self._add(key, amount)
        return None

    def exceeded_by(self, key: str | None, amount: int) -> bool:
        """Whether nobody may ever have so much."""
        limits = [self.limit, *([self.key_limit] if key is not None and self.key_limit else [])]
        return not self.alone and amount > min(limits)

    def give(self, key: str | None, amount: int) -> None:
        """Give back what was taken."""
        self._add(key, -amount)

    def _add(self, key: str | None, amount: int) -> None:
        self.total += amount
        self._gauge.set(self.total)
        if key is not None:
            self._of_keys[key] += amount
            if not self._of_keys[key]:
                del self._of_keys[key]


class Turns:
    """Who may be at the codec workers: first those whose key has the fewest there, among them in order of arrival, and
    none whose key has its share. So whoever sends many keeps only themselves waiting. For one event loop.

    Args:
        limit: at a time.
        key_limit: at a time for each key; 0 is none of its own.
    """

    def __init__(self, limit: int, key_limit: int) -> None:
        self.limit, self.key_limit = limit, key_limit
        self._running: Counter[str | None] = Counter()
        self._waiting: list[tuple[str | None, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, key: str | None) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the block lasts."""
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (key, called)
        self._waiting.append(entry)
        self._call()
        try:
            await called
            yield
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:
                self._running[key] -= 1
                self._call()

    def _call(self) -> None:
        while self._running.total() < self.limit:
            entry = min(filter(self._may_go, self._waiting), key=lambda one: self._running[one[0]], default=None)
            if entry is None:
                return
            key, called = entry
            self._waiting.remove(entry)
            self._running[key] += 1
            if not called.done():  # else its request has been cancelled, and gives the turn back at once
                called.set_result(None)

    def _may_go(self, entry: tuple[str | None, asyncio.Future[None]]) -> bool:
        key = entry[0]
        return key is None or not self.key_limit or self._running[key] < self.key_limit


class Gate:
    """All limits of one API-server process.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self.settings = settings
        self.requests = Ledger(settings.requests, settings.key_requests, metrics.REQUESTS)
        self.video_requests = Ledger(settings.video_requests, settings.key_video_requests, metrics.VIDEO_REQUESTS)
        self.seconds = Ledger(settings.video_seconds, settings.key_video_seconds, metrics.WAITING_SECONDS, alone=True)
        pixels, key_pixels = round(settings.video_gigapixels * 10**9), round(settings.key_video_gigapixels * 10**9)
        self.pixels = Ledger(pixels, key_pixels, metrics.WAITING_PIXELS, alone=True)
        self.held = Ledger(settings.held_mb * _MIB, settings.key_held_mb * _MIB, metrics.HELD_BYTES)
        self.turns = Turns(settings.extractions or 1, settings.key_extractions)
        self.pace = Pace()

    def workers(self, count: int) -> None:
        """So many codec workers are there: it decides how many videos are decoded at a time, unless a setting does."""
        self.turns.limit = self.settings.extractions or 2 * count

    def retry_after_s(self) -> int:
        """When a request that is refused now had better come again, seconds: when the videos before it are decoded."""
        return self.pace.retry_after_s(self.seconds.total, time.perf_counter())

    @contextmanager
    def ticket(self, key: str | None) -> Iterator[Ticket]:
        """Let a request, or a prefetch, ask for its share for as long as the block lasts."""
        ticket = Ticket(self, key)
        token = admission.current.set(ticket)
        try:
            yield ticket
        finally:
            admission.current.reset(token)
            ticket.close()


@dataclass(slots=True)
class Ticket:
    """The share of one request; the methods of `cope_model.admission.Admission` are for those who load its videos."""

    gate: Gate
    key: str | None
    videos: int = 0
    _taken: dict[Ledger, int] = field(default_factory=dict)
    _failed: Exception | None = None

    def take(self, ledger: Ledger, amount: int) -> str | None:
        """`Ledger.take` for this request."""
        own = self._taken.get(ledger, 0)
        refused = ledger.take(self.key, amount, own)
        if refused is None:
            self._taken[ledger] = own + amount
        return refused

    def too_much(self, ledger: Ledger, amount: int) -> bool:
        """Whether so much more would never be given to this request, however long it waits."""
        return ledger.exceeded_by(self.key, self._taken.get(ledger, 0) + amount)

    def give(self, ledger: Ledger, amount: int) -> None:
        """Give a part back; nothing happens to what `close` has given back already."""
        amount = min(amount, self._taken.get(ledger, 0))
        if amount:
            self._taken[ledger] -= amount
            ledger.give(self.key, amount)

    def close(self) -> None:
        """Give everything back."""
        for ledger, amount in self._taken.items():
            ledger.give(self.key, amount)
        self._taken.clear()

    def add_video(self, part: str) -> None:
        """See `Admission`."""
        from cope_model.media_errors import MediaError

        most = self.gate.settings.videos
        self.videos += 1
        if self.videos > most:
            # The others have been sent for at the same moment: they need not be decoded.
            self._failed = MediaError("too_many_videos", f"a request may have at most {most} videos", parameter=part)
            raise self._failed
        if self.videos == 1:
            self._take_or_refuse(self.gate.video_requests, 1, part, "requests with video are being answered")

    def hold_bytes(self, count: int, part: str) -> None:
        """See `Admission`."""
        if self.too_much(self.gate.held, count):
            from cope_model.media_errors import MediaFetchError

            message = "the videos of the request have more bytes than this server holds at a time"
            self._failed = MediaFetchError(message, parameter=part, code="media_too_large")
            raise self._failed
        self._take_or_refuse(self.gate.held, count, part, "bytes of video are being held")

    def release_bytes(self, count: int) -> None:
        """See `Admission`."""
        self.give(self.gate.held, count)

    @asynccontextmanager
    async def decoding(self, seconds: float, pixels: int, part: str, *, at_once: bool) -> AsyncIterator[None]:
        """See `Admission`."""
        if self._failed is not None:
            raise self._failed
        if at_once:
            yield
            return
        gate, whole = self.gate, math.ceil(seconds)
        self._take_or_refuse(gate.seconds, whole, part, "seconds of video are waiting")
        try:
            self._take_or_refuse(gate.pixels, pixels, part, "pixels of video are waiting")
            try:
                async with gate.turns.turn(self.key):
                    begun = time.perf_counter()
                    yield
                    gate.pace.note(begun, time.perf_counter(), seconds)
            finally:
                self.give(gate.pixels, pixels)
        finally:
            self.give(gate.seconds, whole)

    def _take_or_refuse(self, ledger: Ledger, amount: int, part: str, what: str) -> None:
        from cope_model.media_errors import MediaError

        whose = self.take(ledger, amount)
        if whose is not None:
            self._failed = MediaError("queue_full", f"too many {what} for {whose}; try again later", parameter=part)
            raise self._failed


class AdmissionMiddleware:
    """Opens a ticket for each POST request, or answers it with 413 or 429. It stands behind `KeyMiddleware`.

    Args:
        app: the application behind it.
        gate: the limits.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        with self.gate.ticket(key_name(scope)) as ticket:
            whose = ticket.take(self.gate.requests, 1)
            if whose is not None:
                words = f"too many requests for {whose}; try again later"
                answer = refusal("too_many_requests", words, retry_after_s=self.gate.retry_after_s())
                await answer(scope, receive, send)
            else:
                counted = route_of(scope) != _UPLOADS
                await _Body(self.app, ticket, counted=counted).answer(scope, receive, send)


class _Body:
    """A request whose body is counted while it is read, or before if its length is announced, and has to come.

    Args:
        app: reads the body.
        ticket: of the request.
        counted: its bytes are; else they go where they are counted otherwise.
    """

    def __init__(self, app: ASGIApp, ticket: Ticket, *, counted: bool) -> None:
        self._app, self._ticket, self._counted = app, ticket, counted
        self._idle_s, self._waited_s = ticket.gate.settings.idle_s, 0.0
        self._most = ticket.gate.settings.body_mb * _MIB
        self._taken = self._read = 0
        self._refusal: JSONResponse | None = None
        self._begun = False  # the app has begun to answer

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, unless, and for as long as, its body may be taken."""
        length = Headers(scope=scope).get("content-length", "")
        if self._counted and length.isascii() and length.isdigit():
            self._take(int(length))
        complete = False

        async def counted() -> Message:
            nonlocal complete
            if complete:  # what comes now is the client's leaving, for which there is time
                return await receive()
            try:
                message = await self._next(receive)
            except TimeoutError:
                words = "nothing of the request's body, or hardly anything, has come for a while"
                self._refusal = refusal("request_timeout", words, headers={"Connection": "close"})
                return {"type": "http.disconnect"}
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                self._read += len(message.get("body", b""))
                if self._counted and self._read > self._taken:
                    self._take(self._read - self._taken)
                if self._refusal is not None:
                    return {"type": "http.disconnect"}
            return message

        async def unless_refused(message: Message) -> None:
            # What the app says of a body that breaks off is not what the client is told.
            if self._refusal is None or self._begun:
                self._begun = True
                await send(message)

        if self._refusal is None:
            try:
                await self._app(scope, counted, unless_refused)
            except ClientDisconnect:
                if self._refusal is None:
                    raise
        if self._refusal is not None and not self._begun:
            await self._refusal(scope, receive, send)

    async def _next(self, receive: Receive) -> Message:
        """The body's next piece.

        Raises:
            TimeoutError: it does not come, or the body as a whole comes too slowly; the time in which the server was
                busy with what had come does not count.
        """
        left = self._idle_s + self._read / _LEAST_RATE - self._waited_s
        since = time.monotonic()
        async with asyncio.timeout(min(self._idle_s, left)):
            message = await receive()
        self._waited_s += time.monotonic() - since
        return message

    def _take(self, count: int) -> None:
        held = self._ticket.gate.held
        if self._taken + count > self._most or self._ticket.too_much(held, count):
            most = min(self._most, held.limit)
            message = f"the body of a request may have at most {most:,} bytes; upload videos to {_UPLOADS}"
            self._refusal = refusal("request_too_large", message)
            return
        whose = self._ticket.take(held, count)
        if whose is not None:
            words = f"too many bytes of requests for {whose}; try again later"
            self._refusal = refusal("too_many_requests", words, retry_after_s=self._ticket.gate.retry_after_s())
            return
        self._taken += count
