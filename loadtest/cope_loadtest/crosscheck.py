"""The same requests by our client and by other load tests, in turns on one server: do the clocks agree?"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from cope_loadtest.bodies import text_body, video_body
from cope_loadtest.client import Body, make_client
from cope_loadtest.corpus.clips import Clip, Wanted
from cope_loadtest.execute import Target, Watcher
from cope_loadtest.intervals import estimate, resampled
from cope_loadtest.peers import Job, Peer, PeerError, run_peer
from cope_loadtest.runner import LoadRun, Prepared
from cope_loadtest.scenario import Point, Scenario
from cope_loadtest.tables import ScenarioError
from cope_loadtest.transports import Delivery, TransportError

SHARE, FLOOR_S = 0.05, 0.003  # medians that differ by no more than the larger of both agree
OURS = "cope loadtest"
_START_S = 300.0  # a tool may take so long to start
_SEEDS = 1_000_000  # clips of a run


@dataclass(frozen=True, slots=True)
class Tool:
    """Another load test that is installed.

    Attributes:
        peer: which.
        python: the interpreter of its environment.
        version: its name and version.
    """

    peer: Peer
    python: str
    version: str


@dataclass(slots=True)
class Samples:
    """Seconds to the first token at one point.

    Attributes:
        scheduled: by our client, from the moment at which its user was free.
        sent: by our client, from the request's first byte.
        tools: by each tool, from where its clock starts.
    """

    scheduled: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    tools: dict[str, list[float]] = field(default_factory=dict)


@dataclass(slots=True)
class Found:
    """What was measured.

    Attributes:
        samples: of each point of the scenario.
        trouble: why it could not go on, or None.
        interrupted: somebody stopped it.
    """

    samples: list[Samples]
    trouble: str | None = None
    interrupted: bool = False


def check(scenario: Scenario) -> None:
    """See whether the other tools can do what a scenario asks for.

    Raises:
        ScenarioError: they cannot; the message names the value.
    """
    if scenario.sweep is not None:
        raise ScenarioError("sweep: a cross-check compares points, and cannot search for a knee")
    for point in scenario.points:
        load = point.load
        if load.arrival != "closed":
            raise ScenarioError(f"load.arrival must be closed for a cross-check, not {load.arrival!r}")
        if load.requests is None or load.duration_s is not None:
            raise ScenarioError("load.requests alone must bound a cross-check: all clients send the same number")
        if load.ramp_s:
            raise ScenarioError("load.ramp_s must be 0 for a cross-check: the other tools' users come all at once")
        if len(point.requests) != 1:
            raise ScenarioError("requests: a cross-check takes one kind at a point; name it in matrix.request")


class Plan:
    """Which clips each client gets: the same few where the caches are warm, others where they are cold.

    Args:
        scenario: one that `check` has passed.
        clients: how many there are, ours included.
        seed: of the run; other seeds give other clips.
    """

    def __init__(self, scenario: Scenario, clients: int, seed: int) -> None:
        self._scenario, self._clients = scenario, clients
        self.wanted: list[Wanted] = []
        self._first: list[int] = []
        for point in scenario.points:
            self._first.append(len(self.wanted))
            if not point.has_video:
                continue
            count = scenario.warm_clips
            if point.cache == "cold":
                count = clients * sum(self.requests(point, turn) for turn in range(scenario.rounds))
            self.wanted += [Wanted(point.clip, seed * _SEEDS + len(self.wanted) + k) for k in range(count)]

    def requests(self, point: Point, turn: int) -> int:
        """Requests of each client in a round: each user's first is not counted, for it finds everything asleep."""
        part = point.load.part(turn, self._scenario.rounds)
        return 0 if part is None or part.requests is None else part.requests + point.load.concurrency

    def positions(self, index: int, turn: int, client: int) -> list[int]:
        """Clips of a client's requests in a round of a point, in order; of a text's, which words it has."""
        point = self._scenario.points[index]
        count = self.requests(point, turn)
        if point.cache == "warm":
            return [self._first[index] + number % self._scenario.warm_clips for number in range(count)]
        before = self._clients * sum(self.requests(point, earlier) for earlier in range(turn))
        first = self._first[index] + before + client * count
        return list(range(first, first + count))

    def warm(self, index: int) -> list[int]:
        """Clips that are sent before a round's clocks start."""
        if self._scenario.points[index].cache == "cold":
            return []
        return list(range(self._first[index], self._first[index] + self._scenario.warm_clips))


