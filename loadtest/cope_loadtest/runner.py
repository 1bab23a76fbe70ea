"""Runs one load against a server: every request that is due gets a record with exactly one outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

import httpx

from cope_loadtest.arrivals import Load, due_times
from cope_loadtest.client import Body, Patience, send
from cope_loadtest.records import Phase, Record

# A user who was turned away waits so long: a server that is down would else be asked thousands of times a second.
_BREATH_S = 0.25


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be sent.

    Attributes:
        kind: name of the scenario's request.
        clip: name of its clip, None for text.
        body: what to send.
    """

    kind: str
    clip: str | None
    body: Body


# Gives the request of a position; warm-up requests have positions of their own.
Maker = Callable[[Phase, int], Prepared]


class LoadRun:
    """One load on one server.

    Args:
        client: of `client.make_client`.
        load: how requests arrive.
        make: the request of a phase and position; called just before it is due, so it must be quick.
        patience: when to give up on one.
        point: number that the records carry.
        stop: once set, nothing more is sent and what is in flight is cut off.
        first: number of the first measured request; the warm-up's count below it is its own.
        watch: called with every record that has ended.
        warm: awaited between the warm-up and the rest.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        load: Load,
        make: Maker,
        patience: Patience,
        *,
        point: int = 0,
        stop: asyncio.Event | None = None,
        first: int = 0,
        watch: Callable[[Record], None] = lambda record: None,
        warm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._client, self._load, self._make, self._patience = client, load, make, patience
        self._point, self._first, self._watch = point, first, watch
        self._warm = warm
        self._stop = stop or asyncio.Event()
        self._turns = asyncio.Semaphore(load.max_in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = first
        self._failure: BaseException | None = None
        self.records: list[Record] = []
        self.started = 0.0

    async def run(self) -> list[Record]:
        """Send everything that is due; returns the records, in the order in which they were due."""
        await self._warm_up()
        if self._warm is not None:
            await self._warm()
        self.started = time.perf_counter()
        try:
            await (self._closed() if self._load.arrival == "closed" else self._open())
            await self._wait_for_all()
        finally:
            await self._cut_off()
        return self.records

    async def _warm_up(self) -> None:
        for number in range(self._load.warmup):
            if self._stop.is_set():
                return
            record, body = self._record("warmup", number, time.perf_counter())
            self._start(self._send(record, body))
            await self._wait_for_all(bounded=False)  # a server's first request may take long

    async def _open(self) -> None:
        load = self._load
        for due in due_times(load):
            moment = self.started + due
            if await self._stopped(moment - time.perf_counter()):
                return
            record, body = self._record("ramp" if due < load.ramp_s else "measured", self._next(), moment)
            self._start(self._send_in_turn(record, body))
        # Nothing more is due, but the last ones belong to the load's whole duration.
        if load.duration_s is not None and load.requests is None:
            await self._stopped(self.started + load.duration_s - time.perf_counter())

    async def _closed(self) -> None:
        load = self._load
        users = [self._user(load.ramp_s * user / load.concurrency) for user in range(load.concurrency)]
        for user in users:
            self._start(user)
        if load.duration_s is None:
            await self._wait_for_all(bounded=False)
        else:
            await self._wait_for_all(until=self.started + load.duration_s)

    async def _user(self, joins_s: float) -> None:
        load = self._load
        if await self._stopped(self.started + joins_s - time.perf_counter()):
            return
        while not self._over():
            now = time.perf_counter()
            record, body = self._record("ramp" if now - self.started < load.ramp_s else "measured", self._next(), now)
            await self._send(record, body)
            if not record.ok:
                await self._stopped(_BREATH_S)

    def _over(self) -> bool:
        load = self._load
        if self._stop.is_set():
            return True
        if load.duration_s is not None and time.perf_counter() - self.started >= load.duration_s:
            return True
        return load.requests is not None and self._number - self._first >= load.requests

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _record(self, phase: Phase, number: int, moment: float) -> tuple[Record, Body]:
        prepared = self._make(phase, number)
        record = Record(self._point, number, phase, prepared.kind, prepared.clip, moment)
        self.records.append(record)
        return record, prepared.body

    async def _send_in_turn(self, record: Record, body: Body) -> None:
        async with self._turns:
            await self._send(record, body)

    async def _send(self, record: Record, body: Body) -> None:
        try:
            await send(self._client, body, record, self._patience)
        finally:
            self._watch(record)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()  # a mistake of this program: the run must not look complete
            self._stop.set()

    async def _stopped(self, seconds: float) -> bool:
        """Sleep, unless the run is stopped first; says whether it was."""
        if seconds > 0 and not self._stop.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._stop.wait()
            except TimeoutError:
                pass
        return self._stop.is_set()

    async def _wait_for_all(self, *, until: float | None = None, bounded: bool = True) -> None:
        """Until nothing is in flight, the run is stopped, or `drain_s` has passed since `until` (default: now)."""
        begin = time.perf_counter() if until is None else max(until, time.perf_counter())
        end = begin + self._load.drain_s if bounded else None
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            while self._tasks and not self._stop.is_set():
                left = None if end is None else end - time.perf_counter()
                if left is not None and left <= 0:
                    return
                await asyncio.wait([*self._tasks, stopping], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    async def _cut_off(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for record in self.records:
            if not record.outcome:  # it never had its turn, or its task ended before it began
                record.outcome, record.detail, record.last = "not_sent", "the run ended", time.perf_counter()
                self._watch(record)
        if self._failure is not None:
            raise self._failure
