"""The same interface on a Ray of two CPUs: the arrays of the local pool, its codes, its cancelling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from clips import broken_clips, clip
from ray_cluster import ray_of
from requirements import require

import cope_codec
from cope_codec import CodecError, VideoOptions
from cope_codec.limits import Limits

pytestmark = pytest.mark.alone

if TYPE_CHECKING:
    from cope_codec.ray_pool import RayPool

SIDE = 64
WALL_S = 2.5


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    with ray_of(2):
        from cope_codec.ray_pool import RayPool

        with RayPool(limits=Limits(wall_s=WALL_S)) as made:
            made.wait_until_warm()
            yield made


def test_ray_must_be_connected() -> None:
    require("RAY", find_spec("ray") is not None, "Ray is not installed (pip install cope-serve[ray])")
    from cope_codec.ray_pool import RayPool

    with pytest.raises(RuntimeError, match=r"ray\.init"):
        RayPool(1)


def until(what: Callable[[], bool], within_s: float = 60) -> float:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s, "it did not happen"
        time.sleep(0.005)
    return time.monotonic() - started


@pytest.mark.parametrize("options", [{}, {"mode": "transcode", "gop_slots": 4}, {"frames": 20}], ids=str)
@pytest.mark.parametrize("as_file", [False, True])
def test_the_arrays_are_those_of_the_process_itself(
    pool: RayPool, options: dict[str, Any], as_file: bool, tmp_path: Path
) -> None:
    source: bytes | Path = clip(24)
    if as_file:
        source = tmp_path / "video.mp4"
        source.write_bytes(clip(24))
    want = cope_codec.open(source, **options)
    video = pool.open(source, VideoOptions(**options))
    assert video.plan == want.plan
    gops = list(video.gops(SIDE))
    for ours, theirs in zip(gops, want.gops(SIDE), strict=True):
        assert repr(ours) == repr(theirs)
        for name, array in ours.arrays().items():
            assert array.tobytes() == theirs.arrays()[name].tobytes()
            assert not array.flags.writeable


def test_broken_videos_get_the_codes_of_the_process_itself(pool: RayPool) -> None:
    for name, data in broken_clips().items():
        codes = []
        for opener in (cope_codec.open, pool.open):
            with pytest.raises(CodecError) as caught:
                list(opener(data).gops(SIDE))
            codes.append((caught.value.code, str(caught.value), caught.value.param))
        assert codes[0] == codes[1], name


def test_a_video_that_takes_too_long_is_a_timeout(pool: RayPool) -> None:
    slow = pool.open(clip(24, width=640, height=480), VideoOptions(fps=4, mode="transcode"))
    before = pool.stats().restarts
    with pytest.raises(CodecError) as caught:
        pool.submit(slow, 1024, slow.plan.gops).result(timeout=60)
    assert caught.value.code == "timeout"
    assert len(list(pool.open(clip(4)).gops(SIDE))) == 1
    assert pool.stats().restarts == before + 1


def test_cancelling_a_coroutine_frees_the_actors(pool: RayPool) -> None:
    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.extract(clip(24, width=640, height=480), VideoOptions(fps=15), 1024), 1.0)

    asyncio.run(leave())
    # Less than a second on an idle machine.
    assert until(lambda: pool.stats().busy == 0 and pool.stats().queued == 0) < 5
    assert len(list(pool.open(clip(4)).gops(SIDE))) == 1


def test_the_queue_is_bounded_and_counted(pool: RayPool) -> None:
    video = pool.open(clip(24, width=640, height=480), VideoOptions(fps=4))
    jobs = [pool.submit(video, 1024, video.plan.gops) for _ in range(3)]
    stats = pool.stats()
    assert (stats.workers, stats.busy, stats.queued) == (2, 2, 1)
    time.sleep(0.1)
    assert 0.1 <= pool.stats().oldest_s < 5
    pool.max_queue = 1
    try:
        with pytest.raises(CodecError) as caught:
            pool.open(clip(4))
    finally:
        pool.max_queue = 256
    assert caught.value.code == "queue_full"
    for job in reversed(jobs):
        job.cancel()
    until(lambda: pool.stats().busy == 0)


def test_a_killed_actor_is_replaced_and_its_task_done_again(pool: RayPool) -> None:
    import ray

    video = pool.open(clip(24))
    workers = {child.pid for child in worker_processes()}
    before = pool.stats().restarts
    job = pool.submit(video, 1024, video.plan.gops)
    for seat in pool._seats:
        ray.kill(seat.actor)
    gops = job.result(timeout=90)
    assert [gop.index for gop in gops] == [gop.index for gop in video.plan.gops]
    until(lambda: not workers & {child.pid for child in worker_processes()}, within_s=10)
    assert len(list(pool.open(clip(4)).gops(SIDE))) == 1
    assert pool.stats().restarts > before


def test_an_idle_actor_that_dies_is_replaced(pool: RayPool) -> None:
    import ray

    pool.wait_until_warm()
    before = pool.stats().restarts
    ray.kill(pool._seats[0].actor)
    until(lambda: pool.stats().restarts == before + 1)
    pool.wait_until_warm()
    assert len(list(pool.open(clip(4)).gops(SIDE))) == 1


def worker_processes() -> list[psutil.Process]:
    """The decoding processes that actors have started."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "multiprocessing.spawn" in words and "ray" in (process.parent().name() if process.parent() else ""):
            found.append(process)
    return found
