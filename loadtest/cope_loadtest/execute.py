"""Runs a scenario against a server: points in turns, rounds, sweeps, and the client's own share."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx

from cope_loadtest import server_metrics
from cope_loadtest.assign import Assignment
from cope_loadtest.bodies import text_body, video_body
from cope_loadtest.client import make_client
from cope_loadtest.corpus.clips import Clip
from cope_loadtest.helpers import helper
from cope_loadtest.knee import Knee, search, why_not_sustained
from cope_loadtest.records import Phase, Record
from cope_loadtest.runner import LoadRun, Prepared
from cope_loadtest.scenario import Point, Scenario, at
from cope_loadtest.selfcheck import SelfCheck, chunks_per_s
from cope_loadtest.summary import Measured, summarise_point
from cope_loadtest.transports import Delivery, TransportError


class Watcher(Protocol):
    """Is told how a run goes on."""

    def begin(self, label: str, expected: int | None) -> None:
        """A load begins, with so many requests if that is known."""

    def ended(self, record: Record) -> None:
        """A request has ended."""

    def note(self, text: str) -> None:
        """Something that people should know."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test.

    Attributes:
        base_url: its address, without `/v1`.
        model: name of the model.
        api_key: sent as a bearer token.
        reported: what it says of itself, for the report.
    """

    base_url: str
    model: str
    api_key: str | None = None
    reported: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """What a run has measured.

    Attributes:
        points: in the order of the scenario; those of a sweep come one after another.
        knees: of each swept point: its label and where it stopped to be sustained.
        uploads_s: seconds of each upload.
        chunks_per_s: chunks per second of processor time that the client reads; None if that was not measured.
        interrupted: somebody stopped the run.
        trouble: why the run could not go on, or None.
    """

    points: list[Measured] = field(default_factory=list)
    knees: list[tuple[str, Knee]] = field(default_factory=list)
    uploads_s: dict[str, float] = field(default_factory=dict)
    chunks_per_s: float | None = None
    interrupted: bool = False
    trouble: str | None = None


class Execution:
    """One run.

    Args:
        scenario: what to do.
        target: the server.
        assignment: which clips go where.
        clips: the corpus, in the assignment's order.
        folder: of the clips.
        seed: of the run.
        watcher: is told how it goes on.
        check: measure the client itself, too.
        host: address of this machine at which the server finds clips with transport `url`.
    """

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        assignment: Assignment,
        clips: list[Clip],
        folder: Path,
        seed: int,
        watcher: Watcher,
        *,
        check: bool = True,
        host: str = "127.0.0.1",
    ) -> None:
        self._scenario, self._target, self._assignment = scenario, target, assignment
        self._clips, self._folder, self._seed, self._watcher = clips, folder, seed, watcher
        self._check, self._host = check, host
        self._stop = asyncio.Event()
        self._warmups = [0] * len(scenario.points)
        self.result = Result()

    def stop(self) -> None:
        """End the run as soon as possible; what was measured stays."""
        self.result.interrupted = True
        self._stop.set()

    async def run(self) -> Result:
        """Measure everything.

        SIGINT and SIGTERM end the run early, and its result is what there is by then. So does a server that no longer
        takes clips.
        """
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            with suppress(ValueError, RuntimeError):  # outside the main thread nobody is interrupted
                loop.add_signal_handler(number, self.stop)
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(make_client(self._target.base_url, self._target.api_key))
                delivery = await stack.enter_async_context(Delivery(client, self._folder, self._host))
                checker = None
                if self._check:
                    self._watcher.note("measuring the client itself")
                    self.result.chunks_per_s = await chunks_per_s()
                    checker = SelfCheck(stack.enter_context(helper("null_server")))
                try:
                    await self._points(client, delivery, checker)
                except TransportError as error:
                    self.result.trouble = str(error)
                self.result.uploads_s = delivery.uploads_s
        finally:
            for number, handler in before.items():
                with suppress(ValueError, RuntimeError):
                    if loop.remove_signal_handler(number):
                        signal.signal(number, handler)
        return self.result

    async def _points(self, client: httpx.AsyncClient, delivery: Delivery, checker: SelfCheck | None) -> None:
        scenario = self._scenario
        if scenario.sweep is not None:
            for index in range(len(scenario.points)):
                await self._sweep(client, delivery, checker, index)
            return
        self.result.points = [Measured(point) for point in scenario.points]
        for turn in range(scenario.rounds):
            for index, measured in enumerate(self.result.points):
                await self._measure(client, delivery, checker, index, measured, turn)

    async def _sweep(
        self, client: httpx.AsyncClient, delivery: Delivery, checker: SelfCheck | None, index: int
    ) -> None:
        scenario, base = self._scenario, self._scenario.points[index]
        sweep = scenario.sweep
        assert sweep is not None
        steps = 0

        async def measure(value: float) -> dict[str, Any]:
            nonlocal steps
            measured = Measured(at(base, sweep, value))
            self.result.points.append(measured)
            for turn in range(scenario.rounds):
                await self._measure(client, delivery, checker, index, measured, turn, step=steps)
            steps += 1
            return summarise_point(measured, scenario.slo, scenario.expected)

        def why_not(summary: dict[str, Any], first: dict[str, Any]) -> str | None:
            if self._stop.is_set():
                return "the run was interrupted"
            return why_not_sustained(summary, first, sweep, base.load, scenario.slo)

        if not self._stop.is_set():
            knee = await search(sweep, measure, why_not)
            self.result.knees.append((base.label, knee))

    async def _measure(
        self,
        client: httpx.AsyncClient,
        delivery: Delivery,
        checker: SelfCheck | None,
        index: int,
        measured: Measured,
        turn: int,
        step: int = 0,
    ) -> None:
        """One round of one point."""
        point = measured.point
        load = point.load.part(turn, self._scenario.rounds)
        if load is None or self._stop.is_set():
            return
        first = sum(record.phase != "warmup" for record in measured.records)
        load = replace(load, warmup=self._assignment.warm_up(index))
        warmup_run = self._warmups[index]
        self._warmups[index] += 1
        make = await self._maker(delivery, index, point, load.requests, first, step, warmup_run, load.warmup)
        number = self.result.points.index(measured)
        points, rounds = len(self._scenario.points), self._scenario.rounds
        where = f"{turn * points + index + 1}/{rounds * points}  " if points * rounds > 1 else ""
        self._watcher.begin(where + point.label, load.requests)
        before: dict[str, float] = {}

        async def note_counters() -> None:
            before.update(await server_metrics.read_counters(client))

        run = LoadRun(
            client,
            load,
            make,
            self._scenario.patience,
            point=number,
            stop=self._stop,
            first=first,
            watch=self._watcher.ended,
            warm=note_counters,
        )
        try:
            await run.run()
        finally:
            measured.add(run.records)
        after = await server_metrics.read_counters(client)
        for name, grown in server_metrics.growth(before, after).items():
            measured.counters[name] = measured.counters.get(name, 0.0) + grown
        if checker is not None and measured.overhead is None and not self._stop.is_set():
            answered = sum(record.ok for record in measured.counted)
            pace = answered / measured.seconds if measured.seconds else 0.0
            overhead = await checker.overhead(load, make("measured", first).body, pace)
            ttfts = sorted(r.ttft_s for r in measured.counted if r.ok and r.ttft_s is not None)
            measured.overhead = overhead.beside(ttfts[len(ttfts) // 2] if ttfts else None)

    async def _maker(
        self,
        delivery: Delivery,
        index: int,
        point: Point,
        requests: int | None,
        first: int,
        step: int,
        warmup_run: int,
        warmup: int,
    ) -> Callable[[Phase, int], Prepared]:
        """Bring the clips of a round to where the server finds them, and give the function that makes its requests."""
        assignment, share = self._assignment, self._assignment.share(index)
        addresses: dict[int, tuple[dict[str, Any], bytes | None]] = {}

        def position(phase: Phase, number: int) -> int:
            return assignment.position(index, step, warmup_run, phase == "warmup", number)

        if share is not None:
            needed = {position("warmup", number) for number in range(warmup)}
            if point.cache == "warm":
                needed |= set(range(share.first, share.first + share.count))
            else:
                assert requests is not None
                needed |= {position("measured", first + number) for number in range(requests)}
            for place in sorted(needed):
                addresses[place] = await delivery.place(self._clips[place], point.transport)
        kinds = list(point.requests.items())
        weights = [request.weight for _, request in kinds]

        def make(phase: Phase, number: int) -> Prepared:
            if phase == "warmup":
                name, request = kinds[number % len(kinds)]
            else:
                chosen = random.Random(f"{self._seed} {index} {step} {number}")  # noqa: S311 - a draw by weight
                name, request = chosen.choices(kinds, weights)[0]
            if request.kind == "text":
                salt = f"{self._seed} {index} {step} {phase}" if point.cache == "cold" else f"{self._seed}"
                place = number if point.cache == "cold" else number % self._scenario.warm_clips
                return Prepared(name, None, text_body(self._target.model, request, salt, place))
            place = position(phase, number)
            part, address = addresses[place]
            body = video_body(self._target.model, request, part, address, place)
            return Prepared(name, self._clips[place].name, body)

        return make
