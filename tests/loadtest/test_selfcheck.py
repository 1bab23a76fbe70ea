"""The client measures itself, and is quick enough."""

from __future__ import annotations

import asyncio

from cope_loadtest.arrivals import Load
from cope_loadtest.client import Body
from cope_loadtest.helpers import helper
from cope_loadtest.selfcheck import ENOUGH_CHUNKS_PER_S, Overhead, SelfCheck, chunks_per_s


def test_two_thousand_chunks_per_second_and_core() -> None:
    # Processor time of this process only: other work on the machine does not count.
    assert asyncio.run(chunks_per_s()) > ENOUGH_CHUNKS_PER_S


def test_overhead_is_measured_once_for_loads_that_are_alike() -> None:
    async def work(url: str) -> list[Overhead]:
        check = SelfCheck(url)
        load = Load(arrival="constant", rate=30.0, requests=100, duration_s=60.0)
        closed = Load(arrival="closed", concurrency=4, requests=100)
        return [
            await check.overhead(load, Body([b"x" * 1000]), 30.0),
            await check.overhead(load, Body([b"x" * 1010]), 30.0),
            await check.overhead(closed, Body([b"x" * 1000]), 5.0),
        ]

    with helper("null_server") as url:
        first, second, closed = asyncio.run(work(url))
    assert first is second and closed is not first
    assert first.requests == 40
    assert 0 < first.delay_s < first.ttft_s < 0.5
    assert 5 <= closed.requests <= 40  # three seconds at eight requests per second


def test_too_much_is_more_than_a_twentieth_of_the_median() -> None:
    found = Overhead(requests=40, ttft_s=0.004, ttft_p95_s=0.006, delay_s=0.001)
    assert found.beside(0.1) == {
        "requests": 40,
        "ttft_s": 0.004,
        "ttft_p95_s": 0.006,
        "delay_s": 0.001,
        "share": 0.04,
        "too_much": False,
    }
    assert found.beside(0.05)["too_much"] is True
    assert found.beside(None)["share"] is None and found.beside(None)["too_much"] is False
