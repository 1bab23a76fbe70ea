"""A load is what it says it is, ends by its bound, and every request of it is accounted for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest
from fake_chat import OK_HEAD, Behaviour, Fake, Request, delta, serving, streaming

from cope_loadtest.arrivals import Load
from cope_loadtest.client import Body, Patience, make_client
from cope_loadtest.records import Record
from cope_loadtest.runner import LoadRun, Prepared

pytestmark = pytest.mark.alone

SLACK_S = 2.0  # what a busy machine may take beyond a bound


def run_load(
    behaviour: Behaviour,
    load: Load,
    *,
    patience: Patience | None = None,
    while_running: Callable[[asyncio.Event], object] | None = None,
) -> tuple[list[Record], Fake, float]:
    """The records, the server that was asked, and how long it took."""

    async def work(url: str) -> list[Record]:
        async with make_client(url) as client:
            stop = asyncio.Event()
            run = LoadRun(
                client,
                load,
                lambda phase, number: Prepared("kind", f"{phase}-{number}", Body([b'{"n":%d}' % number])),
                patience or Patience(),
                stop=stop,
            )
            other = asyncio.create_task(while_running(stop)) if while_running else None  # type: ignore[arg-type]
            records = await run.run()
            if other is not None:
                await other
            return records

    with serving(behaviour) as fake:
        started = time.perf_counter()
        records = asyncio.run(work(fake.url))
        took = time.perf_counter() - started
    assert all(record.outcome for record in records)
    return records, fake, took


def outcomes(records: list[Record]) -> dict[str, int]:
    return dict(Counter(record.outcome for record in records))


def test_an_open_loop_sends_when_due_whatever_the_answers_take() -> None:
    load = Load(arrival="constant", rate=20.0, requests=10, warmup=0)
    records, fake, _ = run_load(streaming(first_s=1.5), load)
    assert outcomes(records) == {"ok": 10}
    due = [record.scheduled - records[0].scheduled for record in records]
    assert due == pytest.approx([k / 20 for k in range(10)])
    # All ten were on their way before the first one was answered.
    assert max(record.sent for record in records) < min(record.first_token for record in records)  # type: ignore
    assert [record.number for record in records] == list(range(10))
    assert fake.connections == 10


def test_a_closed_loop_has_as_many_on_their_way_as_users() -> None:
    at_once, most = 0, 0

    async def behave(request: Request) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        await streaming()(request)

    records, _, _ = run_load(behave, Load(arrival="closed", concurrency=3, requests=12, warmup=0))
    assert outcomes(records) == {"ok": 12}
    assert most == 3


def test_requests_that_wait_for_their_turn_have_the_clock_running() -> None:
    load = Load(arrival="burst", rate=100.0, burst=4, requests=4, max_in_flight=1, warmup=0)
    records, _, _ = run_load(streaming(first_s=0.2), load)
    ttfts = sorted(record.ttft_s for record in records)  # type: ignore[type-var]
    assert all(ttft >= 0.2 * (k + 1) for k, ttft in enumerate(ttfts))  # type: ignore[operator]
    assert all(0.2 <= record.ttft_sent_s < 0.6 for record in records)  # type: ignore[operator]


def test_warm_up_and_ramp_are_told_apart() -> None:
    load = Load(arrival="constant", rate=20.0, duration_s=1.0, ramp_s=0.5, warmup=2)
    records, _, took = run_load(streaming(), load)
    phases = Counter(record.phase for record in records)
    assert phases == {"warmup": 2, "ramp": 5, "measured": 10}
    assert took < 1.0 + SLACK_S
    warm = [record for record in records if record.phase == "warmup"]
    assert warm[0].last <= warm[1].scheduled  # type: ignore[operator]  # one after another
    assert [record.clip for record in warm] == ["warmup-0", "warmup-1"]


def test_users_join_over_the_ramp() -> None:
    load = Load(arrival="closed", concurrency=4, duration_s=1.0, ramp_s=0.8, warmup=0)
    records, _, took = run_load(streaming(first_s=0.1), load)
    assert took < 1.0 + SLACK_S
    ramp = [record for record in records if record.phase == "ramp"]
    begins = sorted(record.scheduled - records[0].scheduled for record in ramp)
    # One user has the first fifth of a second for itself, with at most two requests; four share the last one.
    assert sum(begin < 0.19 for begin in begins) <= 2
    assert any(record.phase == "measured" for record in records)


def test_the_run_ends_by_its_bound_when_the_server_stalls() -> None:
    async def stall(request: Request) -> None:
        await request.write(OK_HEAD)
        await request.event(delta("a"))
        await asyncio.sleep(60)

    load = Load(arrival="constant", rate=10.0, duration_s=0.5, drain_s=0.5, max_in_flight=3, warmup=0)
    records, _, took = run_load(stall, load)
    assert took < 1.0 + SLACK_S
    assert outcomes(records) == {"cut_off": 3, "not_sent": 2}


def test_a_closed_loop_ends_by_its_bound_when_the_server_stalls() -> None:
    async def stall(_: Request) -> None:
        await asyncio.sleep(60)

    load = Load(arrival="closed", concurrency=2, duration_s=0.5, drain_s=0.3, warmup=0)
    records, _, took = run_load(stall, load)
    assert took < 0.8 + SLACK_S
    assert outcomes(records) == {"cut_off": 2}


@pytest.mark.parametrize("arrival", ["constant", "closed"])
def test_a_server_that_dies_on_the_way(arrival: str) -> None:
    async def behave(request: Request) -> None:
        if request.number >= 3:
            raise ConnectionError
        await streaming()(request)

    load = Load(arrival=arrival, rate=40.0, requests=8, warmup=0)  # type: ignore[arg-type]
    records, _, _ = run_load(behave, load)
    assert outcomes(records) == {"ok": 3, "disconnected": 5}


def test_a_server_that_is_gone_is_not_asked_thousands_of_times() -> None:
    async def work() -> list[Record]:
        async with make_client("http://127.0.0.1:9") as client:
            load = Load(arrival="closed", concurrency=1, duration_s=1.0, warmup=0)
            return await LoadRun(client, load, lambda *_: Prepared("kind", None, Body([b"{}"])), Patience()).run()

    records = asyncio.run(work())
    assert set(outcomes(records)) == {"connect_error"}
    assert 2 <= len(records) <= 5


@pytest.mark.parametrize("arrival", ["constant", "closed"])
def test_stopping_cuts_off_what_is_on_its_way(arrival: str) -> None:
    async def stop_soon(stop: asyncio.Event) -> None:
        await asyncio.sleep(0.5)
        stop.set()

    load = Load(arrival=arrival, rate=10.0, requests=1000, concurrency=2, warmup=0)  # type: ignore[arg-type]
    records, _, took = run_load(streaming(first_s=0.3), load, while_running=stop_soon)
    assert took < 0.5 + SLACK_S
    assert set(outcomes(records)) == {"ok", "cut_off"}


def test_a_mistake_in_making_requests_is_not_hidden() -> None:
    def broken(*_: object) -> Prepared:
        raise KeyError("no such clip")

    async def work(url: str) -> None:
        async with make_client(url) as client:
            load = Load(arrival="closed", concurrency=2, requests=4, warmup=0)
            await LoadRun(client, load, broken, Patience()).run()

    with serving(streaming()) as fake, pytest.raises(KeyError, match="no such clip"):
        asyncio.run(work(fake.url))
