"""Requests for the same GOPs at the same time: decoded once, and not lost when one of them goes away."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from clips import clip

import cope_codec
from cope_codec import CodecError, GopPlan, VideoOptions
from cope_codec.cache import PrimitivesCache
from cope_codec.flights import Flights
from cope_codec.limits import Limits
from cope_codec.pool import CodecPool, PooledVideo

pytestmark = pytest.mark.alone

SIDE = 64
OPTIONS = VideoOptions(gop_slots=4)


class CountingPool(CodecPool):
    """Notes the GOPs that it is asked for."""

    asked: list[int]

    def submit(self, video: PooledVideo, side: int, gops: Sequence[GopPlan]) -> Any:
        self.asked += [gop.index for gop in gops]
        return super().submit(video, side, gops)


@pytest.fixture(scope="module")
def the_pool() -> Iterator[CountingPool]:
    with CountingPool(2, limits=Limits(wall_s=20)) as made:
        made.wait_until_warm()
        yield made


@pytest.fixture
def pool(the_pool: CountingPool) -> CountingPool:
    the_pool.asked = []
    return the_pool


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 60))


async def until(what: Callable[[], bool]) -> None:
    while not what():  # noqa: ASYNC110 - the pool has no event for it
        await asyncio.sleep(0.01)


def test_spaces_do_not_find_each_others_gops_neither_kept_nor_on_their_way(pool: CountingPool) -> None:
    async def main() -> None:
        flights = Flights(PrimitivesCache())
        video = await pool.open_async(clip(12), OPTIONS)
        together = await asyncio.gather(*(flights.extract(video, SIDE, space) for space in ("a", "b", "a")))
        assert all(ours is theirs for ours, theirs in zip(together[0], together[2], strict=True))
        for ours, theirs in zip(together[0], together[1], strict=True):
            assert ours is not theirs
            assert (ours.key, ours.residual.tobytes()) == (theirs.key, theirs.residual.tobytes())
        assert (flights.store.hits, flights.store.misses, len(flights.store)) == (0, 6, 6)
        await flights.extract(video, SIDE, "b")
        assert (flights.store.hits, flights.store.misses) == (3, 6)
        await flights.extract(video, SIDE)
        assert (flights.store.hits, flights.store.misses) == (3, 9)
        assert not flights._flights

    run(main())


def test_a_second_request_extracts_nothing(pool: CountingPool) -> None:
    async def main() -> None:
        flights = Flights(PrimitivesCache())
        video = await pool.open_async(clip(12), OPTIONS)
        first = await flights.extract(video, SIDE)
        again = await flights.extract(await pool.open_async(clip(12), OPTIONS), SIDE)
        assert all(ours is theirs for ours, theirs in zip(first, again, strict=True))
        for ours, theirs in zip(first, cope_codec.open(clip(12), OPTIONS).gops(SIDE), strict=True):
            assert repr(ours) == repr(theirs)
            assert ours.residual.tobytes() == theirs.residual.tobytes()
        assert (flights.store.hits, flights.store.misses) == (3, 3)

    run(main())
    assert sorted(pool.asked) == [0, 1, 2]


def mapped_results() -> int:
    """Memory of workers' results that this process still maps, bytes."""
    gc.collect()
    spans = [line.split()[0].split("-") for line in Path("/proc/self/maps").open() if "memfd:cope-codec" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def test_the_cache_holds_no_more_memory_than_it_counts(pool: CountingPool) -> None:
    before = mapped_results()
    store = PrimitivesCache()

    async def main() -> None:
        await Flights(store).extract(await pool.open_async(clip(24), VideoOptions(gop_slots=2)), SIDE)

    run(main())
    assert len(store) == 12
    assert mapped_results() == before


def test_two_at_a_time_are_decoded_once(pool: CountingPool) -> None:
    async def main() -> None:
        flights = Flights(PrimitivesCache())
        videos = [await pool.open_async(clip(12), OPTIONS) for _ in range(3)]
        one, two, three = await asyncio.gather(*(flights.extract(video, SIDE) for video in videos))
        assert all(a is b is c for a, b, c in zip(one, two, three, strict=True))
        assert not flights._flights

    run(main())
    assert sorted(pool.asked) == [0, 1, 2]


def test_one_that_goes_away_takes_nothing_from_the_other(pool: CountingPool) -> None:
    async def main() -> None:
        flights = Flights(PrimitivesCache())
        video = await pool.open_async(clip(24, width=640, height=480), OPTIONS)
        first = asyncio.create_task(flights.extract(video, 384))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(flights.extract(video, 384))
        await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert [gop.index for gop in await second] == list(range(6))

    run(main())
    assert sorted(pool.asked) == list(range(6))


def test_when_all_have_gone_the_workers_are_free(pool: CountingPool) -> None:
    async def main() -> None:
        flights = Flights(PrimitivesCache())
        video = await pool.open_async(clip(24, width=640, height=480), VideoOptions(fps=15))
        tasks = [asyncio.create_task(flights.extract(video, 384)) for _ in range(2)]
        await until(lambda: pool.stats().busy == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        started = time.monotonic()
        await until(lambda: pool.stats().busy == pool.stats().queued == 0)
        assert time.monotonic() - started < 1.5  # 200 ms on an idle machine
        assert not flights._flights
        assert [gop.index for gop in await flights.extract(await pool.open_async(clip(4)), SIDE)] == [0]

    run(main())


def test_a_long_video_does_not_fill_the_queue(pool: CountingPool) -> None:
    async def main() -> None:
        flights = Flights(PrimitivesCache())
        video = await pool.open_async(clip(24), VideoOptions(gop_slots=1, fps=5))
        assert len(pool.groups(video, video.plan.gops)) >= 8
        tasks = [asyncio.create_task(flights.extract(video, SIDE)) for _ in range(2)]
        deepest = 0
        while not all(task.done() for task in tasks):
            deepest = max(deepest, pool.stats().queued)
            await asyncio.sleep(0.001)
        assert 1 <= deepest <= 3
        one, two = (task.result() for task in tasks)
        assert [gop.index for gop in one] == [gop.index for gop in two] == [plan.index for plan in video.plan.gops]

    run(main())
    assert len(pool.asked) == len(set(pool.asked))


def test_all_who_wait_hear_of_a_failure_and_the_next_one_tries_again(pool: CountingPool) -> None:
    data = clip(4)
    broken = data[: data.index(b"mdat") + 4] + bytes(data.index(b"moov") - data.index(b"mdat") - 8)
    broken += data[data.index(b"moov") - 4 :]

    async def main() -> None:
        flights = Flights(PrimitivesCache())
        video = await pool.open_async(broken)
        for _ in range(2):
            results = await asyncio.gather(*(flights.extract(video, SIDE) for _ in range(2)), return_exceptions=True)
            assert [error.code for error in results if isinstance(error, CodecError)] == ["undecodable_video"] * 2
        assert len(flights.store) == 0

    run(main())
    assert pool.asked == [0, 0]
