"""The pool's queue: what waits in it holds little, and what does not fit is refused with `queue_full`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import clip

import cope_codec
from cope_codec import CodecError, VideoOptions, worker
from cope_codec.jobs import Job
from cope_codec.pool import CodecPool

SIDE = 64


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with CodecPool(1, max_queue=64, max_queue_bytes=3 * len(clip(4))) as made:
        made.wait_until_warm()
        yield made


@pytest.fixture
def busy(pool: CodecPool) -> Iterator[CodecPool]:
    """The pool, its worker asleep."""
    pool.wait_until_warm()
    asleep = pool.run_soon(worker.call, (time.sleep, 60), [])
    until(lambda: pool.stats().busy == 1)
    yield pool
    asleep.cancel()
    until(lambda: pool.stats().busy == 0)


def until(what: Callable[[], bool], within_s: float = 10) -> None:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s, "it did not happen"
        time.sleep(0.002)


def descriptors() -> int:
    gc.collect()  # what earlier tests left in cycles would otherwise be closed at any moment
    return len(os.listdir("/proc/self/fd"))


def settled_descriptors() -> int:
    """How many are open once nothing that ended before is still being closed by another thread."""
    before, now = -1, descriptors()
    while now != before:
        time.sleep(0.05)
        before, now = now, descriptors()
    return now


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many files, and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count + 2, before[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(CodecError) as caught:
        call()
    return caught.value.code


def test_a_waiting_video_holds_one_descriptor(busy: CodecPool, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(clip(4))
    before = settled_descriptors()
    waiting = [busy.open_soon(tmp_path / "video.mp4") for _ in range(20)]
    until(lambda: descriptors() == before + 20)
    for task in waiting:
        task.cancel()
    assert descriptors() == before  # although the futures are still here


def test_the_bytes_that_wait_are_bounded(busy: CodecPool, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(clip(4))
    waiting = [busy.open_soon(clip(4)) for _ in range(3)]
    assert code_of(lambda: busy.open_soon(clip(4))) == "queue_full"
    waiting.append(busy.open_soon(tmp_path / "video.mp4"))  # not a copy
    for task in waiting:
        task.cancel()
    alone = busy.open_soon(clip(4) * 4)  # or it could never be opened
    assert code_of(lambda: busy.open_soon(clip(4))) == "queue_full"
    alone.cancel()


@pytest.mark.parametrize("count", range(8))
def test_a_lack_of_descriptors_is_a_full_queue_and_leaks_none(pool: CodecPool, count: int, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(clip(4))
    pool.wait_until_warm()
    before = settled_descriptors()
    with descriptors_left(count):
        for source in (clip(4), tmp_path / "video.mp4"):
            try:
                pool.open(source)
            except CodecError as error:
                assert error.code == "queue_full"
            else:
                assert count > 4
    until(lambda: descriptors() <= before)
    assert len(list(pool.open(clip(12)).gops(SIDE))) == 2


def test_a_worker_that_dies_for_lack_of_descriptors_is_replaced_later(pool: CodecPool) -> None:
    pool.wait_until_warm()
    (pid,) = pool.pids()
    with descriptors_left(0):
        os.kill(pid, signal.SIGKILL)
        until(lambda: not pool.pids())
        time.sleep(0.3)  # the keeper tries to build it again
    pool.wait_until_warm(30)
    assert len(list(pool.open(clip(12)).gops(SIDE))) == 2


def test_extract_does_not_fill_the_queue(pool: CodecPool) -> None:
    options = VideoOptions(gop_slots=1, fps=5)

    async def main() -> int:
        deepest = 0
        task = asyncio.create_task(pool.extract(clip(24), options, SIDE))
        while not task.done():
            deepest = max(deepest, pool.stats().queued)
            await asyncio.sleep(0.001)
        video, gops = task.result()
        assert len(pool.groups(video, video.plan.gops)) >= 4
        assert [gop.index for gop in gops] == [plan.index for plan in video.plan.gops]
        return deepest

    assert 1 <= asyncio.run(main()) <= pool.size


def test_a_coroutine_that_is_cancelled_while_it_hands_over_takes_its_task_back(
    pool: CodecPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    tasks: list[Any] = []
    plain = pool.open_soon

    def slow(*arguments: Any) -> Any:
        inside.set()
        go_on.wait(10)
        tasks.append(plain(*arguments))
        return tasks[0]

    monkeypatch.setattr(pool, "open_soon", slow)

    async def leave() -> None:
        coroutine = asyncio.create_task(pool.open_async(clip(4)))
        await asyncio.to_thread(inside.wait, 10)
        coroutine.cancel()
        with pytest.raises(asyncio.CancelledError):
            await coroutine
        go_on.set()

    asyncio.run(leave())  # ends when the thread has
    assert tasks[0].cancelled()
    until(lambda: pool.stats().busy == pool.stats().queued == 0)


def test_a_task_is_taken_back_once() -> None:
    taken: list[Job] = []
    job = Job(b"", [], bytes, taken.append)
    assert job.cancel()
    assert job.cancel()
    assert taken == [job]


@pytest.mark.parametrize("pooled", [False, True])
def test_what_is_no_file_is_an_os_error(pool: CodecPool, pooled: bool, tmp_path: Path) -> None:
    opener: Callable[[Path], object] = pool.open if pooled else cope_codec.open
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for somebody who writes to it
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        opener(tmp_path)
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file") as caught:
            opener(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(path))