class Crosscheck:
    """One run.

    Args:
        scenario: one that `check` has passed.
        target: the server.
        tools: the others.
        plan: which clips go where, for all tools and our client.
        clips: the plan's, in its order.
        folder: of the clips.
        out: the tools' files are written below it.
        seed: of the run.
        watcher: is told how it goes on.
        host: address of this machine at which the server finds clips with transport `url`.
    """

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        tools: Sequence[Tool],
        plan: Plan,
        clips: Sequence[Clip],
        folder: Path,
        out: Path,
        seed: int,
        watcher: Watcher,
        host: str = "127.0.0.1",
    ) -> None:
        self._scenario, self._target, self._tools, self._plan = scenario, target, list(tools), plan
        self._clips, self._folder, self._out, self._seed = clips, folder, out, seed
        self._watcher, self._host = watcher, host
        self.found = Found([Samples(tools={tool.peer.name: [] for tool in tools}) for _ in scenario.points])

    async def run(self) -> Found:
        """Measure everything. SIGINT and SIGTERM end it early, and the result is what there is by then."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            loop.add_signal_handler(number, task.cancel)
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(make_client(self._target.base_url, self._target.api_key))
                delivery = await stack.enter_async_context(Delivery(client, self._folder, self._host))
                for turn in range(self._scenario.rounds):
                    for index in range(len(self._scenario.points)):
                        await self._round(client, delivery, index, turn)
        except asyncio.CancelledError:
            self.found.interrupted = True
        except (PeerError, TransportError) as error:
            self.found.trouble = str(error)
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
        return self.found

    async def _round(self, client: httpx.AsyncClient, delivery: Delivery, index: int, turn: int) -> None:
        """One round of a point: every client once, and another one first each time."""
        point, plan, samples = self._scenario.points[index], self._plan, self.found.samples[index]
        count = plan.requests(point, turn)
        if not count:
            return
        if warm := plan.warm(index):
            self._watcher.note(f"{point.label}: warming")
            await self._ours(client, point, await self._bodies(delivery, point, warm), concurrency=1)
        lead = point.load.concurrency
        contenders: list[Tool | None] = [None, *self._tools]
        first = (turn + index) % len(contenders)
        for client_number in (*range(first, len(contenders)), *range(first)):
            tool = contenders[client_number]
            name = OURS if tool is None else tool.peer.name
            bodies = await self._bodies(delivery, point, plan.positions(index, turn, client_number))
            self._watcher.begin(f"round {turn + 1}/{self._scenario.rounds}  {point.label}: {name}", None)
            if tool is None:
                run = (await self._ours(client, point, bodies, lead))[lead:]
                samples.scheduled += [scheduled for scheduled, _ in run]
                samples.sent += [sent for _, sent in run]
                continue
            folder = self._out / f"{tool.peer.name.split()[0]}-{index + 1}-{turn + 1}"
            folder.mkdir(parents=True, exist_ok=True)
            job = Job(
                folder,
                self._target.base_url,
                self._target.model,
                self._target.api_key,
                lead,
                [as_json(body) for body in bodies],
            )
            timeout_s = _START_S + count * self._scenario.patience.stall_s
            samples.tools[tool.peer.name] += (await run_peer(tool.peer, tool.python, job, timeout_s))[lead:]

    async def _bodies(self, delivery: Delivery, point: Point, positions: Sequence[int]) -> list[Body]:
        return await make_bodies(self._target.model, point, delivery, self._clips, positions, self._seed)

    async def _ours(
        self, client: httpx.AsyncClient, point: Point, bodies: Sequence[Body], concurrency: int
    ) -> list[tuple[float, float]]:
        """Seconds to the first token from scheduled and from sent, in the order of the requests.

        Raises:
            PeerError: a request failed.
        """
        (kind,) = point.requests
        load = replace(point.load, requests=len(bodies), concurrency=concurrency, warmup=0)
        run = LoadRun(
            client,
            load,
            lambda _, number: Prepared(kind, None, bodies[number]),
            self._scenario.patience,
            watch=self._watcher.ended,
        )
        records = sorted(await run.run(), key=lambda record: record.number)
        if bad := [record for record in records if not record.ok]:
            raise PeerError(f"{OURS}: {len(bad)} requests failed: {bad[0].outcome}: {bad[0].detail}")
        return [
            (record.ttft_s, record.ttft_sent_s)
            for record in records
            if record.ttft_s is not None and record.ttft_sent_s is not None
        ]


async def make_bodies(
    model: str, point: Point, delivery: Delivery, clips: Sequence[Clip], positions: Sequence[int], seed: int
) -> list[Body]:
    """The requests of a plan's positions.

    Args:
        model: its name at the server.
        point: where.
        delivery: brings clips to the server.
        clips: of the whole plan.
        positions: which, in order.
        seed: of the run; it chooses the words of texts.
    """
    (request,) = point.requests.values()
    bodies = []
    for position in positions:
        if request.kind == "text":
            bodies.append(text_body(model, request, f"{seed} {point.label}", position))
            continue
        part, address = await delivery.place(clips[position], point.transport)
        bodies.append(video_body(model, request, part, address, position))
    return bodies


def as_json(body: Body) -> dict[str, Any]:
    """A request as other tools take it apart."""
    made: dict[str, Any] = json.loads(b"".join(body.parts))
    return made


def compare(point: Point, samples: Samples, versions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Lay each tool's median beside ours.

    Args:
        point: where.
        samples: what was measured there.
        versions: of the tools.

    Returns:
        A row for each tool that has samples: `point`, `cache`, `concurrency`, `tool`, `version`, `n`, `our_n`,
        `ttft_s`, `our_ttft_s` (from *sent*), `our_ttft_scheduled_s`, `difference_s` (the tool's median less ours) with
        `difference_interval`, `allowed_s`, and `agrees`.
    """
    rows = []
    for name, theirs in samples.tools.items():
        if not theirs or not samples.sent:
            continue
        ours = float(np.median(samples.sent))
        drawn = resampled(theirs, [0.5], seed=1)[:, 0] - resampled(samples.sent, [0.5], seed=2)[:, 0]
        difference = estimate(float(np.median(theirs)) - ours, drawn)
        allowed = max(SHARE * ours, FLOOR_S)
        rows.append(
            {
                "point": point.label,
                "cache": point.cache,
                "concurrency": point.load.concurrency,
                "tool": name,
                "version": versions.get(name),
                "n": len(theirs),
                "our_n": len(samples.sent),
                "ttft_s": round(float(np.median(theirs)), 6),
                "our_ttft_s": round(ours, 6),
                "our_ttft_scheduled_s": round(float(np.median(samples.scheduled)), 6),
                "difference_s": round(difference.value, 6),
                "difference_interval": [round(difference.low, 6), round(difference.high, 6)],
                "allowed_s": round(allowed, 6),
                "agrees": abs(difference.value) <= allowed,
            }
        )
    return rows
